"""The shop of the demo: what its books say is what was carried out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from demo.shop import Shop, start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def shop() -> AsyncIterator[tuple[str, str]]:
    """Return the addresses of a shop and of its books."""
    runners, ports = await start(Shop())
    yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/books"
    for runner in runners:
        await runner.cleanup()


async def test_it_carries_out_whatever_comes_as_often_as_it_comes(shop: tuple[str, str]) -> None:
    url, books = shop
    confirmations = set()
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            headers = {"idempotency-key": "k"}
            async with http.post(f"{url}/orders", json={"item": "lamp"}, headers=headers) as reply:
                assert reply.status == 201
                confirmations.add((await reply.json())["confirmation"])
        async with http.delete(f"{url}/customers/jones") as reply:
            assert reply.status == 200
        async with http.get(books) as reply:
            assert await reply.json() == {"orders": ["lamp", "lamp"], "deleted": ["jones"]}
    assert len(confirmations) == 2


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff"])
async def test_nonsense_is_refused_and_orders_nothing(shop: tuple[str, str], body: bytes) -> None:
    url, books = shop
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/orders", data=body) as reply:
            assert reply.status == 400
        async with http.get(books) as reply:
            assert await reply.json() == {"orders": [], "deleted": []}
