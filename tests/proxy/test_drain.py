"""The end: what runs is finished, nothing new is taken, and what does not end is ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.outcome import Fault
from tests.proxy.harness import get, plain_policy, turns, until

pytestmark = pytest.mark.both_loops


async def test_what_runs_is_finished_and_idle_connections_close(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            await until(lambda: go)
            peer.reply(b"done")

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    busy, idle = await one.connect(), await one.connect()
    await idle.ask(get("/nobody"))
    busy.send(get())
    await until(lambda: up.received)
    one.stop_listening()
    draining = asyncio.ensure_future(one.proxy.drain(30))
    assert await idle.rest() == b""
    go.append(1)
    reply = await busy.reply()
    assert (reply.body, reply.get(b"connection")) == (b"done", b"close")
    assert await busy.rest() == b""
    assert await draining is True
    with pytest.raises(ConnectionRefusedError):
        await one.connect()


async def test_what_does_not_end_is_ended(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        if request.target == b"/half":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    mute, half = await one.connect(), await one.connect()
    mute.send(get("/up/mute"))
    half.send(get("/up/half"))
    await half.reader.readuntil(b"half")
    await until(lambda: b"/mute" in up.received)
    assert await one.proxy.drain(0) is False
    assert (await mute.reply()).get(b"x-meshd-reason") == b"draining"
    assert await half.rest() == b""
    assert {record.outcome.fault for record in one.attempts} == {Fault.SHUTDOWN}


async def test_a_call_that_waits_for_a_filter_is_ended_too(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    one.per_attempt.hold()
    client = await one.connect()
    client.send(get())
    await until(lambda: one.proxy.live and one.per_attempt.on_admit is None)
    await turns()
    await one.proxy.drain(0)
    assert (await client.reply()).get(b"x-meshd-reason") == b"draining"
    assert up.received == b""


async def test_pipelined_calls_behind_the_last_are_not_begun(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            await until(lambda: go)
            peer.reply(request.target)

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/a") + get("/up/b"))
    await until(lambda: up.received)
    draining = asyncio.ensure_future(one.proxy.drain(30))
    await turns()
    go.append(1)
    assert (await client.reply()).body == b"/a"
    assert await client.rest() == b""
    assert await draining is True
    assert b"/b" not in up.received
