"""Fixtures: servers of the official SDKs, with a data plane before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.conftest import mesh, upstream
from tests.rpc.servers import Echo, Server, Tools, agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["echo", "mesh", "serve", "tools", "upstream"]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Any], Awaitable[int]]]:
    """Return a function that serves an application and returns its port."""
    started: list[Server] = []

    async def start(app: Any) -> int:
        started.append(await Server(app).start())
        return started[-1].port

    yield start
    for one in started:
        await one.close()


@pytest.fixture
def tools() -> Tools:
    return Tools()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def agent_port(echo: Echo, serve: Any) -> int:
    port: int = await serve(agent(echo))
    return port
