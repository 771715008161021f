"""What a meter has decoded need not be decoded again: by its events an answer says the same as by its bytes."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.call import Ask
from meshd.dialects.anthropic_meter import AnthropicMeter
from meshd.dialects.marks_answer import AnswerMarks, answer_marks
from meshd.dialects.openai_meter import OpenAIMeter

TEXTS = st.text(max_size=4)
ODD = st.one_of(st.none(), TEXTS, st.integers(-1, 3), st.lists(st.integers(), max_size=1))
CALLS = st.lists(
    st.fixed_dictionaries(
        {"index": ODD, "id": ODD, "function": st.fixed_dictionaries({"name": TEXTS, "arguments": ODD})}
    ),
    max_size=2,
)
PIECES = st.fixed_dictionaries({}, optional={"content": ODD, "tool_calls": st.one_of(st.none(), CALLS), "refusal": ODD})
CHOICES = st.fixed_dictionaries(
    {}, optional={"index": ODD, "delta": PIECES, "message": PIECES, "text": ODD, "finish_reason": ODD}
)
CHUNKS = st.fixed_dictionaries({}, optional={"id": ODD, "choices": st.lists(CHOICES, max_size=3), "usage": st.none()})
DELTAS = st.fixed_dictionaries({}, optional={"text": ODD, "partial_json": ODD, "thinking": ODD})
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["content_block_delta", "content_block_start", "message_delta", "ping"])},
    optional={"index": ODD, "delta": DELTAS},
)


def said(marks: AnswerMarks) -> tuple[Any, ...]:
    return marks.texts(), marks.arguments(), marks.ids, marks.is_whole


def check(dialect: str, meter: Any, raws: list[bytes]) -> None:
    by_bytes, by_events = answer_marks(dialect, "chat"), answer_marks(dialect, "chat")
    assert by_bytes is not None
    assert by_events is not None
    for raw in raws:
        by_bytes.read(raw)
        event = meter.read_event(raw)
        if event is not None:
            by_events.take(event)
    assert said(by_events) == said(by_bytes)


@given(st.lists(CHUNKS, max_size=5))
@example([{"id": "a", "choices": [{"index": 0, "delta": {"content": "one"}}]}, {"id": "a", "choices": []}])
@example([{"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}])
@example([{"choices": [{"index": 0, "delta": {"content": "the end"}, "finish_reason": "stop"}]}])
def test_openai(chunks: list[dict[str, Any]]):
    raws = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    check("openai", OpenAIMeter(Ask("chat", "m")), [*raws, b"data: [DONE]\n\n"])


@given(st.lists(EVENTS, max_size=5))
def test_anthropic(events: list[dict[str, Any]]):
    raws = [b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in events]
    check("anthropic", AnthropicMeter(Ask("chat", "m")), raws)


@pytest.mark.parametrize("chunk", [{"delta": {"content": "hi"}}, {"index": 2, "delta": {"content": "hi"}}])
def test_a_piece_of_text_alone_is_in_the_event(chunk: dict[str, Any]):
    meter = OpenAIMeter(Ask("chat", "m"))
    event = meter.read_event(b"data: " + json.dumps({"choices": [chunk]}).encode() + b"\n\n")
    assert event is not None
    assert (event.text, event.choice) == ("hi", chunk.get("index", 0))
    event = meter.read_event(b": ping\n\n")
    assert event is not None
    assert event.text == ""
