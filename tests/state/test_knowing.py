"""What a workflow knows: versions say what their writers knew, and conflicts how that relates."""

from __future__ import annotations

from meshd.clocks import Clock, Order
from meshd.state import knowing
from meshd.state.knowing import Knowing, clock_of
from meshd.state.record import Version


def version(workflow: str, clock: Clock | None = None) -> Version:
    return Version(1, 0, "ann", workflow, 0.0, clock=b"" if clock is None else clock.encode())


def test_a_writer_that_was_read_is_before() -> None:
    one, other = Knowing("one", 0), Knowing("other", 0)
    first = version("w", one.next("w"))
    one.learn("w", clock_of(first))
    assert other.order("w", first) is Order.BEFORE  # it knows nothing yet
    other.read("w", first)
    assert other.order("w", first) is Order.EQUAL
    second = version("w", other.next("w"))
    other.learn("w", clock_of(second))
    assert clock_of(first).order(clock_of(second)) is Order.BEFORE
    assert one.order("w", second) is Order.BEFORE
    one.learn("w", one.next("w"))
    assert one.order("w", second) is Order.CONCURRENT
    assert other.order("w", first) is Order.AFTER


def test_another_workflows_clock_says_nothing() -> None:
    one = Knowing("one", 0)
    theirs = version("other", Clock({"x": 3}))
    one.read("w", theirs)
    assert one.known("w") == Clock()
    assert one.order("w", theirs) is None
    assert one.order("", version("", Clock({"x": 3}))) is None


def test_what_is_not_learned_is_not_known() -> None:
    one = Knowing("one", 0)
    first, second = one.next("w"), one.next("w")
    assert one.known("w") == Clock()
    assert first.order(second) is Order.BEFORE  # never the same


def test_the_next_run_counts_on() -> None:
    last = Knowing("one", 4).next("w")
    assert last.order(Knowing("one", 5).next("w")) is Order.BEFORE
    assert Knowing("one", 2**40).next("w")


def test_a_forgotten_workflow_repeats_no_count() -> None:
    one = Knowing("one", 0)
    before = one.next("w0")
    one.learn("w0", before)
    for number in range(1, knowing.WORKFLOWS_MAX + 1):
        one.learn(f"w{number}", Clock({"x": 1}))
    assert one.known("w0") == Clock()
    assert one.next("w0")["one"] > before["one"]


def test_a_clock_that_cannot_be_read_is_an_empty_one() -> None:
    assert clock_of(Version(1, 0, "ann", "w", 0.0, clock=b"\xff")) == Clock()
