"""Whose a message is: sessions by id, streams that listen, and everything that a client may get wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from meshd.bridge.sessions import DELAY_S_MAX, Backoff
from tests.bridge.conftest import BAD, sessions
from tests.bridge.raw import Raw
from tests.proxy.harness import turns, until

PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


def test_a_server_that_fails_is_left_alone_longer_and_longer() -> None:
    backoff = Backoff()
    waited = []
    for _ in range(12):
        backoff.failed(100.0)
        waited.append(max(backoff.until_s - 100.0, 0.0))
    assert waited == [0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert waited[-1] == DELAY_S_MAX
    backoff.works()
    backoff.failed(100.0)
    assert backoff.until_s == 0


async def test_an_id_that_is_not_ones_own_opens_nothing(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as one, Raw(made.port) as other:
        await one.open()
        (session,) = sessions(made).all
        assert len(one.session) >= 32
        for wrong in ("", "x", one.session[:-1], one.session + "x", "../" + one.session):
            other.session = wrong or " "
            status, answer, _ = await other.post(PING)
            assert (status, answer["id"]) == (404, 7)
        other.session = one.session
        assert (await other.post(PING))[0] == 200
        # The same id from another agent: as if there were none.
        session.agent = "another"
        assert (await other.post(PING))[0] == 404
        async with other.get() as reply:
            assert reply.status == 404
        async with other.delete() as reply:
            assert reply.status == 404
        assert sessions(made).all == [session]


async def test_what_names_no_call_goes_to_who_listens(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        (session,) = sessions(made).all
        note = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        # It may come before its client listens: then it is kept.
        session.received(json.dumps(note).encode())
        async with raw.get() as reply:
            assert reply.status == 200
            assert reply.content_type == "text/event-stream"
            assert json.loads((await reply.content.readuntil(b"\n\n")).split(b"data: ")[1]) == note
            asked = {"jsonrpc": "2.0", "id": "s1", "method": "roots/list"}
            session.received(json.dumps(asked).encode())
            assert json.loads((await reply.content.readuntil(b"\n\n")).split(b"data: ")[1]) == asked
            assert list(session._asked) == [b'"s1"']
            # An answer to what nobody has asked goes nowhere; to what was asked it goes once.
            for id in ("s2", "s1"):
                assert (await raw.post({"jsonrpc": "2.0", "id": id, "result": {}}))[0] == 202
            assert not session._asked
            made.ahead_s += 31
            assert await reply.content.readuntil(b"\n\n") == b": \n\n"
            # A second stream takes the first one's place.
            async with raw.get() as second:
                assert await reply.content.read() == b""
                session.received(json.dumps(note).encode())
                assert b"list_changed" in await second.content.readuntil(b"\n\n")
        await until(lambda: session.listener is None)


async def test_a_listener_does_not_hold_up_the_drain(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        async with raw.get() as reply:
            assert await made.proxy.drain(30)
            assert await reply.content.read() == b""


async def test_a_reload_ends_what_has_changed_and_nothing_else(started: Any) -> None:
    made = await started(str(BAD), "fine")
    text = (made.home / "policy.yaml").read_text()
    async with Raw(made.port) as raw:
        await raw.open()
        made.proxy.swap(made.load(text + "limits: {hops: 3}\n"))
        assert await raw.said("cwd")
        made.proxy.swap(made.load(text.replace('"fine"', '"other"')))
        assert (await raw.post(PING))[0] == 404
        await made.proxy.ended()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "HEAD"])
async def test_other_methods(started: Any, method: str) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw, raw._http.request(method, raw.url) as reply:
        assert reply.status == 405


async def test_streams_and_ends_of_nothing(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        async with raw.get() as reply:
            assert (reply.status, reply.headers["allow"]) == (405, "POST, GET, DELETE")
        async with raw.delete() as reply:
            assert reply.status == 405
        await raw.open()
        async with raw.get(accept="application/json") as reply:
            assert reply.status == 406


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"jsonrpc":"2.0","id":1}', b'{"id":1,"method":"ping"}'])
async def test_nonsense_never_reaches_the_server(started: Any, body: bytes) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        status, answer, _ = await raw.post(body)
        # With 200 where its id is known: a client would take anything else for the end of its session.
        assert status == (200 if b'"id":1' in body else 400)
        assert answer["error"]["data"]["reason"] == "malformed"
        assert not sessions(made).all


async def test_notifications_start_nothing(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        for message in ({"method": "notifications/x"}, {"id": 1, "result": {}}):
            assert (await raw.post({"jsonrpc": "2.0"} | message))[0] == 202
        assert not sessions(made).running


async def test_a_message_of_many_lines_arrives_as_one(started: Any) -> None:
    made = await started(str(BAD), "echo")
    async with Raw(made.port) as raw:
        await raw.open()
        text = '{\n "jsonrpc": "2.0",\r\n "id": "é\\n",\n "method": "tools/call",\n '
        text += '"params": {"name": "x", "arguments": {},\n "strange": [1,\n 2]}, "further": null}'
        status, answer, _ = await raw.post(text.encode())
        assert status == 200
        assert answer["id"] == "é\n"
        # The server has had a number of ours, and everything else as it came.
        assert isinstance(answer["result"]["id"], int)
        assert answer["result"]["params"]["strange"] == [1, 2]
        assert answer["result"]["further"] is None


async def test_a_client_that_hangs_up_is_told_to_the_server(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        (session,) = sessions(made).all
        sent: list[bytes] = []
        send = session._channel.send
        session._channel.send = lambda message, headers, failed: sent.append(message) or send(message, headers, failed)
        asked = asyncio.ensure_future(raw.said("hang"))
        await until(lambda: session.underway)
        (number,) = session.underway
        asked.cancel()
        await until(lambda: not session.underway)
        await turns()
        assert json.loads(sent[-1])["method"] == "notifications/cancelled"
        assert json.loads(sent[-1])["params"]["requestId"] == number


async def test_what_is_said_at_the_beginning_is_bounded(started: Any) -> None:
    made = await started(str(BAD), "fine")
    params = {"protocolVersion": "2025-06-18", "capabilities": {"x": "y" * 70_000}, "clientInfo": {}}
    async with Raw(made.port) as raw:
        status, answer, _ = await raw.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        assert (status, answer["error"]["code"]) == (200, -32602)
        assert sessions(made).all == []
        await raw.open()
        assert await raw.said("cwd")


async def test_a_session_that_its_client_ends_says_nothing_of_the_server(started: Any) -> None:
    made = await started(str(BAD), "fine")
    async with Raw(made.port) as raw:
        await raw.open()
        calling = asyncio.ensure_future(raw.call("hang"))
        await until(lambda: any(one.underway for one in sessions(made).all))
        async with raw.delete() as reply:
            assert reply.status == 204
        answer, _ = await calling
    assert answer["error"]["message"] == "Its client has ended the session"
    assert {attempt.outcome.verdict.value for attempt in made.attempts} == {"success"}
