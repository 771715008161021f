"""The contract of the bus port: attempts, retries, order within a key, dead letters, and what nobody was heard of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_port import Bus, EventMalformed, Verdict
from meshd.engines.bus_terms import Terms
from tests.engines.buses import BUS_PLACES, KEPT, BusPlace, bus_place, event, fail, handle, is_waiting, quiet, take

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=BUS_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusPlace]:
    with bus_place(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def bus(place: BusPlace) -> AsyncIterator[Bus]:
    one = place.open()
    yield one
    await one.close()


async def test_success_is_said_once(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    delivery = await one.next()
    assert await one.settle(delivery, Verdict.SUCCESS)
    for verdict in Verdict:
        assert not await one.settle(delivery, verdict)
    place.clock.move(86_400.0)
    assert await is_waiting(bus, one)


async def test_a_retry_waits_for_a_bound_that_doubles(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    for number, bound_s in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), 1):
        delivery = await one.next()
        assert (delivery.attempt, delivery.may_have_been_handled) == (number, False)
        assert await one.settle(delivery, Verdict.RETRY)
        place.clock.move(bound_s - 0.01)
        assert await is_waiting(bus, one)
        place.clock.move(0.01)


async def test_who_waits_is_woken_when_a_retry_is_due(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    await one.settle(await one.next(), Verdict.RETRY, retry_after_s=10.0)
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    place.clock.move(9.99)
    await quiet(bus)
    assert not waiting.done()
    place.clock.move(0.01)
    assert (await waiting).attempt == 2


async def test_who_waits_already_is_woken_when_another_s_retry_is_due(bus: Bus, place: BusPlace) -> None:
    one, other = [await bus.subscribe(">", "group", handling_s=1000.0) for _ in range(2)]
    await bus.publish([event()])
    delivery = await one.next()
    waiting = asyncio.ensure_future(other.next())
    await quiet(bus)
    await one.settle(delivery, Verdict.RETRY, retry_after_s=10.0)
    await quiet(bus)
    place.clock.move(10.0)
    await quiet(bus)
    assert waiting.done()
    assert (await waiting).attempt == 2


def test_the_wait_is_drawn_from_the_whole_bound() -> None:
    for chance in (0.0, 0.25, 0.999):
        terms = Terms(chance=lambda chance=chance: chance)  # type: ignore[misc]
        assert [terms.retry_s(attempt) / 1.0 for attempt in (1, 2, 9, 10, 11, 1000)] == [
            chance * bound_s for bound_s in (1.0, 2.0, 256.0, 300.0, 300.0, 300.0)
        ]
    assert {round(Terms().retry_s(5), 6) for _ in range(50)} != {16.0}


async def test_a_handler_says_how_long_to_wait(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a"), event(id="b")])
    first, second = await take(one, 2)
    await one.settle(first, Verdict.RETRY, retry_after_s=1000.0)
    await one.settle(second, Verdict.RETRY, retry_after_s=0.0)
    assert await handle(one, 1) == ["b"]
    place.clock.move(999.0)
    assert await is_waiting(bus, one)
    place.clock.move(1.0)
    assert (await one.next()).event.id == "a"


async def test_after_the_last_attempt_it_is_a_dead_letter_and_never_both(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe("task.*", "group")
    await bus.publish([event(id="a", data=b"data", extensions={"x": "y"})])
    await fail(one, place.clock, range(1, 8))
    assert await bus.dead_letters("group") == []
    await fail(one, place.clock, (8,), reason="no\ud800 and " + "x" * 2000)
    assert await is_waiting(bus, one)
    (letter,) = await bus.dead_letters("group")
    assert (letter.group, letter.topic, letter.attempts) == ("group", "task.*", 8)
    assert (letter.event.id, letter.event.data, letter.event.extensions) == ("a", b"data", {"x": "y"})
    assert letter.reason.startswith("no? and xxx")
    assert len(letter.reason) == 1000
    assert letter.died_s == place.clock.now_s() - 300.0
    assert (await bus.positions())[0][3:6] == (0, 0, 1)
    assert await bus.dead_letters("another") == []


async def test_dead_letters_are_paged_and_redriven(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=str(number)) for number in range(3)])
    for _ in range(8):
        for delivery in await take(one, 3):
            await one.settle(delivery, Verdict.RETRY)
        place.clock.move(300.0)
    letters = await bus.dead_letters("group")
    assert [letter.event.id for letter in letters] == ["0", "1", "2"]
    assert await bus.dead_letters("group", after=letters[0].id, limit=1) == letters[1:2]
    ids = [letter.id for letter in letters]
    assert await bus.redrive("another", ids) == 0
    assert await bus.redrive("group", [ids[2] + 1, -1, 2**62]) == 0
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    assert await bus.redrive("group", [ids[1], ids[1], ids[2]]) == 2
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("1", 1, False)
    assert await one.settle(delivery, Verdict.SUCCESS)
    await fail(one, place.clock, range(1, 9))
    assert [letter.event.id for letter in await bus.dead_letters("group")] == ["0", "2"]
    assert await is_waiting(bus, one)


async def test_numbers_that_no_dead_letter_has(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    for _ in range(8):
        await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)
    (letter,) = await bus.dead_letters("group")
    for after in (-1, 2**62, 2**63, 2**70):
        for asked in (bus.dead_letters("group", after), bus.kept(">", after)):
            with pytest.raises(EventMalformed, match="after"):
                await asked
    assert await bus.redrive("group", [2**70, 2**63, -1, 0, letter.id, letter.id]) == 1


async def test_dropped_is_gone_and_counted(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(), event()])
    for delivery in await take(one, 2):
        assert await one.settle(delivery, Verdict.DROP, reason="not wanted")
    place.clock.move(86_400.0)
    assert await is_waiting(bus, one)
    assert (await bus.positions())[0].dropped == 2
    assert await bus.dead_letters("group") == []


async def test_a_handler_that_takes_too_long(bus: Bus, place: BusPlace) -> None:
    slow = await bus.subscribe(">", "group", handling_s=10.0)
    other = await bus.subscribe(">", "group", handling_s=10.0)
    await bus.publish([event()])
    late = await slow.next()
    waiting = asyncio.ensure_future(other.next())
    await quiet(bus)
    place.clock.move(9.99)
    await quiet(bus)
    assert not waiting.done()
    place.clock.move(0.01)
    again = await waiting
    assert (again.event.id, again.attempt, again.may_have_been_handled) == (late.event.id, 2, True)
    # Too late to ask for anything but that it is done.
    assert not await slow.settle(late, Verdict.RETRY)
    assert not await slow.settle(late, Verdict.DROP)
    assert await other.settle(again, Verdict.RETRY)
    place.clock.move(300.0)
    third = await other.next()
    assert third.may_have_been_handled
    assert await other.settle(third, Verdict.SUCCESS)


async def test_success_counts_even_when_it_is_late(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=10.0)
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    late = await one.next()
    place.clock.move(10.0)
    again = await one.next()
    assert again.event.id == "a"
    assert await one.settle(late, Verdict.SUCCESS)
    assert not await one.settle(late, Verdict.SUCCESS)
    # Somebody is still at it, so the next of its key waits; then it is done, whatever they say.
    assert await is_waiting(bus, one)
    assert not await one.settle(again, Verdict.RETRY)
    assert await handle(one, 1) == ["b"]
    place.clock.move(86_400.0)
    assert await is_waiting(bus, one)


async def test_success_that_is_late_while_its_retry_waits(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=10.0)
    await bus.publish([event()])
    late = await one.next()
    place.clock.move(10.0)
    again = await one.next()
    await one.settle(again, Verdict.RETRY)
    assert await one.settle(late, Verdict.SUCCESS)
    place.clock.move(300.0)
    assert await is_waiting(bus, one)


async def test_late_success_and_then_nothing_is_heard_of_the_second_attempt(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=10.0)
    other = await bus.subscribe(">", "group", handling_s=10.0)
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    late = await one.next()
    place.clock.move(10.0)
    await other.next()
    assert await one.settle(late, Verdict.SUCCESS)
    await other.close()
    assert await handle(one, 1) == ["b"]
    place.clock.move(10.0)
    assert await is_waiting(bus, one)


async def test_handlers_that_never_answer_make_a_dead_letter(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group", handling_s=10.0)
    await bus.publish([event()])
    for number in range(1, 9):
        assert (await one.next()).attempt == number
        place.clock.move(10.0)
    assert await is_waiting(bus, one)
    (letter,) = await bus.dead_letters("group")
    assert (letter.attempts, letter.reason) == (8, "nothing was heard of the last attempt")
    # It may have been handled, and that is still said when it is tried again.
    assert await bus.redrive("group", [letter.id]) == 1
    assert (await one.next()).may_have_been_handled


async def test_what_a_closed_subscriber_had_goes_to_others_at_once(bus: Bus) -> None:
    gone = await bus.subscribe(">", "group")
    other = await bus.subscribe(">", "group")
    await bus.publish([event(id="a"), event(id="b"), event(id="c")])
    first, *_ = await take(gone, 3)
    await gone.settle(first, Verdict.SUCCESS)
    waiting = asyncio.ensure_future(other.next())
    await quiet(bus)
    await gone.close()
    delivery = await waiting
    assert (delivery.event.id, delivery.attempt, delivery.may_have_been_handled) == ("b", 2, True)
    assert (await other.next()).event.id == "c"
    assert await is_waiting(bus, other)


async def test_one_key_is_handled_one_after_the_other(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    names = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("n1", ""), ("a3", "a"), ("n2", ""), ("b2", "b")]
    await bus.publish([event(id=name, partition_key=key) for name, key in names])
    got = {delivery.event.id: delivery for delivery in await take(one, 4)}
    assert set(got) == {"a1", "b1", "n1", "n2"}
    assert await is_waiting(bus, one)
    # Waiting for its retry it holds its key up as well, and nobody else's.
    await one.settle(got["a1"], Verdict.RETRY)
    await one.settle(got["n1"], Verdict.RETRY)
    await one.settle(got["b1"], Verdict.DROP)
    assert await handle(one, 1) == ["b2"]
    assert await is_waiting(bus, one)
    assert (await bus.positions())[0].waiting == 4
    place.clock.move(1.0)
    assert [delivery.event.id for delivery in await take(one, 2)] == ["a1", "n1"]
    assert await is_waiting(bus, one)


async def test_a_settled_event_lets_the_next_of_its_key_go_to_who_waits(bus: Bus) -> None:
    one, other = [await bus.subscribe(">", "group") for _ in range(2)]
    await bus.publish([event(id=str(number), partition_key="k") for number in range(4)])
    delivery = await one.next()
    for number in range(1, 4):
        waiting = asyncio.ensure_future(other.next())
        await quiet(bus)
        assert not waiting.done()
        await one.settle(delivery, Verdict.SUCCESS)
        delivery = await waiting
        assert delivery.event.id == str(number)
        one, other = other, one


async def test_a_dead_letter_lets_the_next_of_its_key_go_on_and_comes_back_behind_it(bus: Bus, place: BusPlace) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key="k") for name in "abc"])
    await fail(one, place.clock, range(1, 9))
    second = await one.next()
    assert second.event.id == "b"
    (letter,) = await bus.dead_letters("group")
    await bus.redrive("group", [letter.id])
    assert await is_waiting(bus, one)
    await one.settle(second, Verdict.SUCCESS)
    assert await handle(one, 2) == ["a", "c"]


async def test_order_holds_in_each_group_on_its_own(bus: Bus) -> None:
    one, other = await bus.subscribe(">", "one"), await bus.subscribe(">", "other")
    await bus.publish([event(id=name, partition_key="k") for name in "ab"])
    assert (await one.next()).event.id == "a"
    assert await handle(other, 2) == ["a", "b"]


async def test_a_long_queue_behind_one_key_holds_up_nobody_else(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=f"k{number}", partition_key="k") for number in range(4500)] + [event(id="free")])
    assert [delivery.event.id for delivery in await take(one, 2)] == ["k0", "free"]


async def test_a_rare_topic_is_found_behind_many_others(bus: Bus) -> None:
    one = await bus.subscribe("rare", "group")
    await bus.publish([event("common") for _ in range(4500)])
    await bus.publish([event("rare", id="found")])
    assert await handle(one, 1) == ["found"]


@pytest.mark.parametrize("place", KEPT, indirect=True)
async def test_what_is_settled_stays_so_and_the_rest_is_marked_when_it_is_opened_again(place: BusPlace) -> None:
    bus = place.open()
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key=name[0]) for name in ("a", "b", "c", "d", "a2")])
    done, retried, dropped, begun = await take(one, 4)
    await one.settle(done, Verdict.SUCCESS)
    await one.settle(retried, Verdict.RETRY)
    await one.settle(dropped, Verdict.DROP)
    await bus.close()
    assert begun.event.id == "d"

    bus = place.open()
    assert (await bus.publish([event(id="a")]))[0].is_duplicate
    one = await bus.subscribe(">", "group")
    found = await take(one, 2)
    assert [(each.event.id, each.attempt, each.may_have_been_handled) for each in found] == [
        ("d", 2, True),
        ("a2", 1, False),
    ]
    assert await is_waiting(bus, one)
    place.clock.move(1.0)
    again = await one.next()
    assert (again.event.id, again.attempt, again.may_have_been_handled) == ("b", 2, False)
    assert (await bus.positions())[0].dropped == 1
    await bus.close()


@pytest.mark.parametrize("place", KEPT, indirect=True)
async def test_a_daemon_that_dies_of_an_event_dies_of_it_eight_times(place: BusPlace) -> None:
    for number in range(1, 9):
        bus = place.open()
        one = await bus.subscribe(">", "group")
        if number == 1:
            await bus.publish([event()])
        assert (await one.next()).attempt == number
        await bus.close()
    bus = place.open()
    assert await is_waiting(bus, await bus.subscribe(">", "group"))
    assert [letter.attempts for letter in await bus.dead_letters("group")] == [8]
    await bus.close()


@pytest.mark.parametrize("place", KEPT, indirect=True)
@pytest.mark.parametrize("back_s", [3600.0, 10 * 365 * 86_400.0])
async def test_a_clock_that_was_set_back(place: BusPlace, back_s: float) -> None:
    bus = place.open()
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a"), event(id="b")])
    first, _ = await take(one, 2)
    await one.settle(first, Verdict.RETRY, retry_after_s=60.0)
    await bus.close()
    place.clock.move(-back_s)
    bus = place.open()
    one = await bus.subscribe(">", "group")
    assert (await one.next()).event.id == "b"
    place.clock.move(60.0)
    assert (await one.next()).event.id == "a"
    await bus.close()
    # Nor is anything kept for longer than it would have been.
    bus = place.open()
    await bus.positions()
    place.clock.move(8 * 86_400.0)
    await quiet(bus)
    assert (await bus.positions())[0].expired == 2
    assert await is_waiting(bus, await bus.subscribe(">", "group"))
    await bus.close()
