"""Groups that begin at a moment or behind a place, and looking at what is kept: the same on every engine that can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_front import BusFront
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Bus, EventMalformed, Start, StartGone, Topic, Verdict
from meshd.engines.port import StoreUnable
from tests.engines.buses import (
    BUS_PLACES,
    DAY_S,
    ROOMY,
    START_S,
    TERMS,
    BusPlace,
    bus_place,
    event,
    handle,
    is_waiting,
    quiet,
    take,
)

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=BUS_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def bus(place: BusPlace) -> AsyncIterator[Bus]:
    one = place.open()
    await one.positions()  # which opens those of several sidecars
    yield one
    await one.close()


async def test_a_group_begins_at_a_moment(bus: Bus, place: BusPlace) -> None:
    await bus.publish([event(id="old")])
    place.clock.move(10.0)
    await bus.publish([event(id="at"), event(id="same")])
    place.clock.move(10.0)
    await bus.publish([event(id="new")])
    one = await bus.subscribe("task.done", "late", start=Start(at_s=START_S + 10.0))
    assert [(await one.next()).event.id for _ in range(3)] == ["at", "same", "new"]
    assert await is_waiting(bus, one)
    between = await bus.subscribe("task.done", "between", start=Start(at_s=START_S + 10.001))
    assert [one.event.id for one in await take(between, 1)] == ["new"]
    within = await bus.subscribe("task.done", "within", start=Start(at_s=START_S + 10.0004))
    assert [one.event.id for one in await take(within, 1)] == ["new"], "less than a millisecond later"
    before = await bus.subscribe("task.done", "before", start=Start(at_s=START_S - 5.0))
    assert [one.event.id for one in await take(before, 4)] == ["old", "at", "same", "new"]
    soon = await bus.subscribe("task.done", "soon", start=Start(at_s=START_S + 60.0))
    assert await is_waiting(bus, soon)
    await bus.publish([event(id="next")])
    assert (await soon.next()).event.id == "next"


async def test_a_moment_is_found_among_many(bus: Bus, place: BusPlace) -> None:
    for minute in range(20):
        await bus.publish([event(id=f"{minute}/{number}") for number in range(minute % 3)])
        place.clock.move(60.0)
        await quiet(bus)  # or what one sidecar asked before would come with a time that is over
    for minute in (0, 1, 13, 14, 18, 19):
        one = await bus.subscribe("task.done", f"from{minute}", start=Start(at_s=START_S + 60.0 * minute))
        wanted = [f"{later}/{number}" for later in range(minute, 20) for number in range(later % 3)]
        assert [delivery.event.id for delivery in await take(one, len(wanted))] == wanted
        assert await is_waiting(bus, one)


async def test_a_group_begins_behind_a_place(bus: Bus) -> None:
    published = await bus.publish([event(id=str(number)) for number in range(4)])
    one = await bus.subscribe("task.done", "replay", start=Start(after=int(published[1].sequence)))
    assert [(await one.next()).event.id for _ in range(2)] == ["2", "3"]
    everything = await bus.subscribe("task.done", "all", start=Start(after=0))
    assert (await everything.next()).event.id == "0"
    last = await bus.subscribe("task.done", "last", start=Start(after=int(published[3].sequence)))
    assert await is_waiting(bus, last)
    await bus.publish([event("other", id="4"), event(id="5")])
    assert (await last.next()).event.id == "5"


async def test_an_event_that_others_handle_is_replayed_in_the_order_of_its_key(bus: Bus) -> None:
    published = await bus.publish([event(id=str(number), partition_key="k") for number in range(3)])
    first = await bus.subscribe("task.*", "first", starts_at_oldest=True)
    await handle(first, 2)
    again = await bus.subscribe("task.*", "again", start=Start(after=int(published[0].sequence)))
    delivery = await again.next()
    assert delivery.event.id == "1"
    assert await is_waiting(bus, again), "the second of a key waits for the first"
    assert await again.settle(delivery, Verdict.SUCCESS)
    assert await handle(again, 1) == ["2"]


async def test_a_group_that_is_known_goes_on_where_it_was(bus: Bus) -> None:
    one = await bus.subscribe("task.done", "group")
    await bus.publish([event(id="a"), event(id="b")])
    await handle(one, 1)
    again = await bus.subscribe("task.done", "group", start=Start(after=0))
    assert (await again.next()).event.id == "b"
    await bus.subscribe("task.done", "group", start=Start(after=2**40))


async def test_what_is_kept_is_looked_at_without_a_group(bus: Bus) -> None:
    await bus.publish([event("task.done", id="1"), event("task.sub.done", id="2"), event("other", id="3")])
    await bus.publish([event("task.done", id="4")])
    found = await bus.kept("task.>")
    assert [one.id for one in found] == ["1", "2", "4"]
    assert [one.id for one in await bus.kept("task.*", int(found[0].sequence))] == ["4"]
    assert [one.id for one in await bus.kept(">", 0, 2)] == ["1", "2"]
    assert await bus.kept("nothing") == []
    topics = await bus.topics()
    assert [(one.topic, one.events) for one in topics] == [("other", 1), ("task.done", 2), ("task.sub.done", 1)]
    assert topics[1].latest == found[2].sequence
    assert isinstance(topics[0], Topic)
    assert topics[0].bytes > 0
    one = await bus.subscribe("task.done", "group", starts_at_oldest=True)
    assert [delivery.event.id for delivery in await take(one, 2)] == ["1", "4"]


async def test_what_lies_behind_a_place_is_counted(bus: Bus) -> None:
    published = await bus.publish([event("b.c" if number % 5 else "a", id=str(number)) for number in range(60)])
    assert [await bus.behind(topic, 0, 100) for topic in (">", "a", "b.*", "b", "x")] == [60, 12, 48, 0, 0]
    assert await bus.behind(">", 0, 7) == 7
    assert await bus.behind("a", int(published[50].sequence), 100) == 1
    assert await bus.behind("a", int(published[59].sequence), 100) == 0
    found = await bus.kept("a", 0, 12)
    assert [one.id for one in found] == [str(number) for number in range(0, 60, 5)]


async def test_much_that_is_kept_is_looked_at_in_parts(bus: Bus) -> None:
    for _ in range(3):
        await bus.publish([event(data=b"x" * 1000) for _ in range(1000)])
    assert await bus.behind(">", 0, 10_000) == 3000
    assert [one.events for one in await bus.topics()] == [3000]
    found = await bus.kept("task.done", 0, 2500)
    assert len({one.sequence for one in found}) == 2500
    assert len(await bus.kept("task.done", int(found[-1].sequence), 2500)) == 500


NO_PLACES = (
    Start(),
    Start(1.0, 1),
    Start(float("nan")),
    Start(float("inf")),
    Start(-1.0),
    Start(START_S + 61.0),
    Start(after=-1),
    Start(after=2**63),
)


async def test_what_is_no_place_is_refused(bus: Bus, subtests: pytest.Subtests) -> None:
    for start in NO_PLACES:
        with subtests.test(start=str(start)), pytest.raises(EventMalformed, match="starts_a"):
            await bus.subscribe("task.done", "group", start=start)
    assert await bus.positions() == []


async def test_a_place_of_another_bus_is_refused(bus: Bus) -> None:
    (published,) = await bus.publish([event()])
    for after in (int(published.sequence) + 1, 2**40, 2**62 - 1):
        with pytest.raises(StartGone, match=r"starts_after: .* is no event of this bus"):
            await bus.subscribe("task.done", "group", start=Start(after=after))
    assert await bus.positions() == []
    await bus.subscribe("task.done", "group", start=Start(after=int(published.sequence)))


async def test_a_place_behind_which_something_is_gone_is_refused(bus: Bus, place: BusPlace) -> None:
    old = await bus.publish([event(id="1"), event(id="2")])
    place.clock.move(4 * DAY_S)
    await quiet(bus)
    new = await bus.publish([event(id="3"), event(id="4")])
    for seconds in (3 * DAY_S, 61.0, 61.0):
        place.clock.move(seconds)
        await quiet(bus)
    assert [one.id for one in await bus.kept(">")] == ["3", "4"]
    with pytest.raises(StartGone, match=r"starts_after: .* is kept no more"):
        await bus.subscribe("task.done", "gone", start=Start(after=int(old[0].sequence)))
    assert await bus.positions() == []
    # Behind the last that is gone, all is kept.
    for name, start, ids in (
        ("last", Start(after=int(old[1].sequence)), ["3", "4"]),
        ("kept", Start(after=int(new[0].sequence)), ["4"]),
        ("oldest", Start(after=0), ["3", "4"]),
        ("moment", Start(at_s=START_S), ["3", "4"]),
    ):
        one = await bus.subscribe("task.done", name, start=start)
        assert [delivery.event.id for delivery in await take(one, len(ids))] == ids
        assert await is_waiting(bus, one)


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_a_place_behind_which_room_was_made_is_refused(place: BusPlace) -> None:
    bus = place.open(TERMS._replace(keep_bytes=40_000))
    one = await bus.subscribe("task.done", "group")
    published = []
    for number in range(60):
        published += await bus.publish([event(id=str(number), data=b"x" * 2000)])
        await handle(one, 1)
    ids, before = list[str](), ["not looked at"]
    while ids != before:  # room is made until there is enough of it
        await quiet(bus)
        ids, before = [each.id for each in await bus.kept(">")], ids
    assert 0 < len(ids) < 30
    first = published[int(ids[0])]
    with pytest.raises(StartGone):
        await bus.subscribe("task.done", "early", start=Start(after=int(first.sequence) - 2))
    late = await bus.subscribe("task.done", "late", start=Start(after=int(first.sequence)))
    assert [delivery.event.id for delivery in await take(late, len(ids) - 1)] == ids[1:]
    await bus.close()


async def test_a_bus_that_cannot_says_so() -> None:
    class Plain(MemoryBus):
        def __init__(self) -> None:
            super().__init__()
            self.abilities = frozenset()

    bus: BusFront = Plain()
    with pytest.raises(StoreUnable, match="cannot begin a group at a moment"):
        await bus.subscribe("task.done", "group", start=Start(after=0))
    with pytest.raises(StoreUnable):
        await bus.kept("task.done")
    with pytest.raises(StoreUnable):
        await bus.topics()
    with pytest.raises(StoreUnable):
        await bus.behind("task.done", 0, 1)
    await bus.subscribe("task.done", "group", starts_at_oldest=True)
    await bus.close()
