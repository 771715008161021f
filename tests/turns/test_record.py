"""A workflow fits into 4 kB whatever it says, and records add up in any order."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.turns.record import RECORD_BYTES_MAX, RecordBroken, encoded, merge
from meshd.turns.turn import AGENT, LLM, LOOP, TOOL, Limits
from meshd.turns.workflow import Workflow
from tests.turns.talk import Talk

LOOSE = Limits(reentry=1000, edge=10**6, connected=10**6, workflow=10**6, periods=10**6)
NAMES = st.sampled_from([f"{letter}{'x' * 62}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"])
CALLS = st.lists(
    st.tuples(NAMES, NAMES, st.sampled_from([AGENT, TOOL, LLM]), st.binary(max_size=300), st.binary(max_size=300)),
    max_size=120,
)


def played(calls: list[tuple[str, str, str, bytes, bytes]]) -> Workflow:
    talk = Talk(LOOSE)
    for source, target, kind, question, answer in calls:
        talk.ask(question, answer, source=source, target=target, kind=kind)
    return talk.workflow


def counts(workflow: Workflow) -> dict[tuple[str, str], int]:
    return {key: edge.tenths for key, edge in workflow.edges.items() if edge.tenths}


@settings(max_examples=60)
@given(CALLS)
def test_a_record_fits_and_keeps_the_counts(calls: list[tuple[str, str, str, bytes, bytes]]) -> None:
    workflow = played(calls)
    record = encoded(workflow, 7, 1, 1.0)
    assert len(record) <= RECORD_BYTES_MAX
    again = Workflow()
    merge(again, record, 8)
    assert counts(again).items() <= counts(workflow).items()


def test_the_worst_that_can_be_said_fits() -> None:
    dice = random.Random(3)
    workflow = Workflow()
    sizes = []
    for sidecar in range(1, 40):
        talk = Talk(LOOSE, workflow)
        for n in range(60):
            source, target = (f"{dice.randrange(40):02d}" + "y" * 61 for _ in range(2))
            said = " ".join(dice.randbytes(4).hex() for _ in range(60))
            talk.ask(said, said[::-1], source=source, target=target)
            talk.ask("the very same question each time", "the very same answer", source=source, target=target)
            assert n >= 0
        record = encoded(workflow, sidecar, sidecar, 1.0)
        sizes.append(len(record))
        other = Workflow()
        merge(other, record, 1000)
        workflow = other
    assert max(sizes) <= RECORD_BYTES_MAX
    assert max(sizes) > RECORD_BYTES_MAX // 2, "it was put to the test"


@settings(max_examples=50)
@given(CALLS, CALLS, CALLS)
def test_merging_commutes_and_is_idempotent(one: Any, two: Any, three: Any) -> None:
    records = [encoded(played(calls), number, number, 1.0) for number, calls in enumerate((one, two, three), 1)]

    def merged(order: list[int]) -> dict[tuple[str, str], int]:
        workflow = Workflow()
        for at in order:
            merge(workflow, records[at], 99)
        return counts(workflow)

    first = merged([0, 1, 2])
    assert first == merged([2, 1, 0]) == merged([1, 0, 2, 1, 1, 0])


def test_counters_of_several_sidecars_add_up() -> None:
    left, right = Talk(), Talk()
    for n in range(30):
        left.ask(f"Describe item {n}", f"It weighs {n} kilos")
        right.ask(f"Describe part {n}", f"It costs {n} euros")
    merge(left.workflow, encoded(right.workflow, 2, 1, 1.0), 1)
    assert left.workflow.edges["lead", "writer"].tenths == 20, "one new turn in three"
    # What right then takes back is taken back here too: the later stamp holds, not the higher count.
    right.workflow.edges["lead", "writer"].own = 20
    merge(left.workflow, encoded(right.workflow, 2, 2, 1.0), 1)
    assert left.workflow.edges["lead", "writer"].tenths == 30


def test_what_this_sidecar_counted_is_not_counted_twice() -> None:
    talk = Talk()
    talk.ask("a question", "an answer")
    merge(talk.workflow, encoded(talk.workflow, 1, 1, 1.0), 1)
    assert talk.workflow.edges["lead", "writer"].tenths == 1


def test_a_loop_goes_on_after_a_restart() -> None:
    before = Talk()
    for n in range(3):
        before.ask(f"Please clarify the plan of the report (message {n})", "What do you mean by that?")
    after = Talk()
    merge(after.workflow, encoded(before.workflow, 1, 1, 1.0), 2)
    judgement = after.ask("Please clarify the plan of the report (message 9)", "What do you mean by that?")
    assert (judgement.verdict, judgement.detector) == (LOOP, "repetition")


def test_a_stopped_workflow_stays_stopped_everywhere() -> None:
    one, other = Workflow(), Workflow()
    one.is_stopped = True
    merge(other, encoded(one, 1, 1, 1.0), 2)
    assert other.is_stopped


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\x00",
        b"not msgpack at all",
        msgspec.msgpack.encode([2, 1, False, b"", b"", [], [], []]),
        msgspec.msgpack.encode([1, 1, False, b"", b"", [], [[0, 1, 0, {}, []]], []]),
        msgspec.msgpack.encode([1, 1, False, b"", b"", ["a", "b"], [[0, 1, 9, {}, []]], []]),
        msgspec.msgpack.encode([1, 1, False, b"", b"", ["a", "b"], [[0, 1, 0, {"x": "y"}, []]], []]),
        msgspec.msgpack.encode([1, 1, False, b"", b"", ["a", "b"], [[0, 1, 0, {}, [["x"]]]], []]),
        msgspec.msgpack.encode({"layout": 1}),
    ],
)
def test_a_broken_record_changes_nothing(record: bytes) -> None:
    talk = Talk()
    talk.ask("a question", "an answer")
    before = encoded(talk.workflow, 1, 1, 1.0)
    with pytest.raises(RecordBroken):
        merge(talk.workflow, record, 2)
    assert encoded(talk.workflow, 1, 1, 1.0) == before


@given(st.binary(max_size=400))
def test_no_bytes_do_anything_but_merge_or_break(record: bytes) -> None:
    workflow = Workflow()
    try:
        merge(workflow, record, 2)
    except RecordBroken:
        assert not workflow.edges
