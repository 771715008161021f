"""An event that was redriven begins anew, and what is said of an attempt before that is said of none after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_kafka_journal import AnyCommand, Begin, Join, Journal, Redrive, Revive, Settle
from meshd.engines.bus_port import Bus, DeadLetter, Delivery, Subscription, Verdict
from meshd.engines.bus_shelf import LIFE
from meshd.engines.bus_terms import Terms
from tests.engines.buses import BUS_PLACES, TERMS, BusPlace, bus_place, event, handle, is_waiting, quiet

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=BUS_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


async def two_lives(bus: Bus, place: BusPlace, old: Subscription, new: Subscription) -> list[Delivery]:
    """Return the first attempt at an event, of which nothing was heard, and its first after it was redriven."""
    await bus.publish([event(id="a", partition_key="k")])
    first = await old.next()
    place.clock.move(10.0)
    last = await new.next()
    assert (last.attempt, last.may_have_been_handled) == (2, True)
    assert await new.settle(last, Verdict.RETRY)
    (letter,) = await bus.dead_letters("group")
    assert letter.attempts == 2
    assert await bus.redrive("group", [letter.id]) == 1
    again = await new.next()
    assert (again.event.id, again.attempt, again.may_have_been_handled) == ("a", 1, True)
    return [first, again]


@pytest.mark.parametrize("how", ["close", "unseen", "lost", "retry", "drop"])
async def test_what_is_said_of_an_attempt_before_is_not_said_of_one_after(place: BusPlace, how: str) -> None:
    bus = place.open(TERMS._replace(attempts_max=2))
    old, new, third = [await bus.subscribe(">", "group", handling_s=10.0) for _ in range(3)]
    first, again = await two_lives(bus, place, old, new)
    if how == "close":
        await old.close()
    elif how in ("unseen", "lost"):
        await old.give_back(first, is_unseen=how == "unseen")
    else:
        assert not await old.settle(first, Verdict(how))
    assert await is_waiting(bus, third), "somebody is at it"
    assert (await bus.positions())[0][3:6] == (1, 0, 0)
    # Its attempts are counted from 1, and its waits with them.
    assert await new.settle(again, Verdict.RETRY)
    await quiet(bus)  # other sidecars have heard when it is due
    place.clock.move(0.99)
    assert await is_waiting(bus, third)
    place.clock.move(0.01)
    second = await third.next()
    assert (second.event.id, second.attempt) == ("a", 2)
    assert await third.settle(second, Verdict.RETRY)
    (letter,) = await bus.dead_letters("group")
    assert letter.attempts == 2
    await bus.close()


@pytest.mark.parametrize("how", ["its time is over", "its subscriber leaves", "it is given back"])
async def test_a_dead_letter_of_which_no_handler_knows_is_told_once(place: BusPlace, how: str) -> None:
    bus = place.open(TERMS._replace(attempts_max=2))
    told: list[DeadLetter] = []
    bus.unheard = told.append
    one, other = [await bus.subscribe(">", "group", handling_s=10.0) for _ in range(2)]
    await bus.publish([event(id="a"), event(id="b")])
    for _ in range(2):
        # What its handler gives up itself is no news.
        assert await one.settle(await one.next(), Verdict.RETRY, retry_after_s=1000.0)
    place.clock.move(1000.0)
    last, said = await one.next(), await one.next()
    assert await one.settle(said, Verdict.RETRY)
    assert not told
    if how == "its time is over":
        place.clock.move(10.0)
    elif how == "it is given back":
        await one.give_back(last, is_unseen=False)
    else:
        await one.close()
    assert await is_waiting(bus, other)
    letters = await bus.dead_letters("group")
    assert len(letters) == 2
    assert told == [letter for letter in letters if letter.event.id == last.event.id]
    assert told[0].reason == "nothing was heard of the last attempt"
    await bus.close()


async def test_success_of_an_attempt_before_counts_and_ends_none_after(place: BusPlace) -> None:
    bus = place.open(TERMS._replace(attempts_max=2))
    old, new = [await bus.subscribe(">", "group", handling_s=10.0) for _ in range(2)]
    first, again = await two_lives(bus, place, old, new)
    await bus.publish([event(id="b", partition_key="k")])
    assert await old.settle(first, Verdict.SUCCESS)
    # Somebody is still at it, so the next of its key waits.
    assert await is_waiting(bus, old)
    waiting = asyncio.ensure_future(handle(old, 1))
    await quiet(bus)
    assert not await new.settle(again, Verdict.RETRY)
    assert await waiting == ["b"]
    await bus.close()


@pytest.mark.parametrize(("kind", "number"), [(Redrive, 1), (Revive, LIFE + 1)])
def test_what_an_older_build_wrote_into_kafka_s_journal_means_what_it_meant(
    kind: type[Redrive | Revive], number: int
) -> None:
    journal = Journal(Terms(), 1, "the bus")
    commands: list[AnyCommand] = [
        Join("one", 1, 0, 1, "group", ">", {}, 10),
        Begin("one", 2, 0, 1, 0, [1000], [(1, b"")], {0: 0}),
        Settle("one", 3, 0, 1, 0, 1, 1, Verdict.RETRY, 0, "no"),
        kind("one", 4, 0, 1, "group", [1]),
        Begin("one", 5, 0, 1, 0, [1000], [], {}),
    ]
    for offset, command in enumerate(commands):
        journal.carry_out(offset, journal.decode(journal.encode(command), offset))
    assert journal.groups[0].rows[1].attempt == number
