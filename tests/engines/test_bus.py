"""The contract of the bus port, kept by every engine: what is published, handed out and settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshd.engines.bus_event import matcher
from meshd.engines.bus_port import Bus, Event, EventMalformed, Verdict
from meshd.engines.port import StoreClosed, StoreFull
from tests.engines.buses import BUS_PLACES, START_S, TERMS, BusPlace, bus_place, event, handle, is_waiting, quiet, take

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


async def test_an_event_arrives_as_it_was_published(bus: Bus) -> None:
    whole = Event(
        "task.done", "me", "e1", "task.completed", "run/7", 1_700_000_000_123_456_789, "text/plain", "urn:schema",
        b"\x00\xff data", "mesh://state/report@7", "key", "workflow", "cause", "ignored", {"tone": "höflich"}, b"token",
    )  # fmt: skip
    one = await bus.subscribe("task.done", "group")
    (published,) = await bus.publish([whole])
    assert (published.id, published.is_duplicate) == ("e1", False)
    assert len(published.sequence) == 20
    assert published.sequence.isdigit()
    delivery = await one.next()
    assert {name: getattr(delivery.event, name) for name in Event.__struct_fields__} == {
        **{name: getattr(whole, name) for name in Event.__struct_fields__},
        "sequence": published.sequence,
    }
    assert (delivery.attempt, delivery.may_have_been_handled, delivery.token) == (1, False, b"token")


async def test_what_is_left_empty_is_filled_in(bus: Bus) -> None:
    one = await bus.subscribe("task.done", "group")
    published = await bus.publish([event(), event()])
    got = (await one.next()).event
    assert (got.type, got.data_content_type, got.time_ns) == ("task.done", "application/json", int(START_S * 1e9))
    assert got.id == published[0].id != published[1].id
    assert len(got.id) == 32


async def test_sequences_grow(bus: Bus) -> None:
    published = await bus.publish([event() for _ in range(12)]) + await bus.publish([event("other")])
    sequences = [one.sequence for one in published]
    assert sequences == sorted(set(sequences))
    assert await bus.publish([]) == []


async def test_the_same_source_and_id_is_the_same_event(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    first, again = await bus.publish([event(id="a", data=b"1"), event(id="a", data=b"2")])
    assert again == (first.id, first.sequence, True)
    assert await bus.publish([event("elsewhere", id="a")]) == [again]
    (other,) = await bus.publish([Event("task.done", "somebody-else", "a")])
    assert not other.is_duplicate
    assert [one.event.data for one in await take(one, 2)] == [b"1", b""]
    assert await is_waiting(bus, one)


async def test_a_settled_event_is_still_the_same_event(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a")])
    await handle(one, 1)
    assert (await bus.publish([event(id="a")]))[0].is_duplicate
    assert await is_waiting(bus, one)


async def test_a_group_begins_now_or_with_the_oldest(bus: Bus) -> None:
    await bus.publish([event(id="before")])
    late = await bus.subscribe(">", "late")
    early = await bus.subscribe(">", "early", starts_at_oldest=True)
    await bus.publish([event(id="after")])
    assert await handle(late, 1) == ["after"]
    assert await handle(early, 2) == ["before", "after"]
    # Of a group that is there already it is not asked again.
    again = await bus.subscribe(">", "late", starts_at_oldest=True)
    assert await is_waiting(bus, late, early, again)


async def test_every_group_gets_every_event_and_its_subscribers_share_them(bus: Bus) -> None:
    pair = [await bus.subscribe(">", "pair") for _ in range(2)]
    single = await bus.subscribe(">", "single")
    other_topic = await bus.subscribe("task.*", "pair")
    await bus.publish([event(id=str(number)) for number in range(4)])
    got = [(await pair[number % 2].next()).event.id for number in range(4)]
    assert got == ["0", "1", "2", "3"]
    assert await is_waiting(bus, *pair)
    assert await handle(single, 4) == got
    # The same name with another topic is another group.
    assert await handle(other_topic, 4) == got


async def test_nothing_is_handed_out_that_nobody_waits_for(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event() for _ in range(9)])
    await quiet(bus)
    assert (await bus.positions())[0].under_way == 0
    await take(one, 2)
    assert (await bus.positions())[0].under_way == 2


async def test_who_waits_is_woken_by_what_is_published(bus: Bus, place: BusPlace) -> None:
    subscribers = [await bus.subscribe("task.*", "group") for _ in range(3)]
    waiting = [asyncio.ensure_future(one.next()) for one in subscribers]
    await quiet(bus)
    await bus.publish([event("other")])
    await quiet(bus)
    assert not any(one.done() for one in waiting)
    await bus.publish([event(id="1"), event(id="2")])
    await quiet(bus)
    await bus.publish([event(id="3")])
    got = [one.event.id for one in await asyncio.gather(*waiting)]
    # Who waits longest at one sidecar goes first there.
    assert (sorted(got) if place.sidecars > 1 else got) == ["1", "2", "3"]


async def test_many_at_once_handle_each_event_once(bus: Bus) -> None:
    subscribers = [await bus.subscribe("task.>", "group") for _ in range(4)]
    handled: list[str] = []
    everything = asyncio.Event()

    async def work(number: int) -> None:
        one = subscribers[number % 4]
        while True:
            delivery = await one.next()
            assert await one.settle(delivery, Verdict.SUCCESS)
            handled.append(delivery.event.id)
            if len(handled) == 600:
                everything.set()

    workers = [asyncio.ensure_future(work(number)) for number in range(16)]
    await asyncio.gather(
        *(
            bus.publish([event(f"task.{batch}", id=f"{batch}/{number}", partition_key=str(number % 7))])
            for batch in range(20)
            for number in range(30)
        )
    )
    await everything.wait()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert len(set(handled)) == 600
    assert (await bus.positions())[0][3:6] == (0, 0, 0)


PATTERNS = (
    ("task", ["task"], ["task.a", "tasks", "Task"]),
    ("*", ["task", "a-b_9"], ["task.a"]),
    ("task.*", ["task.a"], ["task", "task.a.b", "other.a"]),
    ("*.done", ["task.done"], ["done", "task.sub.done"]),
    ("task.*.done", ["task.a.done"], ["task.done", "task.a.b.done"]),
    ("task.>", ["task.a", "task.a.b.c"], ["task", "tasks.a"]),
    ("*.>", ["a.b", "a.b.c"], ["a"]),
    (">", ["a", "a.b.c"], []),
)


async def test_wildcards(bus: Bus, subtests: pytest.Subtests) -> None:
    for pattern, yes, no in PATTERNS:
        with subtests.test(pattern=pattern):
            one = await bus.subscribe(pattern, "group")
            await bus.publish([event(topic) for topic in no + yes])
            assert [delivery.event.topic for delivery in await take(one, len(yes))] == yes
            assert await is_waiting(bus, one)
            assert [topic for topic in yes + no if matcher(pattern)(topic)] == yes


NO_EVENTS: tuple[tuple[str, dict[str, object]], ...] = (
    *(("topic", {"topic": topic}) for topic in ("", ".", "a..b", "a.", "a b", "ä", "a.*", ">", "a/b", "a\n")),
    ("topic", {"topic": "x" * 256}),
    ("source", {"source": ""}),
    ("source", {"source": "x" * 1025}),
    ("id", {"id": "x" * 1025}),
    ("subject", {"subject": "\ud800"}),
    ("partition_key", {"partition_key": "x" * 1025}),
    ("data", {"data": bytes(2**20 + 1)}),
    ("token", {"token": bytes(16 * 1024 + 1)}),
    ("time", {"time_ns": -1}),
    ("time", {"time_ns": 2**63}),
    ("extensions", {"extensions": {"Upper": ""}}),
    ("extensions", {"extensions": {"": ""}}),
    ("extensions", {"extensions": {"x" * 21: ""}}),
    ("extensions", {"extensions": {"a": "x" * 4097}}),
    ("extensions", {"extensions": {"a": "\udfff"}}),
    ("extensions", {"extensions": {"data": "x"}}),
    ("extensions", {"extensions": {"id": "x"}}),
    ("extensions", {"extensions": {"a": "\x7f"}}),
    ("id", {"id": "\x00"}),
    ("subject", {"subject": "a\nb"}),
    ("type", {"type": "a\ufdd0"}),
    ("source", {"source": "a b"}),
    ("source", {"source": "a/%zz"}),
    ("source", {"source": "é"}),
    ("data_schema", {"data_schema": "<x>"}),
    ("data_ref", {"data_ref": "no uri"}),
    ("data_content_type", {"data_content_type": "json"}),
    ("data_content_type", {"data_content_type": "a/b\r\nx: y"}),
    ("expirytime", {"extensions": {"expirytime": "tomorrow"}}),
    ("expirytime", {"extensions": {"expirytime": "2026-13-01T00:00:00Z"}}),
    ("extensions", {"extensions": {f"a{number}": "" for number in range(65)}}),
)  # fmt: skip


async def test_what_is_no_event_is_refused_and_nothing_of_its_batch_is_kept(
    bus: Bus, subtests: pytest.Subtests
) -> None:
    one = await bus.subscribe(">", "group")
    for field, bad in NO_EVENTS:
        with subtests.test(bad=str(bad)[:99]):
            with pytest.raises(EventMalformed) as told:
                await bus.publish([event(), Event(**{"topic": "task.done", "source": "me", **bad})])  # type: ignore[arg-type]
            assert told.value.field == field
            assert str(told.value).startswith(f"{field}: ")
            assert len(str(told.value)) < 300
    assert await is_waiting(bus, one)


NO_TOPICS = ("", "a.>.b", "a>", "a*", "*a", "a..*", ">.", "a b", "ü", "a." * 128, "**", ">>")


async def test_what_is_no_topic_cannot_be_subscribed_to(bus: Bus, subtests: pytest.Subtests) -> None:
    for topic in NO_TOPICS:
        with subtests.test(topic=topic):
            with pytest.raises(EventMalformed) as told:
                await bus.subscribe(topic, "group")
            assert told.value.field == "topic"
    assert await bus.positions() == []


async def test_what_is_no_group(bus: Bus, subtests: pytest.Subtests) -> None:
    for group in ("", "a b", "*", "x" * 256, "ä", "a\n", "../a"):
        with subtests.test(group=group):
            for ask in (bus.subscribe("task", group), bus.dead_letters(group), bus.redrive(group, [1])):
                with pytest.raises(EventMalformed) as told:
                    await ask
                assert told.value.field == "group"


async def test_what_is_no_time(bus: Bus, subtests: pytest.Subtests) -> None:
    one = await bus.subscribe(">", "group")
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 8 * 86_400.0):
        with subtests.test(seconds=seconds):
            with pytest.raises(EventMalformed, match="handling_time"):
                await bus.subscribe("task", "group", handling_s=seconds)
            await bus.publish([event()])
            delivery = await one.next()
            if seconds != 0.0:
                with pytest.raises(EventMalformed, match="retry_after"):
                    await one.settle(delivery, Verdict.RETRY, retry_after_s=seconds)
            assert await one.settle(delivery, Verdict.SUCCESS)


async def test_a_next_that_is_cancelled_takes_nothing(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    waiting.cancel()
    await bus.publish([event(id="a")])
    assert (await bus.positions())[0].under_way == 0
    # Cancelled at every moment of being handed out: in the end it is there, unmarked, at its first attempt.
    for moment in range(12):
        waiting = asyncio.ensure_future(one.next())
        for _ in range(moment):
            await asyncio.sleep(0)
        waiting.cancel()
        done = (await asyncio.gather(waiting, return_exceptions=True))[0]
        if not isinstance(done, BaseException):
            await one.close()
            one = await bus.subscribe(">", "group")
            break
        await quiet(bus)
        assert (await bus.positions())[0].under_way == 0
    else:
        delivery = await one.next()
        assert (delivery.attempt, delivery.may_have_been_handled) == (1, False)


async def test_a_next_that_is_cancelled_as_it_is_handed_out(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    publishing = asyncio.ensure_future(bus.publish([event(id="a")]))
    # Until the event is its subscriber's, and not yet its taker's; where another sidecar publishes, that may be before
    # it is acknowledged there.
    while not one.under_way:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    waiting.cancel()
    await publishing
    with pytest.raises(asyncio.CancelledError):
        await waiting
    delivery = await one.next()
    assert (delivery.attempt, delivery.may_have_been_handled) == (1, False)


async def test_an_attempt_of_which_nothing_is_heard_is_given_back(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a", partition_key="k"), event(id="b", partition_key="k")])
    unseen = await one.next()
    await one.give_back(unseen, is_unseen=True)
    seen = await one.next()
    assert (seen.event.id, seen.attempt, seen.may_have_been_handled) == ("a", 1, False)
    await one.give_back(seen, is_unseen=False)
    for attempt in range(2, 9):
        again = await one.next()
        assert (again.event.id, again.attempt, again.may_have_been_handled) == ("a", attempt, True)
        await one.give_back(seen, is_unseen=False)  # of an attempt that is over
        await one.give_back(again, is_unseen=False)
    (letter,) = await bus.dead_letters("group")
    assert (letter.event.id, letter.attempts) == ("a", 8)
    last = await one.next()
    assert last.event.id == "b"
    await one.settle(last, Verdict.SUCCESS)
    await one.give_back(last, is_unseen=True)
    assert await is_waiting(bus, one)


async def test_closed_means_closed(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    await bus.publish([event()])
    delivery = await one.next()
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    await bus.close()
    await bus.close()
    with pytest.raises(StoreClosed):
        await waiting
    for ask in (bus.publish([event()]), bus.subscribe(">", "group"), bus.dead_letters("group"), bus.positions(),
                bus.redrive("group", []), one.next(), one.settle(delivery, Verdict.SUCCESS)):  # fmt: skip
        with pytest.raises(StoreClosed):
            await ask


async def test_a_closed_subscription(bus: Bus) -> None:
    one = await bus.subscribe(">", "group")
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    await one.close()
    await one.close()
    with pytest.raises(StoreClosed):
        await waiting
    with pytest.raises(StoreClosed):
        await one.next()


async def test_so_many_groups_and_no_more(place: BusPlace) -> None:
    bus = place.open(TERMS._replace(groups_max=2))
    for topic in ("a", "b", "a"):
        await bus.subscribe(topic, "group")
    with pytest.raises(StoreFull, match="2 groups"):
        await bus.subscribe("c", "group")
    await bus.close()


async def test_positions(bus: Bus) -> None:
    one = await bus.subscribe("task.>", "group")
    await bus.subscribe("task.>", "another")
    published = await bus.publish([event(), event("other"), event("task.a.b")])
    await take(one, 1)
    another, group = await bus.positions()
    assert (another.group, another.topic, int(another.sequence)) == ("another", "task.>", 0)
    assert group == ("group", "task.>", group.sequence, 1, 0, 0, 0, 0)
    assert published[0].sequence <= group.sequence < published[2].sequence
