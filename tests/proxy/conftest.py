"""Fixtures that start and end the data plane and its upstreams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.harness import Mesh, Upstream
from tests.proxy.peers_h2 import H2Client, H2Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    """Return a function that starts an upstream from a script; it is ended with the test."""
    started: list[Upstream] = []

    async def start(script: Any, **options: Any) -> Upstream:
        one = await Upstream(script, **options).start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.close()


@pytest.fixture
async def mesh(tmp_path: Path, upstream: Any) -> AsyncIterator[Callable[..., Awaitable[Mesh]]]:
    """Return a function that starts a data plane; at its end every ticket must have been settled exactly once."""
    started: list[Mesh] = []

    async def start(document: str, **options: Any) -> Mesh:
        home = tmp_path / str(len(started))
        home.mkdir()
        one = await Mesh(home).start(document, **options)
        started.append(one)
        return one

    yield start
    for one in started:
        await one.close()


@pytest.fixture
async def upstream_h2() -> AsyncIterator[Callable[..., Awaitable[H2Upstream]]]:
    """Return a function that starts an HTTP/2 upstream from a script; it is ended with the test."""
    started: list[H2Upstream] = []

    async def start(script: Any, **options: Any) -> H2Upstream:
        one = await H2Upstream(script, **options).start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.close()


@pytest.fixture
async def h2_client(mesh: Any) -> AsyncIterator[Callable[..., Awaitable[H2Client]]]:
    """Return a function that connects an HTTP/2 caller to a data plane."""
    started: list[H2Client] = []

    async def connect(one: Mesh, **options: Any) -> H2Client:
        client = await H2Client.connect(one.port, **options)
        started.append(client)
        return client

    yield connect
    for client in started:
        client.close()
