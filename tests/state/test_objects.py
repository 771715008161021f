"""The contract of shared state, kept on every engine: the model is the same thing in a dict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, StoreCorrupt, StoreError
from meshd.state.deciding import CLOCKS_S, LEASE_S_MAX, Cause, Conflict, Keep
from meshd.state.keys import key_of
from meshd.state.objects import place_of, shadow_of
from meshd.state.record import DRAFTS, OBJECTS, PIECES, Version
from meshd.state.sweeping import DRAFT_S, Sweeping
from meshd.state.watching import Watching
from tests.engines.places import PLACES, SHARED, Place
from tests.engines.places import place_of as engine_at
from tests.state.model import Model
from tests.state.world import KEEP, LONG, World

A, B = "mesh/a", "workflow/w/b"


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with engine_at(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def world(place: Place) -> AsyncIterator[World]:
    engine = await place.open()
    yield World(engine)
    await engine.close()


@pytest.fixture
def memory() -> World:
    return World(MemoryStore())


async def test_put_if_absent_and_compare_and_set(world: World) -> None:
    assert await world.read(A) is None
    assert await world.made(A, b"one") == 1
    assert (await world.conflict(A, b"other")).current.number == 1  # type: ignore[union-attr]
    assert await world.made(A, b"two", 1) == 2
    refused = await world.conflict(A, b"stale", 1, writer="bob")
    assert (refused.cause, refused.lease) == (Cause.VERSION, None)
    assert refused.current is not None
    assert (refused.current.number, refused.current.writer) == (2, "ann")
    assert (await world.conflict("mesh/none", b"", 3)).current is None
    assert await world.read(A) == (2, b"two")
    assert await world.read(A, 1) == (1, b"one")
    assert await world.read(A, 3) is None


async def test_a_long_value_and_its_pieces(world: World) -> None:
    value = bytes(range(256)) * (LONG // 256)
    assert await world.made(A, value) == 1
    assert await world.read(A) == (1, value)
    assert len(await world.kept(PIECES)) == 3
    for number in range(1, 6):
        await world.made(A, b"%d" % number + value, number)
    assert await world.history(A) == [6, 5, 4, 3]
    assert await world.read(A, 4) == (4, b"3" + value)
    assert await world.read(A, 2) is None
    assert len(await world.kept(PIECES)) == 4 * 3
    assert await world.kept(DRAFTS) == []
    assert await world.made(A, b"", 6, is_deleted=True) == 7
    assert await world.kept(PIECES) == []


async def test_history_is_bounded_by_bytes_too(world: World) -> None:
    keep = Keep(versions=10, bytes=1000)
    for number in range(5):
        await world.made(A, b"x" * 400, number, keep=keep)
    assert await world.history(A) == [5, 4]
    await world.made(A, b"x" * 2000, 5, keep=keep)
    assert await world.history(A) == [6]


async def test_a_deleted_object_counts_on(world: World) -> None:
    await world.made(A, b"one")
    assert await world.made(A, b"", 1, is_deleted=True) == 2
    assert await world.read(A) is None
    assert await world.read(A, 2) is None
    assert (await world.conflict(A, b"late", 1)).current is None
    assert await world.made(A, b"anew") == 3
    assert await world.read(A, 1) is None


async def test_two_check_outs_at_once(world: World) -> None:
    await world.made(A, b"one")
    held = await asyncio.gather(*(world.check_out(A, f"l{number}", agent=f"a{number}") for number in range(6)))
    assert len({lease.id for lease in held}) == 1
    winner = held[0]
    assert winner.until_s == world.now_s + 60
    refused = await world.conflict(A, b"two", 1)
    assert (refused.cause, refused.lease) == (Cause.LEASE_HELD, winner)
    assert await world.made(A, b"two", 1, lease=winner.id, writer=winner.agent) == 2
    assert await world.made(A, b"three", 2) == 3
    assert (await world.conflict(A, b"", 3, lease=winner.id, writer=winner.agent)).cause is Cause.LEASE_LOST


async def test_a_lease_that_ran_out_writes_nothing(world: World) -> None:
    await world.made(A, b"one")
    await world.check_out(A, "slow", 10)
    world.now_s += 10
    refused = await world.conflict(A, b"paused", 1, lease="slow")
    assert (refused.cause, refused.current.number) == (Cause.LEASE_LOST, 1)  # type: ignore[union-attr]
    assert (await world.check_out(A, "quick", agent="bob")).id == "quick"
    refused = await world.conflict(A, b"paused", 1, lease="slow")
    assert refused.lease is not None
    assert (refused.cause, refused.lease.agent) == (Cause.LEASE_LOST, "bob")
    assert await world.made(A, b"quick", 1, lease="quick", writer="bob") == 2
    assert (await world.conflict(A, b"paused", 1, lease="slow")).cause is Cause.LEASE_LOST
    assert await world.read(A) == (2, b"quick")


async def test_a_lease_of_a_clock_from_the_future_keeps_nobody_out(world: World) -> None:
    await world.made(A, b"one")
    await world.check_out(A, "ahead", LEASE_S_MAX + CLOCKS_S)  # as far as clocks may differ, it is in force
    assert (await world.conflict(A, b"two", 1)).cause is Cause.LEASE_HELD
    assert await world.release(A, "ahead")
    await world.check_out(A, "future", 365 * 86_400)
    assert (await world.check_out(A, "now", agent="bob")).id == "now"
    assert (await world.conflict(A, b"two", 1, lease="future")).cause is Cause.LEASE_LOST
    assert await world.made(A, b"two", 1, lease="now", writer="bob") == 2


async def test_a_lease_is_renewed_and_given_back(world: World) -> None:
    assert (await world.check_out(A, "l", 10)).id == "l"  # of an object that is yet to be made
    world.now_s += 9
    assert (await world.check_out(A, "l", 10)).until_s == world.now_s + 10
    world.now_s += 9
    assert (await world.conflict(A, b"")).cause is Cause.LEASE_HELD
    assert not await world.release(A, "other")
    assert await world.release(A, "l")
    assert not await world.release(A, "l")
    assert await world.made(A, b"") == 1


async def test_asked_again_with_its_id_it_answers_the_same(world: World) -> None:
    assert await world.made(A, b"one", commit="c1") == 1
    assert await world.made(A, b"one", commit="c1") == 1
    await world.check_out(A, "l")
    assert await world.made(A, b"two", 1, lease="l", commit="c2") == 2
    assert await world.made(A, b"three", 2, commit="c3") == 3
    assert await world.made(A, b"two", 1, lease="l", commit="c2") == 2
    assert (await world.conflict(A, b"two", 1, commit="c4")).cause is Cause.VERSION
    assert await world.made(A, b"", 3, is_deleted=True, commit="d") == 4
    assert await world.made(A, b"", 3, is_deleted=True, commit="d") == 4


async def test_increments_of_eight_writers_all_count(world: World) -> None:
    await world.made(A, b"0")
    increments = 8 if world.store.name == "dynamodb" else 200  # moto's server takes some milliseconds for each thing

    async def add(writer: str) -> int:
        conflicts = 0
        for number in range(increments):
            while True:
                found = await world.read(A)
                assert found is not None
                version, value = found
                await asyncio.sleep(0)  # the store in memory waits for nothing
                made = await world.commit(A, b"%d" % (int(value) + 1), version, commit=f"{writer}-{number}")
                if isinstance(made, Version):
                    break
                conflicts += 1
        return conflicts

    conflicts = await asyncio.gather(*(add(f"w{number}") for number in range(8)))
    assert await world.read(A) == (8 * increments + 1, b"%d" % (8 * increments))
    assert sum(conflicts) > 0


@pytest.mark.parametrize("place", SHARED, indirect=True)
async def test_increments_over_several_connections_all_count(place: Place) -> None:
    stores = await asyncio.gather(*(place.open() for _ in range(8)))
    worlds = [World(store) for store in stores]
    await worlds[0].made(A, b"0")
    increments = 5 if worlds[0].store.name == "dynamodb" else 25

    async def add(world: World) -> None:
        for _ in range(increments):
            while True:
                version, value = await world.read(A) or (0, b"0")
                if isinstance(await world.commit(A, b"%d" % (int(value) + 1), version), Version):
                    break

    await asyncio.gather(*(add(world) for world in worlds))
    assert await worlds[0].read(A) == (8 * increments + 1, b"%d" % (8 * increments))
    await asyncio.gather(*(store.close() for store in stores))


async def test_what_belongs_to_a_workflow_ends_with_it(world: World) -> None:
    ends_s = world.now_s + 100
    place = shadow_of(key_of(A), "w")
    await world.made(B, b"x" * LONG, ends_s=ends_s)
    await world.commit(place, b"y" * LONG, ends_s=ends_s)
    await world.made(A, b"stays")
    sweeping = Sweeping(world.objects)
    await sweeping.sweep()
    assert await world.read(B) is not None
    world.now_s += 100
    assert await world.read(B) is None
    assert await world.objects.get(place) is None
    world.now_s += 2
    await sweeping.sweep()
    assert await world.kept(PIECES, "state-due", "state-shadow") == []
    assert await world.kept(OBJECTS) == [A]
    assert await world.read(A) == (1, b"stays")


async def test_a_value_that_is_damaged_is_told_as_such(world: World) -> None:
    await world.made(A, b"x" * LONG)
    name = (await world.kept(PIECES))[1]
    await world.store.write([Change(PIECES, name, b"y")])
    with pytest.raises(StoreCorrupt, match="mesh/a@1"):
        await world.read(A)
    await world.store.write([Change(OBJECTS, A, b"\xc1")])
    with pytest.raises(StoreCorrupt, match="mesh/a"):
        await world.read(A)
    with pytest.raises(StoreCorrupt):
        await world.commit(A, b"", 1)
    assert await world.made("mesh/other", b"") == 1


async def test_a_watch_hears_of_every_object_it_asked_for(world: World) -> None:
    watching, heard, others = Watching(world.objects), asyncio.Event(), asyncio.Event()
    end = await watching.listen(A, heard.set)
    end_others = await watching.listen(B, others.set)
    await world.made(A, b"one")
    await asyncio.wait_for(heard.wait(), 20)
    heard.clear()
    await world.made(B, b"one")
    await asyncio.wait_for(others.wait(), 20)
    end()
    end()
    end_others()
    assert watching.count == 0
    await world.made(A, b"two", 1)
    assert await watching.listen(A, heard.set)


# ------------------------------------------------------------------ crashes


async def test_pieces_that_no_head_came_to_name_are_removed(memory: World) -> None:
    class Killed(BaseException):
        pass

    write = memory.store.write

    async def killed(changes: Any) -> list[bool]:
        if changes[-1].space == OBJECTS:
            await write(changes[:-1])
            raise Killed
        return await write(changes)

    memory.store.write = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        await memory.commit(A, b"x" * LONG)
    memory.store.write = write  # type: ignore[method-assign]
    assert len(await memory.kept(PIECES)) == 3
    sweeping = Sweeping(memory.objects)
    memory.now_s += DRAFT_S - 1
    await sweeping.sweep()
    assert len(await memory.kept(PIECES)) == 3
    memory.now_s += 1
    await sweeping.sweep()
    assert await memory.kept(PIECES, DRAFTS) == []
    memory.now_s += 4000
    await sweeping.sweep()
    assert await memory.kept(OBJECTS, "state-due") == []


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_writer_that_was_paused_names_no_pieces_that_are_gone(memory: World, is_there: bool) -> None:
    base = await memory.made(A, b"before") if is_there else 0
    write, paused, go = memory.store.write, asyncio.Event(), asyncio.Event()

    async def pausing(changes: Any) -> list[bool]:
        if changes[-1].space == OBJECTS and not paused.is_set():
            await write(changes[:-1])
            paused.set()
            await go.wait()
            return await write(changes[-1:])
        return await write(changes)

    memory.store.write = pausing  # type: ignore[method-assign]
    writer = asyncio.create_task(memory.made(A, b"x" * LONG, base))
    await paused.wait()
    memory.now_s += DRAFT_S
    await Sweeping(memory.objects).sweep()
    assert await memory.kept(PIECES) == []
    go.set()
    assert await writer == base + 1
    assert await memory.read(A) == (base + 1, b"x" * LONG)
    assert await memory.kept(DRAFTS) == []


async def test_a_writer_that_is_overtaken_leaves_no_pieces(memory: World) -> None:
    await memory.made(A, b"before")
    write, is_overtaken = memory.store.write, False

    async def overtaking(changes: Any) -> list[bool]:
        nonlocal is_overtaken
        if changes[-1].space == OBJECTS and not is_overtaken:
            is_overtaken = True
            await memory.made(A, b"quicker", 1)
        return await write(changes)

    memory.store.write = overtaking  # type: ignore[method-assign]
    assert (await memory.conflict(A, b"x" * LONG, 1)).cause is Cause.VERSION
    assert await memory.read(A) == (2, b"quicker")
    assert await memory.kept(PIECES, DRAFTS) == []


@pytest.mark.parametrize("calls", range(9))
async def test_a_store_that_fails_at_any_step_harms_nothing(memory: World, calls: int) -> None:
    await memory.made(A, b"before")
    write, left = memory.store.write, calls

    async def failing(changes: Any) -> list[bool]:
        nonlocal left
        for number in range(len(changes)):  # any number of them, from the first on
            left -= 1
            if left < 0:
                await write(changes[:number])
                raise StoreError("away")
        return await write(changes)

    memory.store.write = failing  # type: ignore[method-assign]
    try:
        await memory.commit(A, b"x" * LONG, 1, commit="c")
    except StoreError:
        pass
    memory.store.write = write  # type: ignore[method-assign]
    assert await memory.read(A) in ((1, b"before"), (2, b"x" * LONG))
    assert await memory.made(A, b"x" * LONG, 1, commit="c") == 2  # it may be asked again
    memory.now_s += DRAFT_S + 1
    await Sweeping(memory.objects).sweep()
    assert await memory.read(A) == (2, b"x" * LONG)
    assert len(await memory.kept(PIECES)) == 3


async def test_an_object_that_expired_is_made_anew(memory: World) -> None:
    await memory.made(B, b"x" * LONG, ends_s=memory.now_s + 100)
    await memory.check_out(B, "l", 500)
    memory.now_s += 100
    assert await memory.read(B) is None
    assert await memory.made(B, b"anew", ends_s=memory.now_s + 100) == 2
    assert await memory.kept(PIECES) == []


async def test_pieces_that_a_crash_kept_from_being_removed_go_with_the_next_change(memory: World) -> None:
    await memory.made(A, b"x" * LONG)
    write = memory.store.write

    async def crashing(changes: Any) -> list[bool]:
        if changes[0].space == PIECES and changes[0].value is None:
            raise StoreError("away")
        return await write(changes)

    memory.store.write = crashing  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await memory.commit(A, b"", 1, is_deleted=True)
    memory.store.write = write  # type: ignore[method-assign]
    assert len(await memory.kept(PIECES)) == 3
    assert await memory.made(A, b"anew") == 3
    assert await memory.kept(PIECES) == []


# ------------------------------------------------------------------ the model

KEYS = st.sampled_from([A, B])
IDS = st.sampled_from(["", "x", "y"])
VALUES = st.one_of(st.binary(max_size=3), st.just(b"long" * 1000))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), KEYS, st.integers(-1, 1), VALUES, IDS, st.sampled_from(["", "", "c", "d"])),
        st.tuples(st.just("delete"), KEYS, st.integers(-1, 0), st.just(b""), IDS, st.sampled_from(["", "c"])),
        st.tuples(st.just("check_out"), KEYS, st.integers(1, 30), st.just(b""), st.sampled_from(["x", "y"])),
        st.tuples(st.just("release"), KEYS, st.just(0), st.just(b""), st.sampled_from(["x", "y"])),
        st.tuples(st.just("wait"), KEYS, st.integers(1, 40)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("engine", [name for name in PLACES if name != "dynamodb"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_engine_does_what_the_model_does(
    engine: str, steps: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _check_against_the_model(engine, steps, tmp_path_factory)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_dynamodb_does_what_the_model_does(steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fewer of them: moto's server is slow."""
    _check_against_the_model("dynamodb", steps, tmp_path_factory)


def _check_against_the_model(engine: str, steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    async def run() -> None:
        async with engine_at(engine, tmp_path_factory.mktemp("model")) as place:
            store = await place.open()
            try:
                await _both(World(store), Model(KEEP.versions), steps)
            finally:
                await store.close()

    asyncio.run(run())


async def _both(world: World, model: Model, steps: list[Any]) -> None:
    for what, key, number, *more in steps:
        if what == "wait":
            world.now_s += number
        elif what == "release":
            assert await world.release(key, more[1]) == model.release(key, more[1], world.now_s)
        elif what == "check_out":
            lease = await world.check_out(key, more[1], number)
            assert lease.id == model.check_out(key, more[1], world.now_s + number, world.now_s)
        else:
            history = model.history(key)
            base = max(0, (history[0][0] if history else 0) + number)
            value, lease_id, commit = more
            is_deleted = what == "delete"
            found = await world.commit(key, value, base, lease=lease_id, commit=commit, is_deleted=is_deleted)
            if isinstance(found, Conflict):
                got = (found.cause.value, found.current.number if found.current is not None else 0)
            else:
                got = ("done", found.number)
            wanted = model.commit(key, None if is_deleted else value, base, lease_id, commit, world.now_s)
            assert got == wanted
        for one in (A, B):
            assert await world.history(one) == [number for number, _ in model.history(one)]
            newest = model.history(one)[:1]
            assert await world.read(one) == (newest[0] if newest else None)
    for one in (A, B):
        for number, value in model.history(one):
            assert await world.read(one, number) == (number, value)


def test_places_of_two_objects_are_two() -> None:
    assert place_of(key_of(A)) != shadow_of(key_of(A), "w")
    assert shadow_of(key_of("mesh/a/b"), "w") != shadow_of(key_of("mesh/a"), "w")
