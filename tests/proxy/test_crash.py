"""A fault of meshd itself, wherever it strikes: its call ends at once and in the open, and no other call is touched."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from meshd.outcome import Fault, Verdict
from tests.ports import free_port
from tests.proxy.harness import CHAT_STREAM, Record, echo, get, llm_policy, plain_policy, post, turns
from tests.proxy.messages import Incomplete
from tests.proxy.peers_h2 import echo_h2

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'


class Bug(Exception):
    """What nobody foresaw."""


def raising(*_: Any) -> Any:
    raise Bug


class FaultyHead(Record):
    on_head = raising


class FaultyEvent(Record):
    """Takes one event as it is, and breaks at the second."""

    seen = 0

    def on_event(self, event: Any) -> Any:
        self.seen += 1
        if self.seen > 1:
            raise Bug
        return event


def take(ticket: Callable[[Call], Record], records: list[Record]) -> Callable[[Call], Record]:
    def admit(call: Call) -> Record:
        record = ticket(call)
        records.append(record)
        return record

    return admit


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """Every fault is in the log, with its traceback."""
    with caplog.at_level(logging.ERROR, "meshd.proxy"):
        yield
    faults = [record for record in caplog.get_records("call") if record.exc_info and record.exc_info[0] is Bug]
    assert faults
    assert all("a fault of meshd" in record.getMessage() for record in faults)


@pytest.fixture(params=["h1", "h2"])
def either(request: pytest.FixtureRequest, mesh: Any, upstream: Any, upstream_h2: Any, h2_client: Any) -> Any:
    """Return a function that gives a mesh with an echo behind it, and a function that asks it, over one wire."""

    async def start() -> tuple[Any, Callable[..., Any]]:
        if request.param == "h1":
            one = await mesh(plain_policy((await upstream(echo)).port))

            async def ask() -> int:
                return int((await one.fetch(get())).status)

        else:
            one = await mesh(plain_policy((await upstream_h2(echo_h2)).port, ", protocol: h2"))
            client = await h2_client(one)

            async def ask() -> int:
                return int((await client.ask("/up/x")).status)

        return one, ask

    return start


@pytest.mark.parametrize("scope", ["per_call", "per_attempt"])
async def test_in_a_filter(either: Any, scope: str) -> None:
    one, ask = await either()
    getattr(one, scope).on_admit = raising
    assert await ask() == 500
    await one.idle()
    getattr(one, scope).on_admit = None
    assert await ask() == 200


async def test_at_the_replys_head(either: Any) -> None:
    one, ask = await either()
    one.per_attempt.on_admit = take(FaultyHead, one.attempts)
    assert await ask() == 500
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict, outcome.is_forwarded) == (Fault.INTERNAL, Verdict.NEUTRAL, True)
    one.per_attempt.on_admit = None
    assert await ask() == 200


async def test_after_a_wait(either: Any) -> None:
    one, ask = await either()
    gate = one.per_call.hold()
    one.per_attempt.on_admit = raising
    gate.set_result(None)
    assert await ask() == 500


async def test_in_the_middle_of_a_stream_it_ends_broken(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        await turns()
        peer.send(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        await peer.closed()

    one = await mesh(llm_policy((await upstream(script)).port))
    one.per_attempt.on_admit = take(FaultyEvent, one.attempts)
    with pytest.raises(Incomplete):
        await one.fetch(post("/llm/v1/chat/completions", CHAT_STREAM))
    await one.idle()
    assert one.attempts[0].outcome.fault is Fault.INTERNAL


class FaultyFallback:
    next = raising


@pytest.mark.uncompiled
async def test_where_the_upstream_cannot_be_reached(mesh: Any) -> None:
    one = await mesh(plain_policy(free_port()))
    one.proxy.chain.fallback = FaultyFallback()
    assert (await one.fetch(get())).status == 500


@pytest.mark.uncompiled
async def test_even_where_the_end_itself_is_broken(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    one.per_call.on_admit = raising
    one.proxy.telemetry.ended = raising
    client = await one.connect()
    client.send(get())
    await client.rest()
    await one.idle()
