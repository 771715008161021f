"""What a supervisor may answer, and what is nonsense."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.supervisor.answer import ANSWER_BYTES_MAX, NonsenseError, read
from meshd.supervisor.story import EXAMPLES, encode, headline
from meshd.turns.supervision import EdgeTold, Story, Verdict

STORY = Story(
    workflow="wf-1",
    account="workflow/wf-1",
    source="writer",
    target="reviewer",
    operation="POST /review",
    call_id="c-1",
    detector="repetition",
    why="The same question got the same answer 3 times.",
    path=("manager",),
    edges=(EdgeTold(source="writer", target="reviewer", kind="agent", turns=3.1, rounds=3),),
)


def test_its_examples_are_answers() -> None:
    found = [read(json.dumps(example).encode(), STORY, "boss") for example in EXAMPLES.values()]
    assert [verdict.action for verdict in found] == ["continue", "redirect", "finish", "stop"]
    assert found[0] == Verdict(action="continue", turns=20, reason="it is nearly done", by="boss")
    assert found[1].target == "another-upstream"
    assert found[2].answer == b"what the caller is told in place of an answer"
    assert found[2].content_type == "text/plain; charset=utf-8"


def test_an_answer_may_be_json() -> None:
    verdict = read(b'{"action": "finish", "answer": {"a": [1]}}', STORY, "boss")
    assert (verdict.answer, verdict.content_type) == (b'{"a":[1]}', "application/json")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"yes",
        b"{}",
        b"[]",
        b'{"action": "go on"}',
        b'{"action": "continue"}',
        b'{"action": "continue", "turns": 0}',
        b'{"action": "continue", "turns": -5}',
        b'{"action": "continue", "turns": 1e9}',
        b'{"action": "continue", "turns": "many"}',
        b'{"action": "redirect"}',
        b'{"action": "finish"}',
        b'{"action": "finish", "answer": "x", "content_type": "a\\r\\nset-cookie: b"}',
        b'{"action": "finish", "answer": "' + b"x" * (ANSWER_BYTES_MAX + 1) + b'"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_nonsense(body: bytes) -> None:
    with pytest.raises(NonsenseError):
        read(body, STORY, "boss")


def test_what_was_not_offered_is_no_answer() -> None:
    story = Story(**{**vars_of(STORY), "actions": ("continue", "stop")})
    with pytest.raises(NonsenseError, match="finish is no answer here"):
        read(json.dumps(EXAMPLES["finish"]).encode(), story, "boss")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_are_nonsense(body: bytes) -> None:
    with contextlib.suppress(NonsenseError):
        assert read(body, STORY, "boss").by == "boss"


def test_the_story_is_one_argument_and_says_what_may_be_answered() -> None:
    told = json.loads(encode(STORY))["story"]
    assert told["edges"] == [{"source": "writer", "target": "reviewer", "kind": "agent", "turns": 3.1, "rounds": 3}]
    assert [answer["action"] for answer in told["answers"]] == ["continue", "redirect", "finish", "stop"]
    assert "writer calls reviewer in circles" in headline(STORY)


def vars_of(story: Story) -> dict[str, Any]:
    return {name: getattr(story, name) for name in Story.__slots__}
