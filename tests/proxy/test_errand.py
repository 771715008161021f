"""Calls that meshd itself makes: they go the way of all others, and whatever happens to them has an end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.proxy.errand import REPLY_BYTES_MAX, ask
from meshd.refusal import Reason, Refused
from tests.ports import free_port
from tests.proxy.harness import echo, plain_policy, until

NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}}]\n"


def errand(one: Any, timeout_s: float = 30.0, upstream: str = "up") -> Any:
    return ask(one.proxy, upstream, "/x", b'{"why": 1}', errand="supervisor", timeout_s=timeout_s)


async def test_an_answer_comes_back_and_the_call_is_counted(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port, kind="agent"))
    answered = await errand(one)
    assert (answered.status, answered.body) == (200, b'POST /x\n{"why": 1}')
    call = one.calls[0].call
    assert (call.agent, call.context.agent) == ("meshd:supervisor", "meshd:supervisor")
    assert b"content-type: application/json" in up.received.lower()


async def test_an_error_is_an_answer(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, kind="agent") + NO_RETRY)
    answered = await errand(one)
    assert (answered.status, answered.body) == (500, b"no")


async def test_who_cannot_be_reached_is_told_so(mesh: Any) -> None:
    one = await mesh(plain_policy(free_port(), kind="agent") + NO_RETRY)
    with pytest.raises(Refused) as told:
        await errand(one)
    assert told.value.reason is Reason.UPSTREAM_UNREACHABLE
    with pytest.raises(Refused) as told:
        await errand(one, upstream="nobody")
    assert told.value.reason is Reason.UNKNOWN_TARGET


async def test_one_that_breaks_off_or_never_ends_is_no_answer(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        peer.writer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, kind="agent") + NO_RETRY)
    with pytest.raises(Refused, match="broke off"):
        await errand(one)


async def test_one_that_is_too_long_is_not_kept(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(b"x" * (REPLY_BYTES_MAX + 1))

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, kind="agent"))
    with pytest.raises(Refused) as told:
        await errand(one)
    assert told.value.reason is Reason.TOO_LARGE


async def test_silence_ends_with_its_time_and_the_upstream_is_let_go(mesh: Any, upstream: Any) -> None:
    asked = asyncio.Event()

    async def script(peer: Any) -> None:
        await peer.request()
        asked.set()
        await peer.reader.read()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, kind="agent"))
    task = asyncio.ensure_future(errand(one, timeout_s=0.2))
    await asked.wait()
    with pytest.raises(Refused) as told:
        await task
    assert told.value.reason in (Reason.UPSTREAM_TIMEOUT, Reason.DEADLINE)
    await until(lambda: not one.proxy.live)


async def test_whoever_stops_waiting_leaves_nothing_behind(mesh: Any, upstream: Any) -> None:
    asked = asyncio.Event()

    async def script(peer: Any) -> None:
        await peer.request()
        asked.set()
        await peer.reader.read()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, kind="agent"))
    task = asyncio.ensure_future(errand(one))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not one.proxy.live)
