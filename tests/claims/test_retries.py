"""Attempts that nobody has asked for again yet: what is kept of them is bounded."""

from __future__ import annotations

from collections import Counter
from typing import Any

from meshd.call import Reply
from meshd.claims.retries import KEPT_BYTES_MAX, KEPT_MAX, KEPT_S_MAX, Retries
from meshd.claims.tape import spill_in
from tests.filters.calls import NOW_S, call, chat, outcome


def ended(now_s: float = NOW_S) -> Any:
    found = outcome(now_s=now_s)
    found.is_terminal = True
    return found


class House:
    """Retries, and calls for them."""

    def __init__(self) -> None:
        self.retries = Retries(Counter(), spill_in(None))

    def ask(self, number: int, count: int = 0, now_s: float = NOW_S) -> Any:
        one = call("openai", ask=chat(), body=b"%d" % number, now_s=now_s)
        one.plan = one.policy.plan(one.target, "", "chat")
        return self.retries.admit(one, one.plan.idempotency, count)

    def orphan(self, number: int, size: int = 10, now_s: float = NOW_S) -> None:
        claim = self.ask(number, now_s=now_s)
        claim.tape.head(200, [])
        claim.tape.data(bytes(size))
        claim.tape.end([])
        claim.is_orphaned = True
        claim.settle(ended(now_s))


def test_an_answer_is_taken_once() -> None:
    house = House()
    house.orphan(1)
    assert isinstance(house.ask(1, 1), Reply)
    assert not isinstance(house.ask(1, 1), Reply)


def test_one_that_was_delivered_is_forgotten() -> None:
    house = House()
    claim = house.ask(1)
    claim.tape.head(200, [])
    claim.tape.end([])
    claim.settle(ended())
    assert house.retries._claims == {}


def test_the_oldest_leave_first() -> None:
    house = House()
    for number in range(KEPT_MAX + 5):
        house.orphan(number)
    assert len(house.retries._kept) == KEPT_MAX
    assert not isinstance(house.ask(4, 1), Reply)
    assert isinstance(house.ask(5, 1), Reply)


def test_bytes_are_bounded_too() -> None:
    house = House()
    for number in range(20):
        house.orphan(number, size=KEPT_BYTES_MAX // 8)
    assert house.retries._kept_bytes <= KEPT_BYTES_MAX
    assert 0 < len(house.retries._kept) <= 8
    assert isinstance(house.ask(19, 1), Reply)


def test_and_so_is_time() -> None:
    house = House()
    house.orphan(1)
    house.orphan(2, now_s=NOW_S + 10)
    late_s = NOW_S + KEPT_S_MAX + 5
    assert not isinstance(house.ask(1, 1, late_s), Reply)
    assert isinstance(house.ask(2, 1, late_s), Reply)
    assert house.retries._kept_bytes == 0
