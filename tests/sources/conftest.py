"""Fixtures: a catalogue over real sockets, and servers of the official SDKs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.conftest import mesh, upstream
from tests.rpc.conftest import serve
from tests.sources.house import House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["mesh", "serve", "upstream"]


@pytest.fixture
async def house(mesh: Any) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    """Return a function that starts a sidecar with a catalogue; it is ended with the test."""
    started: list[House] = []

    async def start(document: str, **options: Any) -> House:
        started.append(House(await mesh(document), **options).start())
        return started[-1]

    yield start
    for one in started:
        await one.close()
        await one.mesh.idle()
