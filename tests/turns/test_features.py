"""What counts as the same, and what as something else."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from meshd.turns.features import features_of
from meshd.turns.protobuf import texts_of
from meshd.turns.said import ALIKE, DECORATED, DIFFERENT, EXACT, LOOSE, Said
from meshd.turns.sample import Sample, sampled
from meshd.turns.seen import FULL_BITS, Seen
from meshd.turns.turn import AGENT, TOOL
from tests.turns.talk import task


def nearness(before: bytes, after: bytes, kind: str = AGENT) -> int:
    return Said(after).nearness(Said(before), Seen(), kind)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("at 2026-01-02T03:04:05Z it failed", "at 2027-11-12T13:14:15.123+02:00 it failed"),
        ("run 123e4567-e89b-12d3-a456-426614174000 failed", "run 00000000-1111-2222-3333-444444444444 failed"),
        ("no results (took 34 ms)", "no results (took 77 ms)"),
        ("since 1790000000 nothing", "since 1790000555 nothing"),
        ("a  b\n c d", "a b c d"),
        ("[1/9] hand it over", "[2/9] hand it over"),
        ("hand it over [8f14e45f]", "hand it over [c9f0f895]"),
        ("as of 9:03 it is blocked", "as of 9:04 it is blocked"),
        (
            {"q": "sales", "request": "123e4567-e89b-12d3-a456-426614174000"},
            {"q": "sales", "request": "00000000-1111-2222-3333-444444444444"},
        ),
        ("[2026-01-02T03:04:05Z] check it", "[2026-01-02T03:05:05Z] check it"),
        ("[14:03] check it", "[14:07] check it"),
        ("41 passed, 1 failed in 3.12s", "41 passed, 1 failed in 9.7 s"),
        (
            "correlation-id: 123e4567-e89b-12d3-a456-426614174000, check it",
            "correlation-id: 00000000-1111-2222-3333-444444444444, check it",
        ),
        (
            {"do": "check it", "createdAt": "2026-01-02T03:04:05Z"},
            {"do": "check it", "createdAt": "2026-01-02T03:09:05Z"},
        ),
    ],
)
def test_ids_times_and_blanks_are_no_difference(before: object, after: object) -> None:
    assert nearness(task(before), task(after)) == EXACT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("clarify the plan (message 3)", "clarify the plan (message 4)"),
        ("clarify the plan #3", "clarify the plan #4"),
        ("clarify the plan [3]", "clarify the plan [44]"),
        ("attempt 3: clarify the plan", "attempt 4: clarify the plan"),
        ("clarify the plan. 7", "clarify the plan. 8"),
        ("clarify the plan, event 7.", "clarify the plan, event 8."),
        ("CLARIFY THE PLAN...", "clarify the plan!"),
        ("3. Clarify the plan", "4. Clarify the plan"),
        ("clarify the plan (3rd time)", "clarify the plan (4th time)"),
        ("for the third time, clarify the plan", "for the fourth time, clarify the plan"),
        ("Round II: clarify the plan", "Round IX: clarify the plan"),
        ("clarify the plan (retry no. 3)", "clarify the plan (retry no. 4)"),
        ("clarify the plan | 3", "clarify the plan | 4"),
        ("clarify the plan n=3", "clarify the plan n=4"),
        ("klär den Plan (Versuch 3)", "klär den Plan (Versuch 4)"),
        ("说明计划，第3次", "说明计划，第4次"),
        ({"do": "clarify the plan", "retryCount": 3}, {"do": "clarify the plan", "retryCount": 4}),
        ({"do": "clarify the plan", "attempt": "3"}, {"do": "clarify the plan", "attempt": "4"}),
        ({"do": "clarify the plan", "step": 3}, {"do": "clarify the plan", "step": 4}),
    ],
)
def test_counters_and_spelling_are_a_loose_difference(before: object, after: object) -> None:
    assert nearness(task(before), task(after)) == LOOSE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"page": 3}, {"page": 4}),
        ("describe item 3", "describe item 4"),
        ("describe item 3 of the list", "describe item 4 of the list"),
        ("we ask for 30 euros", "we ask for 29 euros"),
        ("the weather in Lisbon by noon", "the weather in Bergen by noon"),
        ("a < b in the code here", "a > b in the code here"),
        ("check order A7 for the client", "check order B7 for the client"),
        ("execute step 4 of the plan", "execute step 5 of the plan"),
        ({"number": 17}, {"number": 18}),
        ({"step": 17}, {"step": 18}),
        ("meet me at 14:03 there", "meet me at 15:03 there"),
        (
            "process order 123e4567-e89b-12d3-a456-426614174000",
            "process order 00000000-1111-2222-3333-444444444444",
        ),
        ({"ticket": "123e4567-e89b-12d3-a456-426614174000"}, {"ticket": "00000000-1111-2222-3333-444444444444"}),
        ("close the books for 2026-01-02", "close the books for 2026-01-03"),
        ({"cpu": 1, "from": 1767225600}, {"cpu": 1, "from": 1767229200}),
        ({"sha": "0a1b2c3d4e5f6071"}, {"sha": "1a1b2c3d4e5f6071"}),
    ],
)
def test_numbers_and_names_that_mean_something_are_content(before: object, after: object) -> None:
    assert nearness(task(before), task(after)) <= DECORATED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Could you clarify the requirement?", "Please clarify the requirements."),
        ("Review the draft of the report", "Kindly review the report's draft, please"),
        ("Thank you so much!", "You're welcome, my pleasure!"),
    ],
)
def test_rewording_is_alike(before: str, after: str) -> None:
    assert nearness(task(before), task(after)) == ALIKE


def test_a_tool_is_asked_the_same_only_where_nothing_is_new() -> None:
    one, other = task("sales figures north region"), task("figures of the sales north region")
    assert nearness(one, other, TOOL) == ALIKE
    assert nearness(one, task("sales figures south region"), TOOL) == DIFFERENT


def test_what_grows_by_what_was_said_is_alike() -> None:
    seen = Seen()
    first, second = Said(task("History: none. Now judge the wording of it")), None
    first.learn(seen)
    Said(task("the wording is weak and dull")).learn(seen)
    second = Said(task("History: none. the wording is weak and dull, weak and dull. Now judge the wording of it"))
    assert second.nearness(first, seen, AGENT) == ALIKE


def test_protobuf_is_read_as_its_texts() -> None:
    def framed(text: str) -> bytes:
        message = StringValue(value=text).SerializeToString()
        return b"\0" + len(message).to_bytes(4, "big") + message

    assert texts_of(framed("Please check it")) == b"Please check it"
    assert texts_of(framed("a" * 70)[:40]) is not None
    # The length stands before the text as a letter of its own; the words are the same.
    short, long = "Improve the wording, the draft is weak.", "Please improve the wording, since the draft is weak."
    assert nearness(framed(short), framed(long)) == ALIKE
    assert texts_of(b'{"a": 1}') is None
    assert texts_of(b"\n\xff\xff") is None


@given(st.binary(max_size=600))
def test_any_bytes_can_be_read(raw: bytes) -> None:
    found = features_of(raw)
    assert 0 <= found.likeness < 2**64
    assert features_of(raw).exact == found.exact
    texts_of(b"\0" + raw)


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(min_value=8, max_value=64))
def test_a_sample_is_the_same_however_the_body_comes(pieces: list[bytes], size: int) -> None:
    sample = Sample(size)
    for piece in pieces:
        sample.hear(piece)
    body = b"".join(pieces)
    assert sample.size == len(body)
    assert sample.taken() == (body if len(body) <= size >> 1 << 1 else sampled(body, size >> 1 << 1))


def test_words_are_forgotten_a_generation_at_a_time() -> None:
    seen = Seen()
    first = [(n * 2654435761) & 0xFFFFFFFF for n in range(1, 200)]
    for word in first:
        seen.add(word)
    assert all(seen.has(word) for word in first)
    unseen = [(n * 40503 + 77) & 0xFFFFFFFF for n in range(1000, 3000)]
    assert sum(seen.has(word) for word in unseen) < 100
    for n in range(10_000, 14_000):
        seen.add((n * 2246822519) & 0xFFFFFFFF)
    assert sum(seen.has(word) for word in first) < 40
    assert seen.new_bits <= FULL_BITS + 3


def test_letters_of_any_script_may_come_escaped() -> None:
    plain = '{"task": "请问我的包裹在哪里"}'.encode()
    assert features_of(task("请问我的包裹在哪里")).exact == features_of(plain).exact
    assert features_of(b'{"task": "\\ud83d\\ude00 \\ud83d 3"}').exact


def test_ids_in_an_answer_are_no_difference() -> None:
    one, other = (Said(task({"order": f"{n}23e4567-e89b-12d3-a456-426614174000"}), True) for n in (1, 2))
    assert other.nearness(one, Seen(), AGENT) == EXACT


@pytest.mark.parametrize(
    "text",
    [
        '{"done": false}',
        '{"id": 7, "ready": false}',
        '{"state": "IN_QUEUE", "position": 3}',
        '{"state": "rendering"}',
        '{"progress": 40}',
        '{"messages": []}',
        '{"acquired": false}',
        "The export is still being generated, please check again later.",
        "Not ready yet.",
    ],
)
def test_what_says_that_it_is_under_way(text: str) -> None:
    assert features_of(text.encode()).is_underway


@pytest.mark.parametrize(
    "text",
    [
        '{"results": []}',
        '{"progress": 100}',
        '{"done": true}',
        '{"status": "failed"}',
        "I am still waiting for your decision.",
        "The plan is not complete",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not features_of(text.encode()).is_underway
