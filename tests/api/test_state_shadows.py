"""Tentative versions over StateService, where a promotion was cut short: none hides what came after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshd.engines.port import StoreError
from meshd.state.record import OBJECTS, SHADOWS
from meshd_sdk.v1 import state_pb2 as pb
from tests.api.house import House, house, refusal
from tests.api.test_state import POLICY, check_out, commit, get, promote, shadow, token_of

KEY = "mesh/rates"


@contextmanager
def killed(one: House, *, before_change: int, after_object: bool) -> Iterator[None]:
    """As if the sidecar died: ahead of that change, counted from the object's own where `after_object`."""
    store: Any = one.mesh.ledger.store()
    write, left = store.write, before_change
    is_counting = not after_object

    async def failing(changes: Any) -> list[bool]:
        nonlocal left, is_counting
        if is_counting:
            left -= 1
            if left < 0:
                raise StoreError("killed")
        if changes[-1].space == OBJECTS:
            is_counting = True
        return list(await write(changes))

    store.write = failing
    try:
        yield
    finally:
        store.write = write


async def cut_short(one: House, token: str, **more: Any) -> None:
    """Promote, and die once the object has its version and before the tentative ones are dropped."""
    with killed(one, before_change=0, after_object=True):
        assert (await refusal(promote(one, token, KEY, **more))).code() is grpc.StatusCode.UNAVAILABLE


async def is_kept(one: House) -> bool:
    store: Any = one.mesh.ledger.store()
    return bool(await store.keys(SHADOWS))


@pytest.mark.parametrize("commit_id", ["", "mine"])
async def test_one_that_was_promoted_hides_nothing(tmp_path: Path, commit_id: str) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        await cut_short(one, ann, commit_id=commit_id)
        assert await is_kept(one)
        seen = await get(one, ann, KEY, reads_shadow=True)
        assert (seen.value, seen.version, seen.is_shadow) == (b"mine", 2, False)
        for base in range(2, 9):  # past the promoted one, of which nothing is kept in the end (history: 3)
            await commit(one, other, KEY, b"newer %d" % base, base)
            seen = await get(one, ann, KEY, reads_shadow=True)
            assert (seen.value, seen.is_shadow) == (b"newer %d" % base, False)


@pytest.mark.parametrize(("commit_id", "again"), [("", ""), ("mine", "mine"), ("mine", ""), ("", "other")])
async def test_promoted_again_it_is_made_once(tmp_path: Path, commit_id: str, again: str) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        await cut_short(one, ann, commit_id=commit_id)
        await commit(one, other, KEY, b"newer", 2)
        made = await promote(one, ann, KEY, commit_id=again)
        assert (made.is_conflict, made.object.version) == (False, 2)
        assert not await is_kept(one)
        assert (await get(one, ann, KEY)).version == 3


async def test_the_next_tentative_version_begins_anew(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann = await token_of(one)
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        await cut_short(one, ann)
        made = await shadow(one, ann, b"next", 2, key=KEY)
        assert (made.is_conflict, made.object.version, made.object.base_version) == (False, 1, 2)
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"next"
        assert (await promote(one, ann, KEY)).object.version == 3


async def test_one_that_was_not_promoted_stays_in_front(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        with killed(one, before_change=1, after_object=False):  # nothing but what says that it is to be promoted
            await refusal(promote(one, ann, KEY))
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"mine"
        await commit(one, other, KEY, b"theirs", 1)
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"mine"
        assert (await promote(one, ann, KEY)).is_conflict
        for base in range(2, 9):
            await commit(one, other, KEY, b"theirs", base)
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"mine"  # to be looked at, and merged


async def test_where_nobody_can_tell_the_newest_is_seen_until_it_is_asked_again(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        with killed(one, before_change=1, after_object=False):
            await refusal(promote(one, ann, KEY))
        for base in range(1, 8):
            await commit(one, other, KEY, b"newer", base)
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"newer"
        assert (await promote(one, ann, KEY)).is_conflict
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"mine"


async def test_who_has_checked_it_out_keeps_it_from_being_promoted_for_that_long(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        await check_out(one, other, "l", KEY)
        assert (await promote(one, ann, KEY)).conflict == pb.STATE_CONFLICT_LEASE_HELD
        assert (await get(one, ann, KEY, reads_shadow=True)).value == b"mine"
        await one.state.Release(pb.ReleaseRequest(token=other, key=KEY, lease_id="l"))
        assert (await promote(one, ann, KEY)).object.version == 2


async def test_what_is_written_while_it_is_promoted_is_not_dropped_with_it(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann = await token_of(one)
        await commit(one, ann, KEY, b"one")
        await shadow(one, ann, b"mine", 1, key=KEY)
        store: Any = one.mesh.ledger.store()
        write, is_meanwhile = store.write, False

        async def meanwhile(changes: Any) -> list[bool]:
            nonlocal is_meanwhile
            if not is_meanwhile and changes[0].space == SHADOWS and changes[0].value is None:
                is_meanwhile = True
                await shadow(one, ann, b"written meanwhile", 2, key=KEY)
            return list(await write(changes))

        store.write = meanwhile
        assert (await promote(one, ann, KEY)).object.version == 2
        assert is_meanwhile
        assert (await get(one, ann, KEY, reads_shadow=True)).version == 1  # counted anew
        seen = await get(one, ann, KEY, reads_shadow=True)
        assert (seen.value, seen.is_shadow) == (b"written meanwhile", True)
