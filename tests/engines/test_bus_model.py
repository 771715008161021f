"""Whatever is done to a bus, an engine does what the model in memory does."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from meshd.engines.bus_port import Bus, DeadLetter, Delivery, Event, Position, Start, StartGone, Subscription, Verdict
from tests.engines.buses import BUS_PLACES, DAY_S, KEPT, TERMS, event, quiet

GROUPS = [("one", ">"), ("one", "a.*"), ("two", "a.b")]
TWO_ATTEMPTS = TERMS._replace(attempts_max=2)


class Twins(RuleBasedStateMachine):
    """The model and an engine, to which the same is done."""

    engine = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.places = [BUS_PLACES[name](Path(self.directory.name)) for name in ("memory", self.engine)]
        self.buses: list[Bus] = [place.open(TWO_ATTEMPTS) for place in self.places]
        self.subscribers: list[tuple[int, list[Subscription]]] = []
        """By group, in both buses."""
        self.deliveries: list[tuple[int, list[Delivery]]] = []

    def teardown(self) -> None:
        for bus in self.buses:
            self.runner.run(bus.close())
        self.runner.close()
        for place in self.places:
            place.remove()
        self.directory.cleanup()

    @rule(
        events=st.lists(st.tuples(*map(st.sampled_from, (["a.b", "a.c", "c"], "123456", ["", "k", "l"]))), max_size=4)
    )
    def publish(self, events: list[tuple[str, str, str]]) -> None:
        batch = [event(topic, id=id, partition_key=key) for topic, id, key in events]
        if self.places[1].knows_by_age:
            batch = [one for one in batch if not self.is_known_for_longer(one)]
        model, real = (self.runner.run(bus.publish(batch)) for bus in self.buses)
        assert model == real

    def is_known_for_longer(self, one: Event) -> bool:
        """Say whether the model knows an id only since a group has its event for longer than events are kept."""
        shelf = self.buses[0]._shelf  # type: ignore[attr-defined]
        place = shelf._known.get((one.source, one.id))
        return place is not None and shelf._kept[place].at_s <= self.places[0].clock.now_s() - TWO_ATTEMPTS.keep_s

    @precondition(lambda self: len(self.subscribers) < 6)
    @rule(group=st.integers(0, 2), starts_at_oldest=st.booleans(), handling_s=st.sampled_from([10.0, 1000.0]))
    def subscribe(self, group: int, starts_at_oldest: bool, handling_s: float) -> None:
        name, topic = GROUPS[group]
        joined = [
            self.runner.run(bus.subscribe(topic, name, starts_at_oldest=starts_at_oldest, handling_s=handling_s))
            for bus in self.buses
        ]
        self.subscribers.append((group, joined))

    @precondition(lambda self: len(self.subscribers) < 6)
    @rule(
        group=st.integers(0, 2),
        place=st.one_of(st.none(), st.integers(0, 12)),
        ago_s=st.sampled_from([-30.0, 0.0, 0.5, 10.0, 21.0, 500.0, 4 * DAY_S, 30 * DAY_S]),
    )
    def replay(self, group: int, place: int | None, ago_s: float) -> None:
        """Join a group that begins, where it is new, behind a place, or so long ago."""
        name, topic = GROUPS[group]
        start = Start(at_s=self.places[0].clock.now_s() - ago_s) if place is None else Start(after=place)
        model, real = (self.runner.run(_replayed(bus, topic, name, start)) for bus in self.buses)
        assert (model is None) == (real is None), "a place that one refuses the other refuses"
        if model is not None and real is not None:
            self.subscribers.append((group, [model, real]))

    @rule(topic=st.sampled_from([">", "a.*", "c"]), after=st.integers(0, 8), limit=st.integers(0, 4))
    def look(self, topic: str, after: int, limit: int) -> None:
        """Look at what is kept, without a group."""
        model, real = (self.runner.run(_looked(bus, topic, after, limit)) for bus in self.buses)
        assert model == real

    @precondition(lambda self: self.subscribers)
    @rule(which=st.integers(0, 5), many=st.integers(1, 3), verdict=st.sampled_from([None, *Verdict]))
    def take(self, which: int, many: int, verdict: Verdict | None) -> None:
        """Take some, and settle them at once, where there is a verdict; a retry is then due at once."""
        group, pair = self.subscribers[which % len(self.subscribers)]
        for _ in range(many):
            model, real = (self.runner.run(_next(bus, one)) for bus, one in zip(self.buses, pair, strict=True))
            assert model == real
            if model is None or real is None:
                return
            self.deliveries.append((group, [model, real]))
            if verdict is not None:
                self.settle_with(pair, [model, real], verdict, 0.0)

    def settle_with(
        self, pair: list[Subscription], deliveries: list[Delivery], verdict: Verdict, retry_after_s: float | None
    ) -> None:
        model, real = (
            self.runner.run(one.settle(delivery, verdict, retry_after_s=retry_after_s, reason=verdict.value))
            for one, delivery in zip(pair, deliveries, strict=True)
        )
        assert model == real

    @precondition(lambda self: self.deliveries and self.subscribers)
    @rule(which=st.integers(0, 20), verdict=st.sampled_from(Verdict), retry_after_s=st.sampled_from([None, 0.0, 50.0]))
    def settle(self, which: int, verdict: Verdict, retry_after_s: float | None) -> None:
        # Any delivery there ever was, by any subscriber of its group.
        group, deliveries = self.deliveries[-1 - which % len(self.deliveries)]
        pair = next((pair for of, pair in self.subscribers if of == group), None)
        if pair is not None:
            self.settle_with(pair, deliveries, verdict, retry_after_s)
            if retry_after_s == 0.0:
                self.move(0.0)  # or who waits would be told only where something else comes

    @precondition(lambda self: self.subscribers)
    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        _, pair = self.subscribers.pop(which % len(self.subscribers))
        for one in pair:
            self.runner.run(one.close())

    # Together they never come near to a boundary at which it matters when exactly what is too old is looked for.
    @rule(seconds=st.sampled_from([1.0, 20.0, 400.0, 4 * DAY_S + 1000.0]))
    def move(self, seconds: float) -> None:
        for place, bus in zip(self.places, self.buses, strict=True):
            self.runner.run(_move(place.clock.move, seconds, bus))

    @rule(group=st.sampled_from(["one", "two"]), which=st.lists(st.integers(0, 5), min_size=1, max_size=3))
    def redrive(self, group: str, which: list[int]) -> None:
        for bus in self.buses:
            letters = _sorted(self.runner.run(bus.dead_letters(group)))
            self.runner.run(bus.redrive(group, [letters[n].id for n in which if n < len(letters)]))

    @rule()
    def open_again(self) -> None:
        """Close the engine and open it; in the model that is as if every subscriber had left."""
        while self.subscribers:
            _, (model, _) = self.subscribers.pop()
            self.runner.run(model.close())
        self.runner.run(self.buses[1].close())
        self.buses[1] = self.places[1].open(TWO_ATTEMPTS)
        if self.places[1].trims_at_start:
            self.runner.run(self.buses[0]._trim_all())  # type: ignore[attr-defined]

    @invariant()
    def both_say_the_same(self) -> None:
        model, real = (self.runner.run(_state(bus)) for bus in self.buses)
        assert model == real
        self.runner.run(self.places[1].check(self.buses[1]))


async def _move(move: object, seconds: float, bus: Bus) -> None:
    move(seconds)  # type: ignore[operator]
    await quiet(bus)


async def _next(bus: Bus, one: Subscription) -> Delivery | None:
    asked = asyncio.ensure_future(one.next())
    await quiet(bus)
    if asked.done():
        return asked.result()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    return None


async def _replayed(bus: Bus, topic: str, group: str, start: Start) -> Subscription | None:
    try:
        return await bus.subscribe(topic, group, start=start, handling_s=1000.0)
    except StartGone:
        return None


async def _looked(bus: Bus, topic: str, after: int, limit: int) -> object:
    topics = [(one.topic, one.events, one.latest) for one in await bus.topics()]
    return topics, await bus.kept(topic, after, limit), await bus.behind(topic, after, limit)


async def _state(bus: Bus) -> tuple[list[Position], list[DeadLetter]]:
    positions = [one._replace(sequence="") for one in await bus.positions()]
    letters = [letter for group in ("one", "two") for letter in _sorted(await bus.dead_letters(group))]
    return positions, [letter._replace(id=0) for letter in letters]


def _sorted(letters: list[DeadLetter]) -> list[DeadLetter]:
    return sorted(letters, key=lambda letter: (letter.group, letter.topic, letter.event.sequence))


# One that syncs does the same, later.
# A guard against what never ends. Where the two differ, hypothesis looks for a shorter way there for five minutes.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", [name for name in KEPT if name != "durable"])
def test_an_engine_does_what_the_model_does(engine: str) -> None:
    class Named(Twins):
        pass

    Named.engine = engine
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Named,
        settings=settings(
            max_examples=BUS_PLACES[engine].examples, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )
