"""The queue before a throttled upstream: who is let in, in which order, and who is told at once that it is in vain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd.call import Wait
from meshd.filters.breaker import Breaker, Permit
from meshd.filters.breaker_settings import BreakerSettings
from meshd.filters.circuit import State
from meshd.filters.concurrency_settings import ConcurrencySettings
from meshd.filters.plan import Plan
from meshd.refusal import Reason, Refused
from meshd_sdk.context import Context
from tests.filters.calls import WALL_S, call, chat, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call

START_S = 1000.0


class Clock:
    """Time in the test's hand, and the timers that hang on it."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.timers: list[_Timer] = []

    def __call__(self) -> float:
        return self.now_s

    def later(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> _Timer:
        self.timers.append(_Timer(self.now_s + delay_s, callback, arguments))
        return self.timers[-1]

    def to(self, now_s: float) -> None:
        """Let time pass, with whatever is due on the way."""
        while due := [one for one in self.timers if one.due_s <= now_s and not one.is_over]:
            first = min(due, key=lambda one: one.due_s)
            self.now_s = max(self.now_s, first.due_s)
            first.is_over = True
            first.callback(*first.arguments)
        self.now_s = now_s

    @property
    def pending(self) -> int:
        return sum(not one.is_over for one in self.timers)


class _Timer:
    def __init__(self, due_s: float, callback: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.due_s = due_s
        self.callback = callback
        self.arguments = arguments
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class House:
    """A breaker, its clock, and the calls that go through it."""

    def __init__(self, **fields: Any) -> None:
        self.clock = Clock()
        self.settings = ConcurrencySettings.model_validate({"max": 2, "queue": 3, "wait": "10s", **fields})
        self.plan = Plan(breaker=BreakerSettings(), concurrency=self.settings)
        self.breaker = Breaker(lambda: 0.0, b"k" * 16, None, self.clock, self.clock.later)

    def made(self, **fields: Any) -> Call:
        one = call(ask=chat("m"), now_s=self.clock.now_s, **fields)
        one.plan = self.plan
        return one

    def admit(self, **fields: Any) -> Permit | Wait:
        decision = self.breaker.admit(self.made(**fields))
        assert decision is not None
        return decision

    def permit(self, **fields: Any) -> Permit:
        decision = self.admit(**fields)
        assert isinstance(decision, Permit)
        return decision

    async def waits(self, **fields: Any) -> asyncio.Task[Permit]:
        decision = self.admit(**fields)
        assert isinstance(decision, Wait)
        assert not decision.is_hold
        task = asyncio.ensure_future(decision.coroutine)
        await turn()
        return task

    def settle(self, permit: Permit, status: int = 200, **fields: Any) -> None:
        permit.settle(outcome(status, now_s=self.clock.now_s, **fields))

    def refusal(self, **fields: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            self.admit(**fields)
        return caught.value

    @property
    def view(self) -> tuple[int | None, int, int]:
        (view,) = self.breaker.snapshot(self.clock.now_s)
        return view.limit, view.in_flight, view.queued


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(task: asyncio.Task[Permit]) -> Refused:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value


async def test_whoever_finds_no_room_waits_and_is_let_in_in_turn() -> None:
    house = House()
    first, second = house.permit(), house.permit()
    waiting = [await house.waits() for _ in range(3)]
    assert house.view == (2, 2, 3)
    house.settle(second)
    await turn()
    assert [one.done() for one in waiting] == [True, False, False]
    assert house.view == (2, 2, 2)
    house.settle(first)
    house.settle(await waiting[0])
    await turn()
    assert [one.done() for one in waiting] == [True, True, True]
    for one in waiting[1:]:
        house.settle(await one)
    assert house.view == (2, 0, 0)
    assert house.clock.pending == 0


async def test_nobody_overtakes_those_who_wait() -> None:
    house = House(max=1)
    held = house.permit()
    first = await house.waits()
    held.settle(outcome(now_s=START_S))
    # The place is the first's, though its task has not run yet.
    second = await house.waits()
    assert first.done()
    assert not second.done()


async def test_a_full_queue_is_refused_at_once() -> None:
    house = House()
    held = [house.permit(), house.permit()]
    waiting = [await house.waits() for _ in range(3)]
    error = house.refusal()
    assert (error.reason, error.status, error.is_retryable) == (Reason.OVERLOADED, 503, True)
    assert 1 <= (error.retry_after_s or 0) <= 5
    assert "2 attempts on openai (m) are under way" in error.message
    assert "3 more wait" in error.message
    assert house.breaker.shed == {("openai", "queue_full"): 1}
    house.settle(held[0])
    await turn()
    assert waiting[0].done()
    last = await house.waits()
    for one in (*waiting[1:], last):
        one.cancel()
    await turn()
    assert house.view == (2, 2, 0)


async def test_waits_that_were_handed_out_and_not_begun_pass_no_bound() -> None:
    house = House(queue=1)
    house.permit()
    house.permit()
    decisions = [house.admit() for _ in range(3)]
    tasks = [asyncio.ensure_future(one.coroutine) for one in decisions if isinstance(one, Wait)]
    await turn()
    assert house.view == (2, 2, 1)
    assert [type(one.exception()) for one in tasks[1:]] == [Refused, Refused]
    tasks[0].cancel()
    await turn()


async def test_without_a_queue_nobody_waits() -> None:
    house = House(queue=0)
    house.permit()
    house.permit()
    assert house.refusal().reason is Reason.OVERLOADED


async def test_whoever_has_waited_for_as_long_as_may_be_is_told_so() -> None:
    house = House()
    house.permit()
    house.permit()
    task = await house.waits()
    house.clock.to(START_S + 9.9)
    await turn()
    assert not task.done()
    house.clock.to(START_S + 10.0)
    error = await refused(task)
    assert (error.reason, error.is_retryable) == (Reason.OVERLOADED, True)
    assert house.breaker.shed == {("openai", "waited"): 1}
    assert house.view == (2, 2, 0)


async def test_a_caller_that_goes_makes_room_in_the_queue() -> None:
    house = House(queue=1)
    held = house.permit()
    house.permit()
    task = await house.waits()
    task.cancel()
    await turn()
    assert house.view == (2, 2, 0)
    next_one = await house.waits()
    house.settle(held)
    house.settle(await next_one)


async def test_a_place_that_was_given_to_one_that_has_gone_goes_to_the_next() -> None:
    house = House()
    held = house.permit()
    house.permit()
    first, second = await house.waits(), await house.waits()
    house.settle(held)
    first.cancel()  # in the very moment in which it is let in
    with pytest.raises(asyncio.CancelledError):
        await first
    house.settle(await second)
    assert house.view == (2, 1, 0)


# ---------------------------------------------------------------------- deadlines


def slow(house: House, taken_s: float = 4.0) -> None:
    """Let attempts take so long here, for as long as it takes to be known."""
    for _ in range(60):
        circuit = next(iter(house.breaker._circuits.values()))
        circuit.throttle.in_flight += 1
        ended = outcome(now_s=house.clock.now_s)
        ended.taken_s = taken_s
        circuit.throttle.in_flight -= 1
        circuit.throttle.ended(0, ended, 0.0)


def within(left_s: float) -> Context:
    return Context("w", "a", deadline_s=WALL_S + left_s)


@pytest.mark.parametrize(("left_s", "is_let"), [(5.9, False), (6.1, True), (-1.0, False)])
async def test_what_could_not_be_done_within_its_deadline_is_refused_at_once(left_s: float, is_let: bool) -> None:
    house = House()
    house.permit()
    house.permit()
    slow(house)
    one = house.made()
    one.context = within(left_s)
    # Two places, four seconds each: one is free in two, and it takes four.
    if is_let:
        decision = house.breaker.admit(one)
        assert isinstance(decision, Wait)
        decision.coroutine.close()
        return
    with pytest.raises(Refused) as caught:
        house.breaker.admit(one)
    assert (caught.value.reason, caught.value.is_retryable) == (Reason.OVERLOADED, False)
    assert caught.value.retry_after_s is None
    assert house.breaker.shed == {("openai", "deadline"): 1}


async def test_what_is_not_known_yet_refuses_nobody() -> None:
    house = House()
    house.permit()
    house.permit()
    one = house.made()
    one.context = within(0.5)
    decision = house.breaker.admit(one)
    assert isinstance(decision, Wait)
    task = asyncio.ensure_future(decision.coroutine)
    await turn()
    house.clock.to(START_S + 0.5)
    assert (await refused(task)).reason is Reason.OVERLOADED


async def test_a_grpc_timeout_is_a_deadline_too() -> None:
    house = House()
    house.permit()
    house.permit()
    slow(house)
    one = house.made()
    one.timeout_s = 5.0
    with pytest.raises(Refused):
        house.breaker.admit(one)


@pytest.mark.parametrize(
    ("said", "is_let"),
    [
        (b"5.0", False),
        (b"5", False),
        (b"600", True),
        (b"nonsense", True),
        (b"-1", True),
        (b"1e3", True),
        (b"9" * 400, True),
    ],
)
async def test_a_client_that_says_how_long_it_waits_is_heard(said: bytes, is_let: bool) -> None:
    house = House()
    house.permit()
    house.permit()
    slow(house)
    one = house.made(headers=[(b"x-stainless-read-timeout", said)])
    if is_let:
        decision = house.breaker.admit(one)
        assert isinstance(decision, Wait)
        decision.coroutine.close()
    else:
        with pytest.raises(Refused):
            house.breaker.admit(one)


# ---------------------------------------------------------------------- Retry-After


async def test_while_it_is_to_be_left_alone_callers_wait_and_go_when_that_is_over() -> None:
    house = House()
    house.settle(house.permit(), 429, retry_after_s=3.0)
    tasks = [await house.waits(), await house.waits()]
    assert house.view[1:] == (0, 2)
    house.clock.to(START_S + 2.9)
    await turn()
    assert not any(task.done() for task in tasks)
    house.clock.to(START_S + 3.0)
    await turn()
    # One by one: the limit has fallen to one.
    assert [task.done() for task in tasks] == [True, False]
    house.settle(await tasks[0])
    house.settle(await tasks[1])


@pytest.mark.parametrize(
    ("status", "told"), [(429, (429, 8)), (503, (503, 14)), (529, (503, 14))], ids=["429", "503", "529"]
)
async def test_whoever_cannot_wait_that_long_is_told_so(status: int, told: tuple[int, int]) -> None:
    house = House()
    house.settle(house.permit(), status, retry_after_s=30.0)
    error = house.refusal()
    assert (error.reason, (error.status, error.grpc)) == (Reason.OVERLOADED, told)
    assert (error.is_retryable, error.retry_after_s) == (False, None)
    assert f"with status {status}" in error.message
    assert "30.0 s" in error.message
    assert house.breaker.shed == {("openai", "retry_after"): 1}
    house.clock.to(START_S + 26.0)
    one = house.made()
    one.context = Context("w", "a", deadline_s=WALL_S + 2.0)
    with pytest.raises(Refused) as caught:
        house.breaker.admit(one)
    assert (caught.value.is_retryable, caught.value.retry_after_s) == (True, 4)


async def test_a_hold_that_grows_while_callers_wait_keeps_them_waiting() -> None:
    house = House(max=4)
    early, late = house.permit(), house.permit()
    house.settle(early, 429, retry_after_s=3.0)
    task = await house.waits()
    house.clock.to(START_S + 2.0)
    house.settle(late, 429, retry_after_s=5.0)
    house.clock.to(START_S + 6.9)
    await turn()
    assert not task.done()
    house.clock.to(START_S + 7.0)
    house.settle(await task)


async def test_a_hold_that_grows_past_what_one_can_wait_is_told() -> None:
    house = House(max=4)
    early, late = house.permit(), house.permit()
    house.settle(early, 429, retry_after_s=3.0)
    task = await house.waits()
    house.settle(late, 429, retry_after_s=40.0)
    house.clock.to(START_S + 10.0)
    error = await refused(task)
    assert (error.status, error.is_retryable) == (429, False)
    assert house.breaker.shed == {("openai", "retry_after"): 1}


async def test_a_retry_is_not_held_by_the_time_at_which_its_call_began() -> None:
    house = House()
    house.settle(house.permit(), 429, retry_after_s=3.0)
    one = house.made()
    house.clock.to(START_S + 3.5)
    one.attempt = 2
    assert isinstance(house.breaker.admit(one), Permit)


# ---------------------------------------------------------------------- with the breaker


async def test_when_it_opens_those_who_wait_are_told_at_once() -> None:
    house = House(max=5)
    held = [house.permit() for _ in range(5)]
    tasks = [await house.waits() for _ in range(3)]
    for one in held:
        house.settle(one, 503)
    for task in tasks:
        assert (await refused(task)).reason is Reason.CIRCUIT_OPEN
    assert house.view == (5, 0, 0)
    assert house.breaker.turned == {("openai", "open"): 1}


async def test_one_let_in_as_it_opens_gives_its_place_back() -> None:
    house = House(max=6)
    held = [house.permit() for _ in range(6)]
    task = await house.waits()
    house.settle(held[5])  # lets the waiting one in, whose task has not run
    for one in held[:5]:
        house.settle(one, 503)
    assert (await refused(task)).reason is Reason.CIRCUIT_OPEN
    assert house.view == (6, 0, 0)


async def test_no_probe_goes_out_while_it_is_to_be_left_alone() -> None:
    house = House(max=8)
    held = [house.permit() for _ in range(5)]
    for one in held:
        house.settle(one, 503, retry_after_s=40.0)
    (view,) = house.breaker.snapshot(START_S)
    assert (view.state, view.reopens_s, view.held_s) == (State.OPEN, 40.0, 40.0)
    house.clock.to(START_S + 20.0)  # longer than a breaker stays open by itself
    assert house.refusal().reason is Reason.CIRCUIT_OPEN
    house.clock.to(START_S + 40.0)
    house.settle(house.permit())


async def test_a_probe_that_is_told_to_wait_holds_the_next() -> None:
    house = House(max=8)
    for one in [house.permit() for _ in range(5)]:
        house.settle(one, 503)
    house.clock.to(START_S + 20.0)
    house.settle(house.permit(), 429, retry_after_s=2.0)
    tasks = [await house.waits() for _ in range(2)]
    house.clock.to(START_S + 22.0)
    await turn()
    for task in tasks:
        if task.done() and task.exception() is None:
            house.settle(task.result())
    await turn()
    for task in tasks:
        assert task.done()


async def test_probes_are_not_throttled_but_counted() -> None:
    house = House(max=1, queue=0)
    for _ in range(5):
        house.settle(house.permit(), 503)
    house.clock.to(START_S + 15.0)
    probe = house.permit()
    assert house.refusal().reason is Reason.CIRCUIT_OPEN
    assert house.view[1] == 1
    house.settle(probe)
    three = [house.permit() for _ in range(3)]
    assert house.view[1] == 3
    for one in three:
        house.settle(one)
    assert house.view[1] == 0


async def test_a_policy_that_lets_more_in_lets_those_in_who_wait() -> None:
    house = House(max=1)
    house.permit()
    task = await house.waits()
    house.plan = Plan(
        breaker=house.plan.breaker, concurrency=ConcurrencySettings.model_validate({"max": 10, "queue": 3})
    )
    house.permit()
    await turn()
    assert task.done()
    assert house.view == (10, 3, 0)


async def test_a_settled_permit_frees_one_place_and_no_more() -> None:
    house = House()
    one, _ = house.permit(), house.permit()
    for _ in range(5):
        house.settle(one)
    assert house.view == (2, 1, 0)


async def test_it_explains_how_many_are_under_way() -> None:
    house = House()
    assert "0 of 2 attempts are under way, and 3 may wait" in house.breaker.explain(house.made())
    house.permit()
    assert "1 of 2 attempts are under way, and 3 may wait" in house.breaker.explain(house.made())
