"""Pieces of a stream that are told by their bytes are told as decoding would have told them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshd.call import Ask
from meshd.dialects.openai_meter import OpenAIMeter
from meshd.dialects.repeating import Repeating

ASK = Ask("chat", "gpt-4o", is_stream=True, input_bound=100)


def piece(delta: dict[str, Any], *, index: int = 0, pad: str | None = None, **members: Any) -> bytes:
    """A chunk as OpenAI writes it."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    chunk = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o",
        "choices": [choice],
        **members,
    }
    if pad is not None:
        chunk["obfuscation"] = pad
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def words(text: str, **members: Any) -> bytes:
    return piece({"content": text}, **members)


def told(meter: OpenAIMeter, raw: bytes) -> tuple[Any, ...]:
    event = meter.read_event(raw)
    assert event is not None
    seen = event.text, event.choice if event.text else None, event.tool_names, event.has_content, event.output_estimate
    return *seen, event.raw, meter.output_estimate, meter.usage, meter.is_terminal, meter.finish_reasons


def decoding() -> OpenAIMeter:
    """A meter that decodes every piece."""
    meter = OpenAIMeter(ASK)
    meter._repeating = Repeating(b"\0 no piece has this")
    return meter


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(
    ['"', "\\", '"}', '"content":"', "\n", "\r\n", "é", "日本", "", " ", '","logprobs":1']
)
PIECES = st.one_of(
    st.builds(words, TEXTS, pad=st.none() | st.sampled_from(["", "a1B", "x" * 9, "no pad", '"'])),
    st.builds(lambda text, index: words(text, index=index), TEXTS, st.integers(0, 2)),
    st.builds(lambda text, more: piece({"content": text, "reasoning_content": more}), TEXTS, TEXTS),
    st.builds(lambda text: piece({'a"content': text, "content": "b"}), TEXTS),
    st.builds(lambda text: piece({"tool_calls": [{"function": {"name": text, "arguments": "{}"}}]}), TEXTS),
    st.builds(lambda text: words(text, usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}), TEXTS),
    st.builds(lambda text: words("a").replace(b'"a"', b'"' + text.encode() + b'"'), TEXTS),
    st.builds(lambda text: words("a").replace(b'"a"}', b'"a","content":"' + text.encode() + b'"}'), TEXTS),
    st.builds(lambda junk: words("a").replace(b'"a"', b'"' + junk + b'"'), st.binary(max_size=4)),
    st.just(b"data: [DONE]\n\n"),
)


@given(st.lists(PIECES, max_size=12))
@example([words("0", pad=""), words("")])
def test_a_stream_is_understood_as_if_each_piece_had_been_decoded(pieces: list[bytes]) -> None:
    meter, other = OpenAIMeter(ASK), decoding()
    for raw in pieces:
        assert told(meter, raw) == told(other, raw)


@pytest.mark.parametrize("pad", [None, "xK3f9"])
def test_the_third_piece_needs_no_decoding(pad: str | None) -> None:
    meter = OpenAIMeter(ASK)
    for text in ("one", " two"):
        told(meter, words(text, pad=pad))
    assert meter._repeating.text_of(words(" three", pad=pad and "q")) == " three"
    assert meter._repeating.size == 6


def test_a_key_that_looks_like_the_mark_is_no_shape() -> None:
    meter = OpenAIMeter(ASK)
    raw = piece({'a"content': "x", "content": "b"})
    for _ in range(3):
        told(meter, raw)
    assert meter._repeating.text_of(raw) is None


def test_a_stream_whose_pieces_all_differ_is_given_up() -> None:
    asked: list[bytes] = []
    repeating = Repeating(b'"content":"')
    for number in range(20):
        repeating.learn(words("a", created=number), lambda raw, _text: bool(asked.append(raw)))
    assert len(asked) == 4
