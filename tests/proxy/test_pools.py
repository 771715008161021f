"""Connections to upstreams: reused, bounded, retired, and never handed to a call when they are no good."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.harness import echo, get, plain_policy, turns, until


async def test_a_connection_is_reused_until_it_was_idle_too_long(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port, ", pool: {idle_timeout: 30s}"))
    await one.fetch(get())
    one.expire(29)
    await one.fetch(get())
    assert len(up.peers) == 1
    one.expire(31)
    await until(lambda: not sum(one.proxy.pools.open_connections().values()))
    await one.fetch(get())
    assert len(up.peers) == 2


async def test_a_connection_that_the_upstream_closed_is_not_used(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply()
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    for _ in range(3):
        assert (await one.fetch(get())).status == 200
        await until(lambda: not sum(one.proxy.pools.open_connections().values()))


async def test_an_upstream_that_says_close_is_believed(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(b"ok", b"Connection: close")
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    for _ in range(2):
        assert (await client.ask(get())).status == 200
    assert len(up.peers) == 2


async def test_connections_and_those_who_wait_are_bounded(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            await until(lambda: go)
            peer.reply(request.target)

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 2, pending: 3}"))
    clients = [await one.connect() for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(get(f"/up/{number}"))
        await until(lambda number=number: len(one.proxy.live) == number + 1 or number > 4)
        await until(lambda number=number: len(up.peers) == min(number + 1, 2))
    refused = [await client.reply() for client in clients[5:]]
    assert {(reply.status, reply.get(b"x-meshd-reason")) for reply in refused} == {(503, b"overloaded")}
    go.append(1)
    assert [(await client.reply()).body for client in clients[:5]] == [b"/%d" % number for number in range(5)]
    assert len(up.peers) == 2


async def test_nobody_waits_for_a_connection_without_end(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 1}, timeouts: {first_byte: 30s, gap: 300s}"))
    first, second = await one.connect(), await one.connect()
    first.send(get("/up/a"))
    await first.reader.readuntil(b"\r\n\r\n")
    second.send(get("/up/b"))
    await until(lambda: len(one.proxy.live) == 2)
    one.expire(29)
    assert len(one.proxy.live) == 2
    one.expire(2)
    assert (await second.reply()).status == 503


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_reload_retires_what_changed(mesh: Any, upstream: Any, is_busy: bool) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        if request.target == b"/slow":
            await until(lambda: go)
        peer.reply(request.target)
        closed.append(await peer.closed())

    go: list[int] = []
    closed: list[bytes] = []
    up = await upstream(script)
    new = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    if is_busy:
        client.send(get("/up/slow"))
        await until(lambda: up.received)
    else:
        await client.ask(get("/up/fast"))
    one.proxy.swap(one.load(plain_policy(new.port)))
    if is_busy:
        await turns()
        assert not closed
        go.append(1)
        assert (await client.reply()).body == b"/slow"
    await until(lambda: closed)
    assert (await client.ask(get("/up/n"))).body == b"GET /n\n"
    assert len(up.peers) == 1


async def test_a_reload_keeps_what_did_not_change(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    await one.fetch(get())
    one.proxy.swap(one.load(plain_policy(up.port) + "limits: {hops: 3}\n"))
    await one.fetch(get())
    assert len(up.peers) == 1


async def test_those_who_wait_are_served_after_a_reload(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            await until(lambda: go)
            peer.reply(request.target)

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 1}"))
    clients = [await one.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(get(f"/up/{number}"))
        await until(lambda number=number: len(one.proxy.live) == number + 1)
    await until(lambda: up.received)
    one.proxy.swap(one.load("upstreams: {}\n"))
    go.append(1)
    assert [(await client.reply()).body for client in clients] == [b"/0", b"/1", b"/2"]
    assert (await one.fetch(get())).status == 404


async def test_a_key_that_is_not_there_is_said_to_be_missing_where(
    mesh: Any, upstream: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOBODY_SET_THIS", raising=False)
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port, ", key: {env: NOBODY_SET_THIS}"))
    assert (await one.fetch(get())).status == 200
    assert "upstream up has no key in NOBODY_SET_THIS: its calls go out with the agent's own" in caplog.text
