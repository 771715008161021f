"""Ids of commits and leases are chosen by callers: who chooses one that another has chosen is told the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshd.state.deciding import Cause
from meshd.state.record import Version
from tests.api.house import house
from tests.api.test_state import POLICY, check_out, commit, get, promote, shadow, token_of
from tests.engines.places import PLACES
from tests.engines.places import place_of as engine_at
from tests.state.world import LONG, World

A = "mesh/a"
OTHERS: list[dict[str, Any]] = [
    {"writer": "bob"},
    {"workflow": "other"},
    {"value": b"other"},
    {"value": b"x" * (LONG - 1) + b"y"},
    {"is_deleted": True, "value": b""},
]


@pytest.fixture(params=PLACES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with engine_at(request.param, tmp_path) as place:
        engine = await place.open()
        yield World(engine)
        await engine.close()


async def test_an_id_that_another_has_chosen_too_is_another_commit(world: World) -> None:
    whole = b"x" * LONG
    assert await world.made(A, whole, commit="1") == 1
    assert await world.made(A, whole, commit="1") == 1
    for other in OTHERS:
        found = await world.conflict(A, **({"value": whole, "commit": "1"} | other))
        assert (found.cause, found.current and found.current.number) == (Cause.VERSION, 1), other
    assert await world.read(A) == (1, whole)
    assert await world.made(A, b"next", 1, commit="1", writer="bob") == 2


async def test_a_lease_is_its_holders_alone(world: World) -> None:
    assert (await world.check_out(A, "1")).agent == "ann"
    assert (await world.check_out(A, "1", agent="bob")).agent == "ann"
    found = await world.commit(A, b"one", lease="1")
    assert isinstance(found, Version)
    assert (await world.check_out(A, "1", agent="bob")).agent == "bob"


@pytest.mark.parametrize("other", [{"writer": "bob"}, {"workflow": "other"}])
async def test_nobody_writes_on_a_lease_whose_id_they_have_chosen_too(world: World, other: dict[str, str]) -> None:
    await world.check_out(A, "1")
    found = await world.conflict(A, b"theirs", lease="1", **other)
    assert (found.cause, found.lease and found.lease.agent) == (Cause.LEASE_LOST, "ann")
    assert not await world.release(A, "1", agent="bob")
    assert await world.made(A, b"mine", lease="1") == 1


async def test_two_workflows_with_one_lease_id_are_told_who_has_it(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        assert (await check_out(one, ann, "1", A)).lease_id == "1"
        refused = await check_out(one, other, "1", A)
        assert (refused.lease_id, refused.lease.workflow) == ("", "w")
        assert (await check_out(one, ann, "1", A)).lease_id == "1"


async def test_a_promotion_under_anothers_id_is_made(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, other, A, b"theirs", commit_id="1")
        await shadow(one, ann, b"mine", 1, key=A)
        made = await promote(one, ann, A, commit_id="1")
        assert (made.is_conflict, made.object.version) == (False, 2)
        assert (await get(one, ann, A)).value == b"mine"


async def test_a_tentative_version_is_not_dropped_for_anothers_commit(tmp_path: Path) -> None:
    """The one that is there has the id under which this one was to be promoted."""
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, A, b"one")
        await shadow(one, ann, b"mine", 1, key=A)
        await commit(one, other, A, b"theirs", 1, commit_id="1")
        assert (await promote(one, ann, A, commit_id="1")).is_conflict
        assert (await get(one, ann, A, reads_shadow=True)).value == b"mine"
