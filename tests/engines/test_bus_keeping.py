"""The contract of the bus port: how long events are kept, and what happens where there is no room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_port import Bus, Verdict
from meshd.engines.port import StoreFull
from tests.engines.buses import (
    BUS_PLACES,
    DAY_S,
    KEPT,
    ROOMY,
    TERMS,
    BusPlace,
    bus_place,
    event,
    fail,
    handle,
    is_waiting,
    quiet,
    take,
)

pytestmark = pytest.mark.both_loops
SMALL = TERMS._replace(keep_bytes=100_000)
DATA = bytes(2000)


@pytest.fixture(params=BUS_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def bus(place: BusPlace) -> AsyncIterator[Bus]:
    one = place.open()
    yield one
    await one.close()


async def pass_(bus: Bus, place: BusPlace, seconds: float) -> None:
    """Let time pass, and what is then too old be removed."""
    place.clock.move(seconds)
    for _ in range(4):
        await quiet(bus)


async def test_what_is_too_old_is_gone_and_counted(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe("task.>", "group")
    await bus.publish([event(id="handled"), event(id="retried"), event(id="under way"), event(id="dropped")])
    handled, retried, _, dropped = await take(one, 4)
    await one.settle(handled, Verdict.SUCCESS)
    await one.settle(retried, Verdict.RETRY, retry_after_s=7 * DAY_S)
    await one.settle(dropped, Verdict.DROP)
    await bus.publish([event(id="never seen"), event("other")])
    await pass_(bus, place, 7 * DAY_S - 61.0)
    await bus.publish([event(id="young")])
    await pass_(bus, place, 122.0)
    fresh = await bus.subscribe(">", "fresh", starts_at_oldest=True)
    # What somebody is at stays until that has ended: here its handler took too long.
    assert [delivery.event.id for delivery in await take(fresh, 2)] == ["under way", "young"]
    assert await is_waiting(bus, fresh)
    assert [delivery.event.id for delivery in await take(one, 2)] == ["under way", "young"]
    assert (await bus.positions())[1].expired == 2


async def test_what_is_too_old_lets_the_next_of_its_key_go_on(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="old", partition_key="k")])
    await one.settle(await one.next(), Verdict.RETRY, retry_after_s=7 * DAY_S)
    place.clock.move(3600.0)
    await bus.publish([event(id="young", partition_key="k")])
    assert await is_waiting(bus, one)
    await pass_(bus, place, 7 * DAY_S - 3500.0)
    assert await handle(one, 1) == ["young"]


@pytest.mark.parametrize("many", [3, 1201])
async def test_an_id_is_known_for_a_day_even_where_events_are_not_kept_as_long(place: BusPlace, many: int) -> None:
    bus = place.open(TERMS._replace(keep_s=3600.0))
    await bus.publish([event(id=str(number)) for number in range(many)])
    for _ in range(2):
        await pass_(bus, place, 3700.0)
    assert await is_waiting(bus, await bus.subscribe(">", "late", starts_at_oldest=True))
    for _ in range(3):
        await pass_(bus, place, 3700.0)
    assert all(one.is_duplicate for one in await bus.publish([event(id=str(number)) for number in range(many)]))
    for _ in range(4):
        await pass_(bus, place, DAY_S / 4)
    again = await bus.publish([event(id=str(number)) for number in range(many)])
    assert not any(one.is_duplicate for one in again)
    await bus.close()


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_room_is_made_of_what_nobody_needs(place: BusPlace) -> None:
    bus = place.open(SMALL)
    one = await bus.subscribe("task.>", "group")
    for number in range(200):
        await bus.publish([event(id=str(number), data=DATA)])
        await handle(one, 1)
    # Still known, though its data is gone.
    assert (await bus.publish([event(id="0")]))[0].is_duplicate
    late = await bus.subscribe(">", "late", starts_at_oldest=True)
    first = int((await late.next()).event.id)
    assert 140 < first < 200
    assert [delivery.event.id for delivery in await take(late, 199 - first)] == [
        str(number) for number in range(first + 1, 200)
    ]
    await bus.close()


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_without_any_group_the_oldest_goes(place: BusPlace) -> None:
    bus = place.open(SMALL)
    for number in range(200):
        await bus.publish([event(id=str(number), data=DATA)])
    first = await (await bus.subscribe(">", "late", starts_at_oldest=True)).next()
    assert 140 < int(first.event.id) < 200
    await bus.close()


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_what_is_needed_is_never_lost_for_want_of_room(place: BusPlace) -> None:
    bus = place.open(SMALL)
    quick = await bus.subscribe(">", "quick")
    slow = await bus.subscribe(">", "slow")
    kept: list[str] = []

    async def fill() -> None:
        for number in range(100):
            # All of a batch or none.
            await bus.publish([event(id=f"{number}/{half}", data=DATA) for half in "ab"])
            kept.extend((f"{number}/a", f"{number}/b"))
            await handle(quick, 2)

    with pytest.raises(StoreFull, match="100000 bytes"):
        await fill()
    assert 40 < len(kept) < 52
    # One that is kept already needs no room.
    assert (await bus.publish([event(id="0/a", data=DATA)]))[0].is_duplicate
    held = await slow.next()
    assert await handle(slow, len(kept) - 1) == kept[1:]
    await bus.publish([event(id="after", data=DATA)])
    assert await handle(slow, 1) == ["after"]
    await slow.settle(held, Verdict.RETRY, retry_after_s=0.0)
    assert await handle(slow, 1) == ["0/a"]
    await bus.close()


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_one_event_that_is_larger_than_all_room(place: BusPlace) -> None:
    bus = place.open(SMALL)
    with pytest.raises(StoreFull):
        await bus.publish([event(data=bytes(100_001))])
    await bus.publish([event(data=bytes(90_000))])
    await bus.close()


async def test_dead_letters_outlive_their_events_and_not_forever(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a", data=b"data"), event(id="b")])
    for _ in range(8):
        for delivery in await take(one, 2):
            await one.settle(delivery, Verdict.RETRY)
        place.clock.move(300.0)
    for _ in range(2):
        await pass_(bus, place, 10 * DAY_S)
    assert await is_waiting(bus, await bus.subscribe(">", "fresh", starts_at_oldest=True))
    # Its id has been forgotten and is another event's by now.
    (other,) = await bus.publish([event(id="a", data=b"other")])
    assert not other.is_duplicate
    letters = await bus.dead_letters("group")
    assert await bus.redrive("group", [letters[0].id]) == 1
    # For the group that asked, and for nobody else.
    assert await handle(await bus.subscribe(">", "fresh"), 1) == ["a"]
    newest = await bus.subscribe(">", "newest", starts_at_oldest=True)
    assert (await newest.next()).event.data == b"other"
    assert await is_waiting(bus, newest)
    # It is old, and was asked for a moment ago: it is not removed under the hands of who asked.
    await pass_(bus, place, 120.0)
    again = await one.next()
    assert (again.event.id, again.event.data, again.attempt) == ("a", b"data", 1)
    assert await one.settle(again, Verdict.SUCCESS)
    assert (await one.next()).event.data == b"other"
    await pass_(bus, place, 11 * DAY_S)
    assert await bus.dead_letters("group") == []


async def test_a_dead_letter_of_what_is_still_kept_is_redriven(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a")])
    await fail(one, place.clock, range(1, 9))
    (letter,) = await bus.dead_letters("group")
    await bus.redrive("group", [letter.id])
    assert await handle(one, 1) == ["a"]
    late = await bus.subscribe(">", "late", starts_at_oldest=True)
    assert await handle(late, 1) == ["a"]
    await pass_(bus, place, 8 * DAY_S)
    assert not (await bus.publish([event(id="a")]))[0].is_duplicate


@pytest.mark.parametrize("place", ROOMY, indirect=True)
async def test_dead_letters_take_room_and_give_it_back(place: BusPlace) -> None:
    bus = place.open(SMALL._replace(attempts_max=1))
    one = await bus.subscribe(">", "group")

    async def fill() -> None:
        for _ in range(100):
            await bus.publish([event(data=DATA)])
            await one.settle(await one.next(), Verdict.RETRY)

    with pytest.raises(StoreFull, match="dead letters"):
        await fill()
    letters = await bus.dead_letters("group")
    assert 40 < len(letters) < 52
    assert await bus.redrive("group", [letter.id for letter in letters]) == len(letters)
    await handle(one, len(letters))
    for number in range(100):
        await bus.publish([event(id=str(number), data=DATA)])
        await handle(one, 1)
    await bus.close()


@pytest.mark.parametrize("place", KEPT, indirect=True)
async def test_a_sequence_is_never_given_again(place: BusPlace) -> None:
    bus = place.open()
    one = await bus.subscribe(">", "group")
    (first,) = await bus.publish([event()])
    await handle(one, 1)
    await pass_(bus, place, 8 * DAY_S)
    await bus.close()
    bus = place.open()
    (second,) = await bus.publish([event(id="b")])
    assert second.sequence > first.sequence
    assert await handle(await bus.subscribe(">", "group"), 1) == ["b"]
    await bus.close()
