"""Fixtures: the sample agent, and a data plane before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.a2a.sample_agent import SampleAgent, Worker
from tests.proxy.conftest import mesh, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["mesh", "upstream"]


@pytest.fixture
async def agent() -> AsyncIterator[Any]:
    made = await SampleAgent(Worker()).start()
    yield made
    await made.close()
