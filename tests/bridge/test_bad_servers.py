"""Servers that hang, crash, flood and talk nonsense: each is a typed failure, and what comes after works."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from meshd.bridge import child, ending, stdio
from meshd.outcome import Fault
from tests.bridge.conftest import BAD, sessions
from tests.bridge.raw import Raw
from tests.proxy.harness import until

_others: set[int] = set()


@pytest.fixture(autouse=True)
def _others_are_known() -> None:
    """Servers of other files may still run below this process: they are none of these tests'."""
    _others.clear()
    _others.update(alive())


def alive() -> list[int]:
    """Return the processes that descend from this one, and were not there before the test."""
    below = ending.descendants(os.getpid())
    return [pid for pid in below if pid not in _others and _state(pid) not in ("Z", "")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _sweep(mesh: Any) -> None:
    """Do what the sweep does twice a second."""
    for session in sessions(mesh).all:
        session.expire(mesh.proxy.clock())


async def test_one_that_crashes_at_once_is_left_alone_longer_each_time(started: Any) -> None:
    made = await started(str(BAD), "crash-at-once")
    async with Raw(made.port) as raw:
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
        told = [(await raw.post(message))[1]["error"]["message"] for _ in range(4)]
    assert "files ended with exit status 2. Its last words: no configuration found" in told[0]
    assert any("has failed" in one and "left alone" in one and "no configuration found" in one for one in told[1:])
    assert made.attempts[0].outcome.fault in (Fault.RESET, Fault.CONNECT)
    assert made.attempts[-1].outcome.verdict.value == "failure"
    assert not sessions(made).all


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("crash", "ended with exit status 9"),
        ("noise", "is not UTF-8"),
        ("text", "said what is no message of MCP"),
        ("long", "wrote a line of more than 16 MB"),
    ],
)
@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
async def test_one_that_fails_in_a_call(started: Any, what: str, why: str, sandbox: str) -> None:
    made = await started(str(BAD), "fine", sandbox=sandbox)
    async with Raw(made.port) as raw:
        await raw.open()
        assert why in await raw.error(what)
        await until(lambda: not alive())
        # The session goes on with another copy.
        assert "Error" not in await raw.said("cwd")
        assert len(alive()) >= 1


async def test_one_that_never_says_anything(started: Any) -> None:
    made = await started(str(BAD), "mute", start_timeout=20)
    async with Raw(made.port) as raw:
        asked = asyncio.ensure_future(raw.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}))
        await until(lambda: alive() or asked.done())
        made.ahead_s += 21
        status, answer, _ = await asked
    assert status == 200
    assert "said nothing within 20 s of its start" in answer["error"]["message"]
    assert answer["error"]["data"]["reason"] == "upstream_timeout"
    await until(lambda: not alive())


@pytest.mark.parametrize("what", ["hang", "close-output"])
@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
async def test_one_that_hangs_is_ended_with_the_first_call_that_takes_too_long(
    started: Any, what: str, sandbox: str
) -> None:
    made = await started(str(BAD), "fine", sandbox=sandbox, rest=", timeouts: {first_byte: 40}")
    async with Raw(made.port) as raw:
        await raw.open()
        asked = asyncio.ensure_future(raw.error(what))
        await until(lambda: any(one.underway for one in sessions(made).all) or asked.done())
        made.ahead_s += 41
        # That the output was closed shows only where no sandbox holds it open too.
        assert "sent no reply within 40 s" in await asked or "closed its standard output" in await asked
        await until(lambda: not alive())
        assert await raw.said("cwd")


async def test_answers_with_wrong_ids_are_nobodys(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw, Raw(made.port) as other:
        await raw.open()
        await other.open()
        assert await raw.said("wrong-ids") == "right"
        assert await other.said("wrong-ids") == "right"


async def test_a_flood_on_standard_error_is_kept_within_bounds(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        answered = asyncio.ensure_future(raw.said("flood-stderr"))
        while not answered.done():
            _sweep(made)
            await asyncio.sleep(0)
        assert await answered == "through"
        (session,) = sessions(made).all
        assert len(session._channel._child._errors) <= child.ERRORS_BYTES_MAX


async def test_a_flood_of_messages_comes_whole_to_a_client_that_reads(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        answer, before = await raw.call("flood-stdout")
        assert answer["result"]["content"][0]["text"] == "through"
        assert [one["params"]["data"].rstrip("x") for one in before] == [str(number) for number in range(400)]


async def test_a_client_that_does_not_read_holds_its_server_up(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port, limit=2**16)
        params = {"name": "do", "arguments": {"what": "flood-stdout"}}
        body = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}).encode()
        head = (
            f"POST /files/mcp HTTP/1.1\r\nhost: localhost\r\nmcp-session-id: {raw.session}\r\n"
            f"accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        (session,) = sessions(made).all
        await until(lambda: session._channel._is_paused)
        assert session.underway
        got = b""
        while b'"through"' not in got[-4096:]:
            got = got[-4096:] + await reader.read(2**16)
        writer.close()


async def test_a_flood_for_nobody_is_read_slowly(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        made.proxy._sweeper.cancel()  # on a busy machine it would come before there is a flood
        slowed = []
        answered = asyncio.ensure_future(raw.call("flood-stdout", accept="application/json"))
        while not answered.done():
            full = [one for one in sessions(made).all if one._is_full]
            slowed += full
            if full:
                _sweep(made)
            await asyncio.sleep(0)
        answer, before = await answered
        assert not before
        assert answer["result"]["content"][0]["text"] == "through"
        assert slowed


async def test_questions_that_nobody_can_answer_are_answered(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        answer, before = await raw.call("ask-flood")
        assert answer["result"]["content"][0]["text"] == "asked"
        # No more than so many wait for the client; the rest have had an error.
        assert len(before) == 256
        (session,) = sessions(made).all
        assert len(session._asked) == 256
        assert await raw.said("cwd")


async def test_one_that_reads_no_more_is_not_written_to_without_end(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "WAITING_BYTES_MAX", 2**20)
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said("never-read") == "now I stop reading"
        big = {"jsonrpc": "2.0", "method": "notifications/x", "params": {"data": "x" * 300_000}}
        for _ in range(12):
            assert (await raw.post(big))[0] == 202
        (session,) = sessions(made).all
        assert session._channel._child.unread_bytes <= 2**20
        assert "does not read what it is sent" in await raw.error("x" * 300_000)


@pytest.mark.parametrize("what", ["lines", "batch"])
async def test_what_is_strange_and_allowed(started: Any, what: str) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        answer, _ = await raw.call(what)
        if what == "lines":
            # What nobody here knows passes, and a carriage return between values ends no line of an event.
            assert answer["result"]["strange"] == {"a": [1, 2]}
            assert answer["more"] is True
        else:
            assert answer["result"] == {"ok": 1}


@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
async def test_nothing_is_left_of_a_session_that_ends(started: Any, sandbox: str) -> None:
    made = await started(str(BAD), "fine", sandbox=sandbox)
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said("grandchild") == "left"
        assert len(alive()) >= 3
        async with raw.delete() as reply:
            assert reply.status == 204
        await until(lambda: not alive())
        assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}))[0] == 404


@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
async def test_one_that_will_not_end_is_killed(started: Any, sandbox: str) -> None:
    made = await started(str(BAD), "stubborn", sandbox=sandbox)
    async with Raw(made.port) as raw:
        await raw.open()
        assert alive()
    made.proxy.pools.close()
    await made.proxy.ended()
    assert not alive()


async def test_no_more_copies_than_the_policy_says(started: Any) -> None:
    made = await started(str(BAD), "fine", children=2)
    async with Raw(made.port) as one, Raw(made.port) as two, Raw(made.port) as three:
        await one.open()
        await two.open()
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
        _, answer, _ = await three.post(message)
        assert "2 copies of files run already" in answer["error"]["message"]
        # One that nobody has used for a while makes room.
        made.ahead_s += 61
        assert await two.said("cwd")
        await three.open()
        assert (await one.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}))[0] == 404
        assert await two.said("cwd")


async def test_one_that_nobody_uses_ends(started: Any) -> None:
    made = await started(str(BAD), "fine", idle_timeout="10m")
    async with Raw(made.port) as raw:
        await raw.open()
        made.ahead_s += 601
        await until(lambda: not alive() and not sessions(made).all)
        assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}))[0] == 404
