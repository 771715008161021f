"""Streams, translated both ways, event by event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.dialects.test_translation_replies import USE, message
from tests.dialects.translating import asking, datas, sse, stream_of

# -- streams of messages, as chunks

START = {"type": "message_start", "message": json.loads(message([], None))}
STOP = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]  # fmt: skip


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    events = [{"type": "content_block_start", "index": index, "content_block": content}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [*events, {"type": "content_block_stop", "index": index}]


def words(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text_delta", "text": text} for text in texts]


def deltas(stream: bytes) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in datas(stream) if chunk != "[DONE]" and chunk["choices"]]


@pytest.mark.parametrize("is_asked", [True, False])
def test_the_usage_chunk_comes_only_where_it_was_asked_for(is_asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if is_asked else {}
    events = [START, *block(0, {"type": "text", "text": ""}, *words("Fog.")), *STOP]
    chunks = datas(stream_of("openai", events, **options))
    assert chunks[-1] == "[DONE]"
    usages = [chunk.get("usage") for chunk in chunks[:-1]]
    assert any(usages) == is_asked
    if is_asked:
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["prompt_tokens"] == 5
        assert chunks[-2]["usage"]["completion_tokens"] == 9
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks[:-1]} == {("msg_1", 7, "claude")}


def test_pings_signatures_and_what_is_newer_are_passed_over() -> None:
    events = [
        START, {"type": "ping"}, b": comment\n\n", {"type": "a_new_event"},
        *block(0, {"type": "text", "text": ""}, {"type": "citations_delta", "citation": {}}, *words("Fog.")),
        *block(1, USE | {"type": "server_tool_use"}, {"type": "input_json_delta", "partial_json": "{}"}),
        *block(2, {"type": "web_search_tool_result", "content": []}),
        *STOP,
    ]  # fmt: skip
    said = deltas(stream_of("openai", events))
    assert said == [{"role": "assistant", "content": "", "refusal": None}, {"content": "Fog."}, {}]


def test_calls_are_counted_by_themselves_and_always_have_arguments() -> None:
    piece = {"type": "input_json_delta", "partial_json": '{"a": 1}'}
    events = [
        START,
        *block(0, {"type": "text", "text": "Look"}),
        *block(1, USE | {"input": {}}, piece),
        *block(2, USE | {"id": "toolu_2", "input": {}}, piece | {"partial_json": ""}),
        *block(3, USE | {"id": "toolu_3", "input": {"b": 2}}),
        *STOP,
    ]
    arguments: dict[int, str] = {}
    for delta in deltas(stream_of("openai", events)):
        for call in delta.get("tool_calls", ()):
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    assert {index: json.loads(text) for index, text in arguments.items()} == {0: {"a": 1}, 1: {}, 2: {"b": 2}}


def test_an_error_in_mid_stream_is_the_last_word() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    events = [START, *block(0, {"type": "text", "text": ""}, *words("Fo")), error, *STOP]
    chunks = datas(stream_of("openai", events))
    assert chunks[-1] == {
        "error": {"message": "Overloaded", "type": "overloaded_error", "param": None, "code": "server_overloaded"}
    }
    assert "[DONE]" not in chunks


@pytest.mark.parametrize("kept", range(1, 5))
def test_a_message_that_is_cut_stays_cut(kept: int) -> None:
    stream = asking("openai", stream=True).stream()
    events = [START, *block(0, {"type": "text", "text": ""}, *words("Fog.")), *STOP]
    made = b"".join(stream.feed(sse(event)) for event in events[:kept]) + stream.end()
    assert b"[DONE]" not in made
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in datas(made))
    assert not stream.is_whole


def test_a_message_whose_last_mark_alone_is_missing_is_whole() -> None:
    stream = asking("openai", stream=True).stream()
    made = b"".join(stream.feed(sse(event)) for event in [START, STOP[0]])
    assert not stream.is_whole
    assert datas(made + stream.end())[-1] == "[DONE]"
    assert stream.is_whole
    assert stream.end() == b""
    assert stream.feed(sse(STOP[0])) == b""


# -- streams of chunks, as messages


def chunk(delta: Any = None, finish: Any = None, **members: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    return {"id": "c1", "model": "gpt", "choices": choices} | members


def piece(index: Any, arguments: str, **members: Any) -> dict[str, Any]:
    name = {"name": members.pop("name")} if "name" in members else {}
    call = {"function": {"arguments": arguments} | name} | members
    return chunk({"tool_calls": [call if index is None else call | {"index": index}]})


DONE = b"data: [DONE]\n\n"


def kinds(stream: bytes) -> list[str]:
    return [event["type"] for event in datas(stream)]


def blocks(stream: bytes) -> list[dict[str, Any]]:
    """Return the content blocks, put together as a client does; each is opened, grown and closed in turn."""
    found: list[dict[str, Any]] = []
    is_open = False
    for event in datas(stream):
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(found)
            found.append({"json": ""} | event["content_block"])
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(found) - 1
            found[-1]["json"] += event["delta"].get("partial_json", "")
            if "text" in event["delta"]:
                found[-1]["text"] += event["delta"]["text"]
        elif event["type"] == "content_block_stop":
            is_open = False
    assert not is_open
    return found


def test_text_and_calls_follow_each_other() -> None:
    events = [
        chunk({"role": "assistant", "content": ""}), chunk({"content": "Lo"}), chunk({"content": "ok"}),
        piece(0, "", id="a", name="tides"), piece(0, '{"a"'), piece(0, ": 1}"), piece(1, "{}", id="b", name="now"),
        chunk({"content": "!"}), chunk({}, "tool_calls"), DONE,
    ]  # fmt: skip
    made = stream_of("anthropic", events)
    assert [(one["type"], one.get("text", one["json"])) for one in blocks(made)] == [
        ("text", "Look"), ("tool_use", '{"a": 1}'), ("tool_use", "{}"), ("text", "!"),
    ]  # fmt: skip
    assert kinds(made)[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize(
    "events",
    [
        # No index; the same index for each; id and name in each piece; no ids at all.
        [piece(None, "{}", id="a", name="f"), piece(None, "{}", id="b", name="g")],
        [piece(0, "{}", id="a", name="f"), piece(0, "{}", id="b", name="g")],
        [piece(0, "{", id="a", name="f"), piece(0, "}"), piece(0, "{", id="b", name="g"), piece(0, "}")],
        [piece(0, "{", id="a", name="f"), piece(0, "}", id="a", name="f"), piece(1, "{}", id="b", name="g")],
        [piece(None, "{", name="f"), piece(None, "}"), piece(None, "{}", name="g")],
        [piece(0, "{", name="f"), piece(0, "}"), piece(1, "{}", name="g")],
        [piece(0, "{", id="a", name="f"), piece(0, "}", id="", name=""), piece(1, "{}", id="b", name="g")],
    ],
)
def test_calls_as_different_servers_write_them(events: list[Any]) -> None:
    made = blocks(stream_of("anthropic", [*events, chunk({}, "stop"), DONE]))
    assert [(one["name"], one["json"]) for one in made] == [("f", "{}"), ("g", "{}")]
    assert len({one["id"] for one in made}) == 2


def test_usage_and_the_end_wait_for_the_last_chunk() -> None:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    stream = asking("anthropic", stream=True).stream()
    stream.feed(sse(chunk({"content": "a"})))
    assert b"message_stop" not in stream.feed(sse(chunk({}, "length")))
    assert stream.feed(sse({"id": "c1", "choices": [], "usage": usage})) == b""
    ending, stop = datas(stream.feed(DONE))
    assert ending["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (ending["usage"]["input_tokens"], ending["usage"]["cache_read_input_tokens"]) == (8, 4)
    assert ending["usage"]["output_tokens"] == 5
    assert stop == {"type": "message_stop"}
    assert stream.is_whole


def test_a_first_chunk_without_choices_does_not_begin_the_message() -> None:
    events = [{"choices": [], "prompt_filter_results": []}, chunk({"content": "a"}), chunk({}, "stop"), DONE]
    first = datas(stream_of("anthropic", events))[0]
    assert (first["message"]["id"], first["message"]["model"]) == ("c1", "gpt")


def test_a_refusal_in_a_stream() -> None:
    events = [chunk({"refusal": "I "}), chunk({"refusal": "won't."}), chunk({}, "stop"), DONE]
    made = stream_of("anthropic", events)
    assert blocks(made)[0]["text"] == "I won't."
    assert datas(made)[-2]["delta"]["stop_reason"] == "refusal"
    assert datas(made)[-2]["delta"]["stop_details"]["explanation"] == "I won't."


def test_an_error_among_chunks_is_the_last_word() -> None:
    events = [chunk({"content": "a"}), {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}, DONE]
    made = stream_of("anthropic", events)
    assert made.endswith(b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow down"}}\n\n')
    assert b"message_stop" not in made


@pytest.mark.parametrize("events", [[], [chunk({"content": "a"})], [piece(0, '{"a', id="a", name="f")]])
def test_a_completion_that_is_cut_stays_cut(events: list[Any]) -> None:
    stream = asking("anthropic", stream=True).stream()
    made = b"".join(stream.feed(sse(event)) for event in events) + stream.end()
    assert b"message_delta" not in made
    assert b"message_stop" not in made
    assert not stream.is_whole


def test_a_completion_without_its_last_mark_is_whole() -> None:
    made = stream_of("anthropic", [chunk({"content": "a"}), chunk({}, "stop")])
    assert kinds(made)[-1] == "message_stop"


def test_other_choices_are_not_heard() -> None:
    other = {"id": "c1", "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    made = blocks(stream_of("anthropic", [chunk({"content": "a"}), other, chunk({}, "stop"), DONE]))
    assert [one["text"] for one in made] == ["a"]
