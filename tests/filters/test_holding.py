"""How long each client can be held."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import Call, Rpc
from meshd.dialects.anthropic import Anthropic
from meshd.dialects.gemini import Gemini
from meshd.dialects.grpc import Grpc
from meshd.dialects.mcp import Mcp
from meshd.dialects.openai import OpenAI
from meshd.dialects.plain import Plain
from meshd.filters.holding import GRPC_S, PLAIN_S, RPC_S, SDK_S_MAX, STREAM_S, hold_s, is_kept_alive
from meshd_sdk.context import Context
from tests.filters.calls import WALL_S, call, chat


def made(target: str = "openai", dialect: Any = None, **fields: Any) -> Call:
    one = call(target, **fields)
    one.dialect = dialect or OpenAI()
    return one


def until(one: Call, deadline_s: float | None) -> Call:
    one.context = Context(workflow="w", agent="researcher", deadline_s=deadline_s)
    return one


STREAM = {"ask": chat("gpt-x", is_stream=True)}
READ = b"x-stainless-read-timeout"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"600", 595.0), (b"600.0", 595.0), (b"20", 18.0), (b"1e9", SDK_S_MAX), (b"0.5", 0.45),
        (b"NOT_GIVEN", PLAIN_S), (b"", PLAIN_S), (b"-5", PLAIN_S), (b"0", PLAIN_S), (b"nan", PLAIN_S),
        (b"inf", PLAIN_S), (b"1" * 400, PLAIN_S), (b"\xff", PLAIN_S),
    ],
)  # fmt: skip
def test_what_an_official_sdk_says(value: bytes, expected: float) -> None:
    for name in (READ, b"x-stainless-timeout"):
        one = made(ask=chat(), headers=[(name, value)])
        assert hold_s(one) == pytest.approx(expected)
        assert not is_kept_alive(one)


def test_a_stream_is_held_for_as_long_as_it_takes() -> None:
    for target, dialect in (("openai", OpenAI()), ("claude", Anthropic())):
        one = made(target, dialect, headers=[(READ, b"5")], **STREAM)
        assert (hold_s(one), is_kept_alive(one)) == (STREAM_S, True)
    # In whose streams no comment can stand.
    one = made("openai", Gemini(), headers=[(READ, b"50")], **STREAM)
    assert (hold_s(one), is_kept_alive(one)) == (45.0, False)


def test_grpc_has_its_deadline() -> None:
    one = made("billing", Grpc())
    assert hold_s(one) == GRPC_S
    for timeout_s, expected in ((100.0, 95.0), (1.0, 0.9), (0.0, 0.0)):
        one.timeout_s = timeout_s
        assert hold_s(one) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rpc", "expected", "is_alive"),
    [
        (Rpc("mcp", "tools/call", b"1", is_stream=True), RPC_S, True),
        (Rpc("mcp", "tools/call", b"1"), RPC_S, False),
        (Rpc("mcp", "initialize", b"1", is_stream=True), RPC_S, False),
        (Rpc("mcp", "notifications/x", is_stream=True), RPC_S, False),
        (Rpc("a2a", "SendMessage", b"1"), RPC_S, False),
        (Rpc("a2a", "SendStreamingMessage", b"1", is_stream=True), STREAM_S, True),
    ],
)
def test_json_rpc(rpc: Rpc, expected: float, is_alive: bool) -> None:
    one = made("billing", Mcp())
    one.rpc = rpc
    assert (hold_s(one), is_kept_alive(one)) == (expected, is_alive)


def test_what_says_nothing() -> None:
    assert hold_s(made("billing", Plain())) == PLAIN_S
    one = call("billing")
    assert one.dialect is None
    assert hold_s(one) == PLAIN_S
    assert not is_kept_alive(one)


def test_never_beyond_the_workflows_deadline() -> None:
    for one in (made(**STREAM), made("billing", Grpc()), made("billing", Plain())):
        assert hold_s(until(one, WALL_S + 10)) == pytest.approx(9.0)
        assert hold_s(until(one, WALL_S - 10)) == 0.0
    assert hold_s(until(made(**STREAM), None)) == STREAM_S
