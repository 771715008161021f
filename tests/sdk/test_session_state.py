"""The session's state machine against itself, over links that lose, cut and forget."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd_sdk.errors import ProtocolBroken
from meshd_sdk.session_state import BYTES_MAX, FRAMES_MAX, Frame, SessionState


def begun(credit: int = 4) -> SessionState:
    state = SessionState()
    state.begun("s", credit)
    return state


def drained(state: SessionState) -> list[Frame]:
    found = []
    while (frame := state.take()) is not None:
        found.append(frame)
    return found


class Body:
    """One frame's body; never equal to another."""

    def __init__(self, name: int, *, is_work: bool) -> None:
        self.name, self.is_work = name, is_work


class Side:
    """One end: a state, what it handled, and the work that it has not answered."""

    def __init__(self) -> None:
        self.state = SessionState()
        self.handled: list[int] = []
        self.owed: deque[Body] = deque()
        self.offered: dict[int, Body] = {}
        self.owed_most = 0

    def offer(self, name: int, *, is_work: bool) -> None:
        body = Body(name, is_work=is_work)
        self.offered[name] = body
        self.state.offer(body, is_work=is_work)


class Answer:
    """The answer of a piece of work."""

    def __init__(self, to: Body) -> None:
        self.to = to


class Lossy:
    """Two sides, and the frames between them. What is under way is lost when the link breaks."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.a, self.b = Side(), Side()
        for side in (self.a, self.b):
            side.state.begun("s", window)
        self.wires: dict[str, deque[Any]] = {"ab": deque(), "ba": deque()}

    def write(self, way: str, count: int = 1_000_000) -> None:
        side = self.a if way == "ab" else self.b
        for _ in range(count):
            frame = side.state.take() or side.state.take_ack()
            if frame is None:
                return
            self.wires[way].append(frame)

    def read(self, way: str, count: int = 1_000_000) -> None:
        side = self.b if way == "ab" else self.a
        for _ in range(count):
            if not self.wires[way]:
                return
            frame = self.wires[way].popleft()
            if isinstance(frame, int):
                side.state.given(frame)
            elif side.state.received(frame.seq, frame.ack):
                self.handle(side, frame.body)

    def handle(self, side: Side, body: Any) -> None:
        if isinstance(body, Answer):
            side.state.answered(body.to)
            side.handled.append(-body.to.name)
        elif body is not None:
            side.handled.append(body.name)
            if body.is_work:
                side.owed.append(body)
                side.owed_most = max(side.owed_most, len(side.owed))

    def answer(self, way: str) -> None:
        """The receiver of `way` is done with the oldest piece of work: it answers, and gives the credit back."""
        side = self.b if way == "ab" else self.a
        if side.owed:
            side.state.offer(Answer(side.owed.popleft()))
            self.wires["ba" if way == "ab" else "ab"].append(1)

    def cut(self) -> None:
        for wire in self.wires.values():
            wire.clear()
        for side in (self.a, self.b):
            side.state.broken()
        seen = [(side.state.received_seq, self.window - len(side.owed)) for side in (self.a, self.b)]
        self.a.state.resumed(*seen[1])
        self.b.state.resumed(*seen[0])

    def settle(self) -> None:
        for _ in range(10_000):
            for way in ("ab", "ba"):
                self.write(way)
                self.read(way)
                self.answer(way)
            for side in (self.a, self.b):
                if (frame := side.state.take_ack(is_due=True)) is not None:
                    self.wires["ab" if side is self.a else "ba"].append(frame)
            is_quiet = self.a.state.is_idle and self.b.state.is_idle and not any(self.wires.values())
            if is_quiet and not self.a.owed and not self.b.owed:
                return
        raise AssertionError("the sides never came to rest")


STEPS = st.lists(
    st.tuples(st.sampled_from(["offer", "work", "write", "read", "answer", "cut"]), st.sampled_from(["ab", "ba"])),
    max_size=200,
)


@given(STEPS, st.integers(1, 4))
@settings(max_examples=400)
def test_over_a_link_that_breaks_every_frame_is_handled_once_and_in_order(
    steps: list[tuple[str, str]], window: int
) -> None:
    link = Lossy(window)
    count = 0
    for what, way in steps:
        side = link.a if way == "ab" else link.b
        if what in ("offer", "work"):
            count += 1
            side.offer(count, is_work=what == "work")
        elif what == "cut":
            link.cut()
        elif what == "answer":
            link.answer(way)
        else:
            (link.write if what == "write" else link.read)(way, 1)
    link.settle()
    for sender, receiver in ((link.a, link.b), (link.b, link.a)):
        work = [name for name, body in sender.offered.items() if body.is_work]
        rest = [name for name, body in sender.offered.items() if not body.is_work]
        handled = [name for name in receiver.handled if name > 0]
        assert [name for name in handled if name in set(work)] == work
        assert [name for name in handled if name in set(rest)] == rest
        assert sorted(-name for name in sender.handled if name < 0) == work
        assert sender.state.under_way == 0
        assert receiver.owed_most <= window
        assert sender.state.credit == window  # none leaked, none was made up


def test_work_waits_for_credit_and_nothing_else_does() -> None:
    state = begun(1)
    state.offer("w1", is_work=True)
    state.offer("w2", is_work=True)
    state.offer("reply")
    assert [frame.body for frame in drained(state)] == ["reply", "w1"]
    state.answered("w1")
    assert state.take() is None  # an answer is no credit
    state.given(1)
    assert [frame.body for frame in drained(state)] == ["w2"]


def test_nothing_is_sent_before_welcome_nor_on_a_broken_stream() -> None:
    state = SessionState()
    state.offer("early")
    assert state.take() is None
    state.begun("s", 1)
    state.broken()
    assert state.take() is None
    state.resumed(0, 1)
    assert [frame.body for frame in drained(state)] == ["early"]


def test_a_resume_sends_again_what_was_not_received() -> None:
    state = begun()
    for name in "abc":
        state.offer(name)
    assert [frame.seq for frame in drained(state)] == [1, 2, 3]
    state.broken()
    state.offer("d")
    state.resumed(1, 4)
    assert [(frame.seq, frame.body) for frame in drained(state)] == [(2, "b"), (3, "c"), (4, "d")]


def test_a_new_session_counts_from_one_and_keeps_what_waited() -> None:
    state = begun(1)
    state.offer("sent", 10)
    state.offer("w1", 10, is_work=True)
    state.offer("w2", 10, is_work=True)
    drained(state)
    state.broken()
    state.begun("t", 1)
    assert [(frame.seq, frame.body) for frame in drained(state)] == [(1, "w2")]


def test_a_duplicate_is_not_new_and_a_gap_breaks_the_stream() -> None:
    state = begun()
    assert state.received(1, 0)
    assert not state.received(1, 0)
    with pytest.raises(ProtocolBroken, match="frame 3 came after frame 1"):
        state.received(3, 0)


@pytest.mark.parametrize("ack", [1, 2**64 - 1])
def test_an_ack_of_what_was_never_sent_breaks_the_stream(ack: int) -> None:
    with pytest.raises(ProtocolBroken, match="acknowledged"):
        begun().received(0, ack)


def test_a_welcome_that_cannot_be_is_not_believed() -> None:
    state = begun()
    for name in "abc":
        state.offer(name)
    drained(state)
    state.received(0, 2)
    state.broken()
    for received in (0, 1, 4):
        with pytest.raises(ProtocolBroken):
            state.resumed(received, 4)
    state.resumed(2, 4)


def test_credit_is_never_more_than_the_window() -> None:
    state = begun(2)
    state.given(2**32 - 1)
    for at in range(5):
        state.offer(f"w{at}", is_work=True)
    assert len(drained(state)) == 2


def test_an_acknowledgement_goes_out_alone_where_enough_was_received() -> None:
    state = begun()
    for seq in range(1, 32):
        state.received(seq, 0)
    assert state.take_ack() is None
    state.received(32, 0)
    assert state.take_ack() == Frame(0, 32, None)
    assert state.take_ack(is_due=True) is None


def test_work_that_still_waits_can_be_taken_back() -> None:
    state = begun(0)
    call = object()
    state.offer(call, 5, is_work=True)
    assert state.withdraw(call)
    assert not state.withdraw(call)
    assert state.is_idle


def test_buffers_are_bounded_in_frames_and_bytes() -> None:
    state = begun()
    state.offer("large", BYTES_MAX)
    assert state.is_full
    drained(state)
    assert state.is_full
    state.received(0, 1)
    assert not state.is_full
    for _ in range(FRAMES_MAX):
        state.offer("x")
    assert state.is_full
