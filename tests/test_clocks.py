"""Vector clocks: their order is who knew of whom, and their form is one."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.clocks import COUNT_MAX, PARTICIPANTS_MAX, Clock, ClockMalformed, Order, sidecar_id

SIDECARS = st.one_of(st.text("abcXYZ019._-", min_size=1, max_size=8), st.binary(min_size=8, max_size=8).map(bytes.hex))
CLOCKS = st.dictionaries(SIDECARS, st.integers(1, COUNT_MAX), max_size=20).map(Clock)


@given(CLOCKS)
def test_a_clock_is_read_back(clock: Clock) -> None:
    assert Clock.decode(clock.encode()) == clock
    assert hash(Clock.decode(clock.encode())) == hash(clock)


@given(CLOCKS, CLOCKS)
def test_merging_knows_both_and_no_more(one: Clock, other: Clock) -> None:
    both = one.merged(other)
    assert both == other.merged(one)
    assert one.order(both) in (Order.BEFORE, Order.EQUAL)
    assert other.order(both) in (Order.BEFORE, Order.EQUAL)
    assert all(both[sidecar] in (one[sidecar], other[sidecar]) for sidecar in both)


@given(CLOCKS, CLOCKS)
def test_order_turns_round(one: Clock, other: Clock) -> None:
    turned = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    found = one.order(other)
    assert other.order(one) is turned.get(found, found)
    assert (found is Order.EQUAL) == (one == other)
    assert one.order(one.tick("a")) is Order.BEFORE


@given(st.binary(max_size=64))
def test_any_bytes_are_a_clock_or_refused(data: bytes) -> None:
    try:
        clock = Clock.decode(data)
    except ClockMalformed:
        return
    assert clock.encode() == data


@given(CLOCKS, st.data())
def test_a_damaged_clock_is_never_another_spelling(clock: Clock, data: st.DataObject) -> None:
    form = bytearray(clock.encode())
    at = data.draw(st.integers(0, len(form) - 1))
    form[at] ^= data.draw(st.integers(1, 255))
    try:
        found = Clock.decode(bytes(form))
    except ClockMalformed:
        return
    assert found != clock


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x02",
        b"\x01\x01",
        b"\x01\x01a",
        b"\x01\x01a\x00",  # a count of 0
        b"\x01\x01a\x80\x00",  # a longer spelling of it
        b"\x01\x01b\x01\x01a\x01",  # out of order
        b"\x01\x01a\x01\x01a\x01",  # twice
        b"\x01\x00\x01",
        b"\x01\x81" + bytes(129),
        b"\x01\x01/\x01",
        b"\x01\x01\xff\x01",
        b"\x01\x01a" + b"\xff" * 6,
        b"\x01\x01a" + b"\xff" * 5 + b"\x80\x01",
        b"\x01" + b"\x01a\x01" * 2000,
    ],
)
def test_what_is_no_clock_is_refused(data: bytes) -> None:
    with pytest.raises(ClockMalformed):
        Clock.decode(data)


@pytest.mark.parametrize(
    "counts",
    [
        {"": 1}, {"nine-long": 1}, {"a b": 1}, {"ABCDEF0123456789": 1}, {"a": 0}, {"a": -1}, {"a": COUNT_MAX + 1},
        {f"s{number}": 1 for number in range(PARTICIPANTS_MAX + 1)},
    ],
)  # fmt: skip
def test_what_cannot_stand_in_a_clock_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ClockMalformed):
        Clock(counts)


def test_a_count_does_not_run_over() -> None:
    with pytest.raises(ClockMalformed):
        Clock({"a": COUNT_MAX}).tick("a")


def test_sixteen_sidecars_take_at_most_256_bytes() -> None:
    longest = Clock({sidecar_id(f"sidecar {number}"): COUNT_MAX for number in range(16)})
    assert len(longest) == 16
    assert len(longest.encode()) <= 256
    assert len(Clock({"ab.c-_78"[:7] + hex(number)[2:]: COUNT_MAX for number in range(16)}).encode()) <= 256


def test_ids_of_any_name() -> None:
    assert sidecar_id("0123456789abcdef01234567") == "0123456789abcdef"
    assert Clock({sidecar_id(name): 1 for name in ("", "x", "a/b", "\udc80", "0123456789abcdeF")})


def test_a_sidecar_that_forgot_counts_on() -> None:
    assert Clock().tick("a", 7).tick("a")["a"] == 8
    assert Clock({"a": 9}).tick("a", 7)["a"] == 10


def test_order_is_reachability_over_random_runs() -> None:
    """Sidecars do things, hear of each other's, and restart with what they had written down: 2,000 runs."""
    rng = random.Random(7)
    for _ in range(2000):
        names = [f"s{number}" for number in range(rng.randint(1, 5))]
        known = {name: Clock() for name in names}
        causes: dict[str, frozenset[int]] = {name: frozenset() for name in names}
        things: list[tuple[Clock, frozenset[int]]] = []
        for _ in range(rng.randint(2, 40)):
            name, other, what = rng.choice(names), rng.choice(names), rng.random()
            if what < 0.35:
                known[name] = known[name].merged(known[other])
                causes[name] |= causes[other]
            elif what < 0.45:
                known[name] = Clock.decode(known[name].encode())
            else:
                known[name] = known[name].tick(name)
                things.append((known[name], causes[name]))
                causes[name] |= {len(things) - 1}
        for (at, (one, before_one)), (then, (other_clock, before_other)) in itertools.permutations(
            enumerate(things), 2
        ):
            wanted = Order.BEFORE if at in before_other else Order.AFTER if then in before_one else Order.CONCURRENT
            assert one.order(other_clock) is wanted
