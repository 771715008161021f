"""An attempt that is set aside does not count: the event is handed out again when somebody says so, or after a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_port import Bus, Verdict
from tests.engines.buses import BUS_PLACES, KEPT, TERMS, BusPlace, bus_place, event, handle, is_waiting, quiet

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=BUS_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def bus(place: BusPlace) -> AsyncIterator[Bus]:
    one = place.open(TERMS._replace(attempts_max=2))
    yield one
    await one.close()


async def test_however_often_it_is_set_aside_no_attempt_is_used_up(bus: Bus, place: BusPlace) -> None:
    one, other = [await bus.subscribe(">", "group", handling_s=100.0) for _ in range(2)]
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k"), event(id="c")])
    assert await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)
    place.clock.move(0.0)
    for _ in range(5):
        found = await one.next()
        assert (found.event.id, found.attempt, found.may_have_been_handled) == ("a", 2, False)
        assert await one.defer(found, 50.0)
        assert one.left_s(found) == 0.0
        await quiet(bus)  # other sidecars have heard when it is due
        place.clock.move(49.0)
        if found.life < 2000:
            assert await one.defer(found, 50.0), "it waits anew"
            await quiet(bus)
            place.clock.move(49.0)
        assert "b" not in [each.event.id for each in await _at_hand(bus, other)], "of its key, it waits"
        place.clock.move(1.0)
    assert (await bus.positions())[0][3:6] == (0, 2, 0)
    assert await bus.dead_letters("group") == []
    assert await handle(one, 2) == ["a", "b"]


async def _at_hand(bus: Bus, one: object) -> list[object]:
    found = []
    while True:
        asked = asyncio.ensure_future(one.next())  # type: ignore[attr-defined]
        await quiet(bus)
        if not asked.done():
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return found
        found.append(asked.result())
        assert await one.settle(asked.result(), Verdict.SUCCESS)  # type: ignore[attr-defined]


async def test_who_waits_gets_it_as_soon_as_the_wait_is_over(bus: Bus, place: BusPlace) -> None:
    one, other = [await bus.subscribe(">", "group", handling_s=100.0) for _ in range(2)]
    await bus.publish([event(id="a")])
    found = await one.next()
    assert await one.defer(found, 5000.0)
    await one.close()
    waiting = asyncio.ensure_future(other.next())
    await quiet(bus)
    assert not waiting.done()
    assert await one.defer(found, 0.0), "also after it was closed"
    await quiet(bus)
    place.clock.move(0.0)
    again = await waiting
    assert (again.event.id, again.attempt) == ("a", 1)
    assert not await one.defer(found, 0.0), "somebody has it"
    assert not await one.lapse(found, "late")
    assert (await bus.positions())[0][3:6] == (1, 0, 0)
    assert await other.settle(again, Verdict.SUCCESS)
    assert not await one.defer(found, 0.0), "it is settled"


async def test_a_wait_in_vain_counts_and_the_last_makes_a_dead_letter(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=100.0)
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    for attempt in (1, 2):
        found = await one.next()
        assert (found.event.id, found.attempt) == ("a", attempt)
        assert await one.defer(found, 5000.0)
        assert await is_waiting(bus, one)
        assert await one.lapse(found, "nobody decided")
        assert not await one.lapse(found, "nobody decided"), "it is said once"
        await quiet(bus)
        place.clock.move(0.0)
    (letter,) = await bus.dead_letters("group")
    assert (letter.event.id, letter.attempts, letter.reason) == ("a", 2, "nobody decided")
    assert await handle(one, 1) == ["b"]
    assert await bus.redrive("group", [letter.id]) == 1
    again = await one.next()
    assert (again.event.id, again.attempt) == ("a", 1)
    assert await one.settle(again, Verdict.SUCCESS)


async def test_what_is_said_late_of_another_attempt_does_not_end_the_wait(bus: Bus, place: BusPlace) -> None:
    old, new = [await bus.subscribe(">", "group", handling_s=100.0) for _ in range(2)]
    await bus.publish([event(id="a")])
    first = await old.next()
    place.clock.move(100.0)
    second = await new.next()
    assert (second.attempt, second.may_have_been_handled) == (2, True)
    assert await new.defer(second, 50.0)
    assert not await old.defer(first, 0.0)
    assert not await old.settle(first, Verdict.RETRY, retry_after_s=0.0)
    assert not await old.settle(first, Verdict.DROP)
    await old.close()
    await quiet(bus)
    place.clock.move(0.0)
    assert await is_waiting(bus, new)
    assert await new.settle(first, Verdict.SUCCESS), "but where it was handled, it was"
    place.clock.move(50.0)
    assert await is_waiting(bus, new)
    assert await bus.dead_letters("group") == []


@pytest.mark.parametrize("place", KEPT, indirect=True)
async def test_it_waits_through_a_restart(place: BusPlace) -> None:
    before = place.open()
    one = await before.subscribe(">", "group")
    await before.publish([event(id="a")])
    assert await one.defer(await one.next(), 50.0)
    await before.close()
    after = place.open()
    two = await after.subscribe(">", "group")
    assert await is_waiting(after, two)
    place.clock.move(50.0)
    found = await two.next()
    assert (found.event.id, found.attempt, found.may_have_been_handled) == ("a", 1, False)
    await after.close()


async def test_it_says_how_much_of_its_time_is_left(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=100.0)
    await bus.publish([event(id="a")])
    found = await one.next()
    assert one.left_s(found) == 96.0
    place.clock.move(95.0)
    assert one.left_s(found) == 1.0
    place.clock.move(3.0)
    assert one.left_s(found) == 0.0
