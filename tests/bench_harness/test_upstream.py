"""The upstream stand-in: what it bills and how it answers, however the bytes arrive."""

import asyncio
import json

import pytest

from bench.load.burst import burst
from bench.load.request import Request
from bench.upstream import bodies
from bench.upstream.http1 import Counters, Upstream, billed_in_full


def test_requests_and_replies_have_the_size_that_the_tables_name() -> None:
    assert len(bodies.chat_request()) == 1300
    assert len(bodies.chat_request(body_bytes=100_000)) == 100_000
    reply = bodies.chat_reply(bodies.USAGE)
    assert len(reply) == 600
    assert json.loads(reply)["usage"] == bodies.USAGE
    assert bodies.grpc_frame()[:5] == b"\0\0\0\x04\0"
    assert len(bodies.grpc_frame()) == 1029


@pytest.mark.parametrize(("with_usage", "more"), [(True, 3), (False, 2)])
def test_a_stream_ends_with_finish_usage_and_done(with_usage: bool, more: int) -> None:
    events = bodies.stream_events(5, with_usage=with_usage)
    assert len(events) == 5 + more
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    usages = [json.loads(event[6:]).get("usage") for event in events[:-1]]
    assert usages[-1] == (bodies.USAGE if with_usage else None)
    assert not any(usages[:-1])


def test_the_dearest_provider_bills_the_whole_cap() -> None:
    body = bodies.chat_request(body_bytes=600, model=bodies.MODEL_BILLED_IN_FULL, cap=77)
    tokens, reply = billed_in_full(body)
    usage = json.loads(reply.partition(b"\r\n\r\n")[2])["usage"]
    assert usage["completion_tokens"] == 77
    assert tokens == usage["total_tokens"] == usage["prompt_tokens"] + 77
    # It may not bill more for the text than one token a byte, the bound that anybody can know.
    assert 0 < usage["prompt_tokens"] < len(body)


@pytest.fixture
async def stand_in():
    counters = Counters()
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(counters), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], counters


def message(body: bytes, *, is_chunked: bool = False, headers: bytes = b"") -> bytes:
    if is_chunked:
        framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        framing = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + headers + framing


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_call_is_answered_once_wherever_its_bytes_are_cut(stand_in, is_chunked: bool) -> None:
    port, counters = stand_in
    body = bodies.chat_request(body_bytes=300)
    data = message(body, is_chunked=is_chunked)
    for cut in (1, 20, data.index(b"\r\n\r\n") + 2, len(data) - 3, len(data) - 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        before = counters.calls
        writer.write(data[:cut])
        await writer.drain()
        writer.write(data[cut:])
        reply = await reader.readexactly(600 + len(b"HTTP/1.1 200 OK\r\n"))
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert counters.calls == before + 1
        writer.close()
        await writer.wait_closed()


async def test_a_stream_arrives_whole_and_in_order(stand_in) -> None:
    port, counters = stand_in
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message(bodies.chat_request(is_stream=True), headers=b"x-bench-stream: 7;0\r\n"))
    seen = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert seen.count(b"data: ") == len(bodies.stream_events(7))
    assert counters.chunks == len(bodies.stream_events(7))
    writer.close()
    await writer.wait_closed()


async def test_a_burst_counts_every_answer(stand_in) -> None:
    port, counters = stand_in
    request = Request(port, bodies.CHAT_PATH, {}, bodies.chat_request())
    assert await burst(request, 20) == {200: 20}
    assert counters.calls == 20
    assert await burst(Request(port, "/nowhere", {}, b""), 3) == {404: 3}
