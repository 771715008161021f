"""Fixtures that start and end a data plane with the session service beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.session_peer import Door
from tests.proxy.conftest import mesh, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["mesh", "upstream"]


@pytest.fixture
async def door(mesh: Any) -> AsyncIterator[Callable[..., Awaitable[Door]]]:
    """Return a function from a policy to a running session service."""
    started: list[Door] = []

    async def start(document: str, bus: Any = None, **options: Any) -> Door:
        one = await Door(await mesh(document, **options), bus).start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.close()
