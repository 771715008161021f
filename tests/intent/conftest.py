"""Fixtures: a sidecar with a catalogue, and agents that say who they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.intent.agents import Agents
from tests.proxy.conftest import mesh, upstream, upstream_h2
from tests.sources.conftest import house

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["house", "mesh", "upstream", "upstream_h2"]


@pytest.fixture
def agents(house: Any, upstream: Any) -> Callable[..., Awaitable[Agents]]:
    """Return a function from what is said of agents to a sidecar before them."""

    async def start(said: dict[str, str], rest: str = "", **scripts: Any) -> Agents:
        return await Agents(house, upstream).start(said, rest, **scripts)

    return start
