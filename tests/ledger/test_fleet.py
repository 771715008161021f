"""A slice of the random schedules of whole ledgers, with fixed seeds."""

from __future__ import annotations

import pytest

from tests.ledger import fleet


@pytest.mark.parametrize("seed", range(1, 41))
async def test_nothing_is_overspent_and_nothing_lost(seed: int) -> None:
    assert await fleet.run(seed) == ""
