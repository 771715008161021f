"""Replies in an encoding that meshd cannot read, though it had asked for plain ones: counted and logged once.

Errors are passed on as they are, and so are answers; of one that must be judged, nothing is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.fallback.test_scripted import PATH, SERVED, TOO_LONG, document
from tests.fallback.test_unpaid import TWICE, UNPAID, in_turn, said
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, Mesh, post

if TYPE_CHECKING:
    from tests.proxy.harness import Upstream

TOO_MANY, TOO_LARGE = b"429 Too Many Requests", b"400 Bad Request"


def of(one: Mesh, encoding: str) -> int:
    return one.telemetry.tally.replies_unread.get(("llm", encoding), 0)


@pytest.mark.parametrize(
    ("encoding", "counted"), [(b"br", "br"), (b"ZStd", "zstd"), (b"gzip, br", "other"), (b"x" * 500, "other")]
)
async def test_an_error_decides_nothing_and_is_counted(
    mesh: Any, upstream: Any, encoding: bytes, counted: str, caplog: pytest.LogCaptureFixture
) -> None:
    field = b"content-encoding: " + encoding
    unread = said(TOO_LARGE, TOO_LONG, field)
    first: Upstream = await upstream(
        in_turn(unread, unread, said(TOO_MANY, UNPAID, field), said(b"200 OK", CHAT_REPLY))
    )
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="context", rule=TWICE))
    with caplog.at_level(logging.WARNING, "meshd.proxy"):
        for _ in range(2):
            reply = await one.fetch(post(PATH, CHAT))
            assert (reply.status, reply.body, reply.get(SERVED)) == (400, TOO_LONG, None)
        assert of(one, counted) == 2
        # What a 429 says is not known either, so it is taken for a rate.
        reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, of(one, counted)) == (200, 3)
    assert len([line for line in caplog.messages if "cannot be read" in line]) == 1
    assert b"accept-encoding: identity" in first.received.lower()


async def test_an_answer_that_cannot_be_metered_is_passed_on_and_counted(mesh: Any, upstream: Any) -> None:
    first = await upstream(in_turn(said(b"200 OK", CHAT_REPLY, b"content-encoding: zstd")))
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="context"))
    reply = await one.fetch(post(PATH, CHAT, "accept-encoding: zstd"))
    assert (reply.status, reply.body, of(one, "zstd")) == (200, CHAT_REPLY, 1)


WITH_TOOLS = CHAT[:-1] + b',"tools":[{"type":"function","function":{"name":"look"}}]}'


async def test_an_answer_that_cannot_be_judged_is_not_passed_on(mesh: Any, upstream: Any) -> None:
    first = await upstream(in_turn(said(b"200 OK", CHAT_REPLY, b"content-encoding: zstd")))
    rule = "retry: {attempts: 0}, allow: {tools: [look]}"
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="context", rule=rule))
    reply = await one.fetch(post(PATH, WITH_TOOLS, "accept-encoding: zstd"))
    assert (reply.status, of(one, "zstd")) == (502, 1)
    assert b"asked for plainly" in reply.body


async def test_what_is_read_is_not_counted(mesh: Any, upstream: Any) -> None:
    first = await upstream(
        in_turn(said(TOO_LARGE, TOO_LONG, b"content-encoding: identity"), said(b"200 OK", CHAT_REPLY))
    )
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="context"))
    assert (await one.fetch(post(PATH, CHAT))).get(SERVED) == b"reply"
    assert (await one.fetch(post(PATH, CHAT))).status == 200
    assert not one.telemetry.tally.replies_unread
