"""Events over plain HTTP: an agent that has curl and nothing else takes part."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from meshd.api.eventing import Eventing
from meshd.engines.bus_memory import MemoryBus
from tests.api.house import House, house, until
from tests.api.test_events import POLICY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CE = {"ce-specversion": "1.0", "ce-id": "e1", "ce-source": "ann", "ce-type": "task.completed"}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        made.mesh.bus = MemoryBus()
        yield made
        await made.mesh.bus.close()


async def post(one: House, path: str, body: Any = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"http://{one.address}/v1/events/{path}", data=body, headers=headers or {}) as reply,
    ):
        return reply.status, await reply.json(content_type=None)


@asynccontextmanager
async def stream(one: House, path: str) -> AsyncIterator[Any]:
    """Yield a function that reads the next event."""
    async with aiohttp.ClientSession() as client, client.get(f"http://{one.address}/v1/events/{path}") as reply:
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"

        async def following() -> Any:
            fields: dict[str, str] = {}
            async with asyncio.timeout(20):
                async for line in reply.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name:
                        fields[name] = value
                    elif "data" in fields:
                        assert fields["event"] in ("event", "error")
                        return json.loads(fields["data"])
                    else:
                        fields.clear()
            raise AssertionError("the stream has ended")

        yield following


async def test_publish_take_and_settle_with_nothing_but_http(one: House) -> None:
    context = await one.open("w")
    sent = {
        **CE,
        "ce-subject": "bees%20%E2%82%AC",
        "content-type": "application/json",
        "x-meshd-context": context.token,
    }
    async with stream(one, "task.*?agent=bob&credit=1") as following:
        assert await post(one, "task.done", b'{"q": 1}', sent) == (
            200,
            {"id": "e1", "sequence": "00000000000000000001", "is_duplicate": False},
        )
        assert (await post(one, "task.done", b"", sent))[1]["is_duplicate"]
        handed = await following()
        event = handed["event"]
        assert event["data"] == {"q": 1}
        assert (event["subject"], event["correlationid"], event["source"]) == ("bees €", "w", "ann")
        assert (handed["context"]["hops"], handed["context"]["path"], handed["attempt"]) == (1, ["ann"], 1)
        # What is published under its token names it as its cause.
        caused = {**CE, "ce-id": "e2", "ce-source": "bob", "x-meshd-context": handed["context"]["token"]}
        assert (await post(one, "task.next", b"", caused))[0] == 200
        asked = json.dumps({"delivery": handed["delivery"], "verdict": "success"})
        assert await post(one, "task.*/settle", asked) == (200, {"is_counted": True})
        assert await post(one, "task.*/settle", asked) == (200, {"is_counted": False})
        assert (await following())["event"]["causationid"] == "e1"


@pytest.mark.parametrize(
    ("published", "data"),
    [
        (b'{"id":12345678901234567890.123456789}', b'{"id":12345678901234567890.123456789}'),
        (b"[1.10000000000000000000001, 1E5, -0.0]", b"[1.10000000000000000000001,1E5,-0.0]"),
        (b'{"a":1,"a":2}', b'{"a":1,"a":2}'),
        (b'\n{\r\n"a": "\\u20ac \xe2\x80\xa8"}\n', b'{"a":"\\u20ac \xe2\x80\xa8"}'),
    ],
)
async def test_json_data_is_handed_out_as_it_was_written(one: House, published: bytes, data: bytes) -> None:
    headers = {**CE, "content-type": "application/json"}
    assert (await post(one, "task.completed", published, headers))[0] == 200
    address = f"http://{one.address}/v1/events/task.completed?group=g&starts=oldest"
    async with aiohttp.ClientSession() as client, client.get(address) as reply, asyncio.timeout(20):
        async for line in reply.content:
            if line.startswith(b"data: "):
                assert b',"data":' + data + b"}" in line
                break


async def test_an_extension_called_topic_is_not_taken_for_the_topic(one: House) -> None:
    assert (await post(one, "task.completed", b"1", {**CE, "ce-topic": "order.paid"}))[0] == 200
    (kept,) = await Eventing(one.mesh).kept(">", 0, 10)
    assert kept["topic"] == "task.completed"


async def test_retry_and_drop_are_said_over_http(one: House) -> None:
    await post(one, "t", b"x", {**CE, "content-type": "text/plain"})
    async with stream(one, "t?group=g&starts=oldest") as following:
        first = await following()
        assert first["event"]["data"] == "x"
        asked = {"delivery": first["delivery"], "verdict": "retry", "retry_after": "0s", "reason": "busy"}
        assert (await post(one, "t/settle", json.dumps(asked)))[1] == {"is_counted": True}
        second = await following()
        assert second["attempt"] == 2
        await post(one, "t/settle", json.dumps({"delivery": second["delivery"], "verdict": "drop"}))
    (position,) = await one.mesh.bus.positions()
    assert (position.group, position.dropped) == ("g", 1)


async def test_a_stream_that_breaks_gives_its_events_to_others_marked(one: House) -> None:
    await post(one, "t", b"", CE)
    async with stream(one, "t?group=g&starts=oldest") as following:
        await following()
    await until(lambda: not one.mesh.events._takings)
    async with stream(one, "t?group=g") as following:
        again = await following()
        assert (again["attempt"], again["may_have_been_handled"]) == (2, True)


async def test_structured_and_batched_events_are_published(one: House) -> None:
    event = {"specversion": "1.0", "id": "s", "source": "ann", "type": "x", "data": {"a": [1]}}
    kind = {"content-type": "application/cloudevents+json"}
    assert (await post(one, "t", json.dumps(event), kind))[0] == 200
    batch = json.dumps([{**event, "id": "b1"}, {**event, "id": "s"}])
    status, said = await post(one, "t", batch, {"content-type": "application/cloudevents-batch+json"})
    assert status == 200
    assert [one["is_duplicate"] for one in said["events"]] == [False, True]
    kept = await one.mesh.bus.kept("t")
    assert [(one.id, one.data) for one in kept] == [("s", b'{"a":[1]}'), ("b1", b'{"a":[1]}')]
    bad = json.dumps([{**event, "id": "b2"}, {**event, "id": "b3", "source": "eve"}])
    status, said = await post(one, "t", bad, {"content-type": "application/cloudevents-batch+json"})
    assert (status, said["details"][0]["debug"]["reason"]) == (400, "MALFORMED")
    assert len(await one.mesh.bus.kept("t")) == 2, "a batch is kept whole or not at all"


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason", "words"),
    [
        ("..%2F..%2Fx", CE, 400, "MALFORMED", "topic"),
        ("a/b", CE, 400, "MALFORMED", "topic"),
        ("", CE, 400, "MALFORMED", "topic"),
        ("t", {}, 400, "MALFORMED", "ce-specversion: is missing"),
        ("t", {**CE, "ce-specversion": "3.0"}, 400, "MALFORMED", "'3.0' is not read here"),
        ("t", {**CE, "ce-source": "eve"}, 400, "MALFORMED", "event.source"),
        ("t", {**CE, "ce-data": "x"}, 400, "MALFORMED", "extensions: data"),
        ("t", {**CE, "x-meshd-context": "nonsense"}, 403, "CONTEXT_INVALID", "does not verify"),
        ("t?agent=eve", CE, 403, "NOT_ALLOWED", "No agent eve"),
        ("t?who=eve", CE, 400, "MALFORMED", "'who'"),
        ("t", {**CE, "content-type": "application/cloudevents+json"}, 400, "MALFORMED", "is not JSON"),
        ("t", {**CE, "content-encoding": "gzip"}, 400, "MALFORMED", "'gzip' is not read here"),
        ("t", {**CE, "ce-id": "a%0Ab"}, 400, "MALFORMED", "ce-id: holds U+000A"),
        ("t", {**CE, "ce-source": "ann/a b"}, 400, "MALFORMED", "ce-source: 'ann/a b' is no URI"),
        ("t", {**CE, "content-type": "json"}, 400, "MALFORMED", "'json' is no media type"),
    ],
)
async def test_what_may_not_be_published_is_refused(
    one: House, path: str, headers: dict[str, str], status: int, reason: str, words: str
) -> None:
    got, said = await post(one, path, b"", headers)
    assert (got, said["details"][0]["debug"]["reason"]) == (status, reason)
    assert words in said["message"]
    assert await one.mesh.bus.topics() == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"id": ""}, "event[1].id: is missing"),
        ({"id": "\n"}, "event[1].id: holds U+000A"),
        ({"source": "eve"}, "event[1].source: empty, ann, or"),
        ({"datacontenttype": "json"}, "event[1].datacontenttype: 'json' is no media type"),
        ({"tone": "\n"}, "event[1].extensions: holds U+000A"),
        ({"data": "x" * 2**20}, "event[1].data: is longer than"),
        ({"expirytime": "soon"}, "event[1].expirytime: 'soon'"),
    ],
)
async def test_the_bad_event_of_a_batch_is_named_and_none_is_kept(one: House, bad: dict[str, str], words: str) -> None:
    event = {"specversion": "1.0", "id": "s", "source": "ann", "type": "x"}
    kind = {"content-type": "application/cloudevents-batch+json"}
    status, said = await post(one, "t", json.dumps([event, {**event, "id": "2", **bad}]), kind)
    assert status == 400
    assert said["message"].startswith(words)
    assert await one.mesh.bus.topics() == []


async def test_a_hundred_megabytes_are_refused_before_they_are_read(one: House) -> None:
    reader, writer = await one.connect()
    head = "POST /v1/events/t HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 104857600\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in CE.items())
    writer.write(head.encode() + b"\r\n")
    piece = bytes(2**16)
    try:
        for _ in range(80):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    answer = await reader.readuntil(b"\r\n")
    assert b" 413 " in answer
    writer.close()
    big = bytes(2**20 + 1)
    status, said = await post(one, "t", big, CE)
    assert (status, said["message"].partition(":")[0]) == (400, "data")
    assert await one.mesh.bus.topics() == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("..%2F..%2Fx", 400, "topic"),
        ("a%0Ab", 400, "topic"),
        ("t?group=a%20b", 400, "group"),
        ("t?credit=many", 400, "credit"),
        ("t?credit=99999", 400, "credit"),
        ("t?credit=1&credit=2", 400, "twice"),
        ("t?credit=0", 400, "1 or more"),
        ("t?starts_after=", 400, "'starts_after' is empty"),
        ("t?starts=then", 400, "starts"),
        ("t?starts_at=yesterday", 400, "starts"),
        ("t?starts_after=x", 400, "starts_after"),
        ("t?handling_time=1ms&agent=bob", 400, "handling"),
        ("t?agent=eve", 403, "No agent eve"),
    ],
)
async def test_a_subscription_that_is_none_is_refused(one: House, path: str, status: int, words: str) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"http://{one.address}/v1/events/{path}") as reply:
        said = await reply.json()
        assert reply.status == status
        assert words in said["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"7", 400),
        (b'{"delivery": "x"}', 400),
        (b'{"delivery": "x", "verdict": "maybe"}', 400),
        (b'{"delivery": 7, "verdict": "drop"}', 400),
        (b'{"delivery": "x", "verdict": "drop", "more": 1}', 400),
        (b'{"delivery": "x", "verdict": "retry", "retry_after": "soon"}', 400),
        (b'{"delivery": "x.1", "verdict": "drop"}', 404),
    ],
)
async def test_a_verdict_that_is_none_is_refused(one: House, body: bytes, status: int) -> None:
    assert (await post(one, "t/settle", body))[0] == status


async def test_no_page_may_publish(one: House) -> None:
    status, said = await post(one, "t", b"", {**CE, "origin": "https://example.com"})
    assert (status, said["code"]) == (403, "permission_denied")
    assert await one.mesh.bus.topics() == []
