"""A model behind an endpoint: what a real server answers is taken where it is vectors, and refused where it is not."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from meshd.embedding.endpoint import Endpoint
from meshd.embedding.port import TEXTS_MAX, EmbeddingFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@asynccontextmanager
async def served(answer: Callable[[dict[str, Any]], Any]) -> AsyncIterator[tuple[Endpoint, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    async def embeddings(request: web.Request) -> web.Response:
        asked.append(await request.json())
        said = answer(asked[-1])
        return web.Response(body=said) if isinstance(said, bytes) else web.json_response(said)

    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]

    async def ask(body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{host}:{port}/v1/embeddings", data=body, headers=headers) as reply,
        ):
            return await reply.read()

    try:
        yield Endpoint(ask, "small"), asked
    finally:
        await runner.cleanup()


def of(vectors: list[list[float]]) -> dict[str, Any]:
    return {"object": "list", "data": [{"index": at, "embedding": one} for at, one in enumerate(vectors)]}


async def test_texts_become_vectors_in_their_order():
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        said = of([[float(len(text)), 1.0] for text in body["input"]])
        return {**said, "data": said["data"][::-1]}

    async with served(answer) as (endpoint, asked):
        assert await endpoint.embed(["a", "bbb", ""]) == [[1.0, 1.0], [3.0, 1.0], [1.0, 1.0]]
        assert asked[0]["model"] == "small"
        assert asked[0]["input"] == ["a", "bbb", " "]
        many = await endpoint.embed(["x"] * (TEXTS_MAX + 1))
        assert len(many) == TEXTS_MAX + 1
        assert [len(one["input"]) for one in asked[1:]] == [TEXTS_MAX, 1]
        assert len((await endpoint.embed(["y" * 1_000_000]))[0]) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{", b"[]", b"[" * 100_000, {"data": []}, {"data": "x"}, of([[1.0], [2.0]]), of([[]]),
        {"data": [{"index": 0, "embedding": "AAAA"}]}, {"data": [{"index": 0, "embedding": [None]}]},
        b'{"data": [{"embedding": [1e999]}]}', {"error": {"message": "no such model"}},
    ],
    ids=range(12),
)  # fmt: skip
async def test_what_is_no_vector_is_refused(answer):
    async with served(lambda _: answer) as (endpoint, _):
        with pytest.raises(EmbeddingFailed):
            await endpoint.embed(["one"])


async def test_a_server_that_is_not_there_is_a_failure_with_words():
    async def ask(body: bytes) -> bytes:
        async with aiohttp.ClientSession() as session, session.post("http://127.0.0.1:9/", data=body) as reply:
            return await reply.read()

    with pytest.raises(EmbeddingFailed, match="embeddings endpoint"):
        await Endpoint(ask, "small").embed(["one"])
