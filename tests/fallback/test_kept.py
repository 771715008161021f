"""Answers that are kept, over real sockets: what can be read again, and by whom."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from tests.fallback.test_scripted import JSON, PATH, SERVED, document, script
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, Peer, get, post

CACHED = "{cached: 1h}"


def tool(port: int) -> str:
    return (
        f'upstreams:\n  tool: {{url: "http://127.0.0.1:{port}", kind: tool}}\n'
        f"rules:\n  - {{match: {{}}, retry: {{attempts: 0}}, fallback: {{to: [{CACHED}]}}}}\n"
    )


DOWN = (b"503 Service Unavailable", b"down")


async def test_a_kept_answer_that_was_compressed_can_be_read(mesh: Any, upstream: Any) -> None:
    async def compressed(peer: Peer) -> None:
        await peer.request()
        peer.reply(gzip.compress(CHAT_REPLY), JSON, b"content-encoding: gzip")
        await peer.request()
        peer.reply(b"", status=DOWN[0])

    first = await upstream(compressed)
    one = await mesh(document(first.port, free_port(), CACHED))
    assert (await one.fetch(post(PATH, CHAT))).body == CHAT_REPLY
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.get(SERVED), reply.get(b"content-encoding"), reply.body) == (b"cache", None, CHAT_REPLY)


@pytest.mark.parametrize(
    ("status", "fields", "asked"),
    [
        (b"206 Partial Content", (b"content-range: bytes 0-1/9",), ()),
        (b"200 OK", (b"vary: *",), ()),
        (b"200 OK", (b"cache-control: No-Store",), ()),
        (b"200 OK", (), ("x-user: 1",)),
        (b"200 OK", (), ("private-token: a",)),
        (b"200 OK", (), ("range: bytes=0-1",)),
    ],
)
async def test_what_is_not_the_answer_of_another_request_is_not_given_to_it(
    mesh: Any, upstream: Any, status: bytes, fields: tuple[bytes, ...], asked: tuple[str, ...]
) -> None:
    async def serves(peer: Peer) -> None:
        await peer.request()
        peer.reply(b"of one", *fields, status=status)
        await peer.request()
        peer.reply(b"down", status=DOWN[0])

    up = await upstream(serves)
    one = await mesh(tool(up.port))
    assert (await one.fetch(get("/tool/x", *asked))).body == b"of one"
    reply = await one.fetch(get("/tool/x", *(field.replace("1", "2").replace(": a", ": b") for field in asked)))
    assert (reply.status, reply.get(SERVED)) == (503, None)


async def test_an_answer_without_its_body_is_not_kept(mesh: Any, upstream: Any) -> None:
    async def serves(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n")
        await peer.request()
        peer.send(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\n")

    up = await upstream(serves)
    one = await mesh(tool(up.port))
    assert (await one.fetch(get("/tool/x", method="HEAD"))).get(b"content-length") == b"55"
    assert (await one.fetch(get("/tool/x", method="HEAD"))).status == 503


async def test_the_same_request_with_other_names_of_the_call_has_it(mesh: Any, upstream: Any) -> None:
    up = await upstream(script((b"200 OK", b"kept"), DOWN))
    one = await mesh(tool(up.port))
    names = (
        "x-request-id: %d",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333%d-01",
        "x-b3-spanid: %d",
    )
    for number in (1, 2):
        reply = await one.fetch(get("/tool/x", *(name % number for name in names)))
        assert reply.body == b"kept"
    assert reply.get(SERVED) == b"cache"
