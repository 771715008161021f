"""Real sidecars, official SDKs, and no word from the agent: its calls are charged to whom they are for, or to nobody.

`tests.correlation.measure` does the same at length; here are as many runs as show that the parts work together.
"""

from __future__ import annotations

import pytest

from tests.correlation.agent import Plan
from tests.correlation.measure import address, mixed
from tests.correlation.world import measure, runs_of


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
async def test_interleaved_runs_are_told_apart(api: str) -> None:
    runs = runs_of(24, 3, lambda dice, number: Plan(**{**vars(mixed(dice, number)), "api": api, "is_pruned": False}))
    score = await measure(runs, 8, alone=4)
    assert (score.is_broken, dict(score.wrong)) == ([], {})
    assert score.calls > 60
    assert score.recall >= 0.95
    assert score.right["relayed"] > score.right["quoted"] > 0


async def test_runs_that_cannot_be_told_apart_are_charged_to_nobody() -> None:
    score = await measure(runs_of(16, 3, mixed, same=1.0), 16, deterministic=1.0)
    assert (score.is_broken, dict(score.wrong)) == ([], {})
    assert score.missed > 0


async def test_an_address_for_each_run_is_never_wrong() -> None:
    score = await measure(runs_of(16, 3, mixed, same=0.5), 8, addressed=address)
    assert (score.is_broken, dict(score.wrong), score.missed) == ([], {}, 0)
    assert dict(score.right) == {"run_address": score.calls}


async def test_nothing_is_inferred_where_the_policy_forbids_it() -> None:
    score = await measure(runs_of(4, 3, mixed), 1, infers=False)
    assert (score.is_broken, score.right.total(), score.wrong.total()) == ([], 0, 0)
    assert score.missed == score.calls > 0
