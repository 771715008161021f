"""Throttle: the limit falls once a round trip and grows when somebody finds no room; a Retry-After has an end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshd.filters.concurrency_settings import ConcurrencySettings
from meshd.filters.throttle import CALM_S, HELD_S_MAX, Throttle
from meshd.outcome import Fault, Outcome
from tests.filters.calls import outcome


def settings(**fields: object) -> ConcurrencySettings:
    return ConcurrencySettings.model_validate({"max": 64, **fields})


def fill(one: Throttle, count: int | None = None) -> list[int]:
    """Admit as many as there is room for, or so many; return their epochs."""
    epochs = []
    while one.in_flight < one.room if count is None else len(epochs) < count:
        one.in_flight += 1
        epochs.append(one.epoch)
    return epochs


def end(
    one: Throttle, epoch: int, status: int = 200, now_s: float = 0.0, taken_s: float = 1.0, **fields: object
) -> None:
    one.in_flight -= 1
    ended = outcome(status, now_s=now_s, **fields)  # type: ignore[arg-type]
    ended.taken_s = taken_s
    one.ended(epoch, ended, 0.0)


def trip(one: Throttle, capacity: int, now_s: float) -> int:
    """A round trip at an upstream that takes `capacity` at once: return how many it refused."""
    epochs = fill(one)
    one.press()  # there are always more
    refused = max(len(epochs) - capacity, 0)
    for number, epoch in enumerate(epochs):
        end(one, epoch, 429 if number < refused else 200, now_s)
    return refused


def test_whoever_is_never_told_to_slow_down_is_never_slowed_down() -> None:
    one = Throttle(settings())
    for number in range(1000):
        for epoch in fill(one, 60):
            end(one, epoch, 503 if number % 7 == 0 else 200)
        assert (one.limit, one.room, one.is_strained, one.in_flight) == (64, 64, False, 0)


def test_one_that_says_within_its_answer_that_it_is_full_is_sent_less() -> None:
    one = Throttle(settings())
    (epoch, *_) = fill(one)
    one.in_flight -= 1
    ended = outcome(200, is_terminal=False)
    ended.error_status = 529
    one.ended(epoch, ended, 0.0)
    assert one.limit == pytest.approx(64 * 0.95)


@pytest.mark.parametrize("status", [429, 529])
def test_a_refusal_takes_a_twentieth_of_what_was_out(status: int) -> None:
    one = Throttle(settings())
    epochs = fill(one, 20)
    end(one, epochs[0], status)
    assert one.limit == pytest.approx(19.0)
    assert (one.room, one.is_strained) == (19, True)


@pytest.mark.parametrize(
    ("status", "fault"), [(503, Fault.NONE), (500, Fault.NONE), (404, Fault.NONE), (0, Fault.RESET)]
)
def test_what_is_no_sign_of_overload_takes_nothing(status: int, fault: Fault) -> None:
    one = Throttle(settings())
    for epoch in fill(one, 20):
        end(one, epoch, status, fault=fault)
    assert one.limit == 64


def test_a_burst_is_one_round_trip() -> None:
    one = Throttle(settings())
    epochs = fill(one, 60)
    for epoch in epochs:
        end(one, epoch, 429)
    # All were refused: half, and not 0.95 to the sixtieth.
    assert one.limit == pytest.approx(30.0)
    assert one.epoch == 1
    late = fill(one, 4)
    end(one, late[0], 429)
    assert one.epoch == 2


def test_a_few_of_a_burst_take_a_few() -> None:
    one = Throttle(settings())
    epochs = fill(one, 40)
    for epoch in epochs[:7]:
        end(one, epoch, 429)
    assert one.limit == pytest.approx(40 * 0.95 - 6)


def test_a_refusal_of_long_ago_says_nothing() -> None:
    one = Throttle(settings())
    epochs = fill(one, 40)
    end(one, epochs[0], 429)
    end(one, fill(one, 1)[0], 429)
    limit = one.limit
    end(one, epochs[1], 429)  # two round trips back
    assert one.limit == limit


def test_it_grows_by_one_a_round_trip_while_it_is_in_use() -> None:
    one = Throttle(settings())
    for epoch in fill(one, 60):
        end(one, epoch, 429)
    before = one.limit
    for _ in range(5):
        trip(one, 1000, 1.0)
    assert one.limit == pytest.approx(before + 5, abs=0.2)
    for epoch in fill(one):
        end(one, epoch, now_s=1.0)
    limit = one.limit
    for _ in range(100):
        for epoch in fill(one, 3):
            end(one, epoch, now_s=1.0)
    assert one.limit == limit  # never in use


def test_near_to_what_was_too_much_it_grows_slowly() -> None:
    one = Throttle(settings())
    refused = sum(trip(one, 16, 1.0) for _ in range(400))
    assert 15 <= one.limit <= 17.1
    # Four hundred round trips of sixteen: the way down from 64, and then one in some five trips.
    assert refused < 70 + 400 / 4


@pytest.mark.parametrize("capacity", [1, 3, 10, 40])
def test_it_finds_the_capacity_and_stays_within_a_tenth_of_it(capacity: int) -> None:
    one = Throttle(settings())
    for _ in range(60):
        trip(one, capacity, 1.0)
    done = sum(min(fill_then_end(one, capacity), capacity) for _ in range(200))
    assert done >= 0.9 * 200 * capacity


def fill_then_end(one: Throttle, capacity: int) -> int:
    before = one.room
    trip(one, capacity, 2.0)
    return before


def test_it_follows_a_capacity_that_rises() -> None:
    one = Throttle(settings())
    for _ in range(60):
        trip(one, 8, 1.0)
    for _ in range(60):
        trip(one, 32, 1.0)
    assert one.limit > 28


def test_what_was_too_much_is_forgotten_after_a_while() -> None:
    one = Throttle(settings())
    for _ in range(3):
        for epoch in fill(one):
            end(one, epoch, 429, 0.0)
    assert one.limit == pytest.approx(8.0)
    for _ in range(3):
        trip(one, 1000, CALM_S + 1.0)
    assert one.limit == pytest.approx(64.0)
    assert not one.is_strained


def test_a_while_is_four_round_trips_where_those_are_long() -> None:
    one = Throttle(settings())
    for epoch in fill(one):
        end(one, epoch, taken_s=60.0)
    trip(one, 32, 0.0)
    limit = one.limit
    one.press()
    end(one, fill(one, 1)[0], now_s=CALM_S + 1.0)
    assert one.limit < limit + 1.0
    end(one, fill(one, 1)[0], now_s=4 * 60.0 + 1.0)
    assert one.limit >= limit + 1.0


def test_it_neither_falls_below_its_least_nor_grows_above_its_most() -> None:
    one = Throttle(settings(min=4, max=16))
    for _ in range(20):
        for epoch in fill(one):
            end(one, epoch, 429)
    assert (one.limit, one.room) == (4, 4)
    for _ in range(200):
        trip(one, 1000, 0.0)
    assert (one.limit, one.room) == (16, 16)


def test_a_limit_that_is_not_adaptive_stays() -> None:
    one = Throttle(settings(adaptive=False))
    for epoch in fill(one):
        end(one, epoch, 429)
    assert one.limit == 64


def test_without_settings_nothing_is_limited() -> None:
    one = Throttle(None)
    for epoch in fill(one, 5000):
        end(one, epoch, 429, retry_after_s=60.0)
    assert not one.is_strained
    assert one.in_flight < one.room


def test_a_new_policy_keeps_what_was_learnt() -> None:
    one = Throttle(settings())
    for epoch in fill(one, 20):
        end(one, epoch, 429)
    assert one.limit == pytest.approx(10.0)
    one.adopt(settings(max=128))
    assert one.limit == pytest.approx(10.0)
    one.adopt(settings(max=8))
    assert one.room == 8
    one.adopt(settings(max=200))
    assert one.room == 200  # it was at its most
    one.adopt(settings(max=32, adaptive=False))
    assert one.room == 32
    one.adopt(None)
    assert one.room > 1e9


# ---------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_retry_after_closes_the_door_until_then(status: int) -> None:
    one = Throttle(settings())
    end(one, fill(one, 1)[0], status, 100.0, retry_after_s=7.0)
    assert (one.room, one.held_until_s, one.held_status) == (0, 107.0, status)
    assert not one.wakes(106.9)
    assert one.wakes(107.0)
    assert one.held_until_s == 0
    assert one.room >= 1


def test_the_longer_of_two_holds_and_a_success_lifts_neither() -> None:
    one = Throttle(settings())
    epochs = fill(one, 3)
    end(one, epochs[0], 429, 0.0, retry_after_s=9.0)
    end(one, epochs[1], 429, 1.0, retry_after_s=2.0)
    end(one, epochs[2], 200, 2.0)
    assert one.held_until_s == 9.0
    assert one.room == 0


@pytest.mark.parametrize("asked_s", [1e9, math.inf])
def test_a_retry_after_of_years_is_not_believed(asked_s: float) -> None:
    one = Throttle(settings())
    end(one, fill(one, 1)[0], 429, 100.0, retry_after_s=asked_s)
    assert one.held_until_s == 100.0 + HELD_S_MAX


@pytest.mark.parametrize("asked_s", [0.0, -5.0, math.nan, -math.inf])
def test_a_retry_after_that_is_no_time_is_none(asked_s: float) -> None:
    one = Throttle(settings())
    end(one, fill(one, 1)[0], 429, 100.0, retry_after_s=asked_s)
    assert one.held_until_s == 0
    assert one.room >= 1


def test_those_that_were_held_together_do_not_come_back_together() -> None:
    one = Throttle(settings())
    one.ended(0, outcome(429, now_s=0.0, retry_after_s=10.0), 1.0)
    assert one.held_until_s == pytest.approx(11.0)


# ---------------------------------------------------------------------- what attempts take


def test_how_long_one_will_wait_is_known_by_what_attempts_took() -> None:
    one = Throttle(settings(max=4))
    assert (one.wait_s(0.0), one.least_s) == (0.0, 0.0)
    for epoch in fill(one, 4) * 20:
        one.in_flight = 4
        end(one, epoch, taken_s=2.0)
    one.in_flight = 4
    assert one.wait_s(0.0) == pytest.approx(0.5)  # four places, two seconds each
    one.waiting.extend([1, 2, 3])
    assert one.wait_s(0.0) == pytest.approx(2.0)
    assert one.least_s == pytest.approx(2.0, abs=0.05)


def test_times_that_scatter_promise_nothing() -> None:
    one = Throttle(settings(max=4))
    for number, epoch in enumerate(fill(one, 4) * 20):
        one.in_flight = 4
        end(one, epoch, taken_s=0.1 if number % 2 else 20.0)
    one.in_flight = 4
    assert one.least_s == 0.0
    assert one.wait_s(0.0) > 0


# ---------------------------------------------------------------------- whatever happens


class ThrottleMachine(RuleBasedStateMachine):
    """Admissions, ends of every sort and changes of policy in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.settings = settings(min=2, max=16)
        self.one = Throttle(self.settings)
        self.out: list[int] = []
        self.cut_in: set[int] = set()
        """Epochs whose attempts have cut the limit already."""

    @rule(pause_s=st.sampled_from([0.0, 0.1, 5.0, 31.0, 70.0]))
    def wait(self, pause_s: float) -> None:
        self.now_s += pause_s

    @rule()
    def admit(self) -> None:
        if self.one.wakes(self.now_s):
            assert len(self.out) < self.one.limit
            self.one.in_flight += 1
            self.out.append(self.one.epoch)

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        status=st.sampled_from([200, 200, 429, 503, 529, 404]),
        retry_after_s=st.none() | st.floats(allow_nan=True, allow_infinity=True),
        taken_s=st.floats(0, 100),
    )
    def end(self, data: st.DataObject, status: int, retry_after_s: float | None, taken_s: float) -> None:
        epoch = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        limit, before = self.one.limit, self.one.epoch
        end(self.one, epoch, status, self.now_s, taken_s, retry_after_s=retry_after_s)
        if self.one.epoch != before:
            assert epoch not in self.cut_in
            self.cut_in.add(epoch)
            assert self.one.limit <= max(limit * 0.95, 2)
        elif status == 200:
            assert limit <= self.one.limit <= limit + 1
        else:
            assert limit - 1 <= self.one.limit <= limit

    @rule()
    def press(self) -> None:
        self.one.press()

    @rule(most=st.sampled_from([2, 8, 16]))
    def reload(self, most: int) -> None:
        self.settings = settings(min=2, max=most)
        self.one.adopt(self.settings)

    @invariant()
    def holds(self) -> None:
        one = self.one
        assert self.settings.min <= one.limit <= self.settings.max
        assert one.in_flight == len(self.out)
        assert one.held_until_s <= self.now_s + HELD_S_MAX * 1.1
        assert one.is_strained == (one.held_until_s > 0 or one.limit < self.settings.max)
        assert one.room == (0 if one.held_until_s else int(one.limit))
        assert one.wait_s(self.now_s) >= 0
        assert one.least_s >= 0


TestThrottleMachine = ThrottleMachine.TestCase


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1))
def test_no_time_that_an_upstream_names_breaks_it(asked_s: float, chance: float) -> None:
    one = Throttle(settings())
    ended: Outcome = outcome(429, now_s=5.0, retry_after_s=asked_s)
    one.in_flight = 0
    one.ended(0, ended, chance)
    assert one.held_until_s <= 5.0 + HELD_S_MAX * 1.1
    assert one.wakes(5.0 + HELD_S_MAX * 1.1)
