"""What both dialects can say goes there and back, plain and streamed; of nonsense comes a typed error, and no other."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.dialects.table import DIALECTS
from meshd.dialects.translation import TranslationError
from meshd.refusal import Refused
from tests.dialects.test_properties import like_json, like_object
from tests.dialects.test_translation_golden import FOLDERS, case_of, sent_for
from tests.dialects.translating import asking, between, body_of, read, sent, sse

texts = st.text(min_size=1, max_size=20).filter(str.strip)
names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
plain_ids = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
inputs = st.dictionaries(texts, values, max_size=3)
pictures = st.sampled_from(["https://example.com/quay.jpg", "data:image/png;base64,iVBORw0KGgo="])
text_parts = texts.map(lambda text: {"type": "text", "text": text})
parts = text_parts | pictures.map(lambda url: {"type": "image_url", "image_url": {"url": url}})


@st.composite
def rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A user's message, and perhaps what follows: calls with their results, an answer."""
    said: list[dict[str, Any]] = [{"role": "user", "content": draw(texts | st.lists(parts, min_size=1, max_size=3))}]
    for ids in draw(st.lists(st.lists(plain_ids, unique=True, min_size=1, max_size=3), max_size=2)):
        calls = [
            {"id": one, "type": "function", "function": {"name": draw(names), "arguments": json.dumps(draw(inputs))}}
            for one in ids
        ]
        said.append({"role": "assistant", "content": draw(st.none() | texts), "tool_calls": calls})
        said += [
            {
                "role": "tool",
                "tool_call_id": one,
                "content": draw(st.just("") | texts | st.lists(text_parts, min_size=2)),
            }
            for one in ids
        ]
    return said


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    said = [{"role": "system", "content": text} for text in draw(st.lists(texts, max_size=2))]
    for index, one in enumerate(draw(st.lists(rounds(), min_size=1, max_size=3))):
        said += [{"role": "assistant", "content": draw(texts)}] if index else []
        said += one
    return said


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    body = body_of("openai", messages=draw(conversations()), max_completion_tokens=draw(st.integers(1, 10_000)))
    offered = draw(st.lists(names, unique=True, max_size=3))
    if offered:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "description": draw(texts), "parameters": schema}}
            for name in offered
            for schema in [{"type": "object", "properties": {"a": {"type": "string"}}}]
        ]
        named = {"type": "function", "function": {"name": draw(st.sampled_from(offered))}}
        body["tool_choice"] = draw(st.sampled_from(["auto", "none", "required", named]))
        if draw(st.booleans()) and body["tool_choice"] != "none":
            body["parallel_tool_calls"] = False
    if draw(st.booleans()):
        body["stop"] = draw(st.lists(texts, min_size=1, max_size=4))
    if draw(st.booleans()):
        body["temperature"] = draw(st.floats(0, 1))
    return body


def simplest(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return messages in one spelling: contents as parts, the system prompt as one, arguments read."""
    made: list[tuple[Any, ...]] = []
    for message in messages:
        content = message.get("content") or []
        listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
        calls = [
            (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ]
        if message["role"] == "system" and made:
            made[0] = ("system", made[0][1] + listed, [], None)
        else:
            made.append((message["role"], listed, calls, message.get("tool_call_id")))
    return made


@given(chats())
@settings(max_examples=150)
def test_there_and_back(chat: dict[str, Any]) -> None:
    there = sent("openai", chat)
    back = sent("anthropic", there, model="gpt-4o")
    assert simplest(back["messages"]) == simplest(chat["messages"])
    if "tools" in chat:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            assert back.get(name) == chat.get(name), name
    else:
        assert back.get("tool_choice", "none") == "none"
    for name in ("max_completion_tokens", "stop", "temperature"):
        assert back.get(name) == chat.get(name), name
    # And roles alternate, as Anthropic wants them.
    roles = [turn["role"] for turn in there["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


# -- answers

finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
calls_said = st.lists(st.tuples(plain_ids, names, inputs), max_size=3, unique_by=lambda call: call[0])


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    calls = [
        {"id": one, "type": "function", "function": {"name": name, "arguments": json.dumps(said)}}
        for one, name, said in draw(calls_said)
    ]
    said: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | texts)}
    if calls:
        said["tool_calls"] = calls
    given_tokens, made = draw(st.integers(1, 10_000)), draw(st.integers(1, 10_000))
    cached = draw(st.integers(0, given_tokens))
    usage = {"prompt_tokens": given_tokens, "completion_tokens": made, "total_tokens": given_tokens + made}
    usage |= {"prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0}}
    usage |= {"completion_tokens_details": {"reasoning_tokens": draw(st.integers(0, made))}}
    finish = "tool_calls" if calls else draw(finishes.filter("tool_calls".__ne__))
    choices = [{"index": 0, "message": said, "finish_reason": finish, "logprobs": None}]
    return {"id": "c1", "model": "gpt", "choices": choices, "usage": usage}


def pieces_of(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def chunks_of(answer: dict[str, Any], size: int) -> list[Any]:
    """Return an answer as its chunks, cut into pieces of a size."""
    (choice,) = answer["choices"]
    said = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in pieces_of(said["content"] or "", size)]
    for index, call in enumerate(said.get("tool_calls", ())):
        function = call["function"]
        deltas.append({"tool_calls": [call | {"index": index, "function": function | {"arguments": ""}}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in pieces_of(function["arguments"], size)
        ]
    made = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    made.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
    chunks: list[Any] = [{"id": "c1", "model": "gpt", "choices": [one]} for one in made]
    return [*chunks, {"id": "c1", "model": "gpt", "choices": [], "usage": answer["usage"]}, b"data: [DONE]\n\n"]


def translated(caller: str, events: list[Any]) -> list[bytes]:
    options = {"stream_options": {"include_usage": True}} if caller == "openai" else {}
    stream = asking(caller, stream=True, **options).stream()
    made = b"".join(stream.feed(sse(event)) for event in events) + stream.end()
    assert stream.is_whole
    return [event + b"\n\n" for event in made.split(b"\n\n")[:-1]]


@given(completions(), st.integers(1, 9))
@settings(max_examples=100)
def test_an_answer_goes_there_and_back_plain_and_streamed(answer: dict[str, Any], size: int) -> None:
    message = json.loads(asking("anthropic").reply(json.dumps(answer).encode()))
    events = translated("anthropic", chunks_of(answer, size))
    assert put_together(events) == (message["content"], message["stop_reason"], message["usage"])
    # Back as a plain answer, and as a stream of the translated stream.
    back = json.loads(asking("openai").reply(json.dumps(message).encode()))
    assert plain(back) == plain(answer)
    again = translated("openai", events)
    assert put_together_chunks(again) == plain(answer)


def plain(answer: dict[str, Any]) -> Any:
    (choice,) = answer["choices"]
    calls = [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"].get("tool_calls", ())
    ]
    return choice["message"]["content"] or "", calls, choice["finish_reason"], answer["usage"]


def said_in(event: bytes) -> Any:
    return json.loads(event.partition(b"data: ")[2])


def put_together(events: list[bytes]) -> Any:
    """Return content, reason and usage of a stream of message events, as a client puts it together."""
    blocks: list[dict[str, Any]] = []
    written: list[str] = []
    ending: dict[str, Any] = {}
    for event in map(said_in, events):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
            written.append("")
        elif event["type"] == "content_block_delta":
            written[event["index"]] += event["delta"].get("partial_json", "") + event["delta"].get("text", "")
        elif event["type"] == "message_delta":
            ending = event
    for block, text in zip(blocks, written, strict=True):
        block |= {"text": text} if block["type"] == "text" else {"input": json.loads(text or "{}")}
    return blocks, ending["delta"]["stop_reason"], ending["usage"]


def put_together_chunks(events: list[bytes]) -> Any:
    text, finish, usage = "", None, None
    calls: dict[int, list[Any]] = {}
    assert events[-1] == b"data: [DONE]\n\n"
    for chunk in map(said_in, events[:-1]):
        usage = chunk["usage"] or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            for call in choice["delta"].get("tool_calls", ()):
                known = calls.setdefault(call["index"], [call.get("id"), call["function"].get("name"), ""])
                known[2] += call["function"]["arguments"]
    return text, [(one, name, json.loads(said)) for one, name, said in calls.values()], finish, usage


# -- whatever is sent


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
@given(data=like_json | like_object | st.binary(max_size=60))
@settings(max_examples=150)
def test_any_answer_is_translated_or_a_typed_error(caller: str, data: bytes) -> None:
    made = asking(caller)
    with contextlib.suppress(TranslationError):
        json.loads(made.reply(data))
    stream = made.stream()
    with contextlib.suppress(TranslationError):
        assert stream.feed(b"data: " + data.replace(b"\n", b" ") + b"\n\n").endswith((b"\n\n", b""))
        stream.end()
    status, body = made.error(500, data)
    assert (status, list(json.loads(body))[-1]) == (500, "error")


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
@given(data=like_object)
@settings(max_examples=150)
def test_any_request_is_translated_or_has_a_reason(caller: str, data: bytes) -> None:
    try:
        ask = DIALECTS[caller].read("chat", data)
    except Refused:
        return
    made = between(caller)
    if made.why_not(ask, "m"):
        with pytest.raises(TranslationError):
            made.request(ask, data, model="m", output_cap=5)
    else:
        json.loads(made.request(ask, data, model="m", output_cap=5)[1])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@given(data=st.data())
@settings(max_examples=60)
def test_golden_requests_and_answers_with_a_part_put_out_of_place(folder: Any, data: st.DataObject) -> None:
    """One value somewhere is another; a request then has a reason or is translated, an answer too."""
    asked = json.loads((folder / "asked.json").read_bytes())
    spoil(asked, data)
    caller = case_of(folder)["from"]
    with contextlib.suppress(Refused, TranslationError):
        ask, body = read(caller, asked)
        between(caller).request(ask, body, model="m", output_cap=None)
    made, _, _ = sent_for(folder)
    with contextlib.suppress(TranslationError):
        if (folder / "answer.json").exists():
            answer = json.loads((folder / "answer.json").read_bytes())
            spoil(answer, data)
            made.reply(json.dumps(answer).encode())
        else:
            stream = made.stream()
            for event in (folder / "answer.sse").read_bytes().split(b"\n\n"):
                said = event.partition(b"data: ")[2]
                if said[:1] == b"{":
                    one = json.loads(said)
                    spoil(one, data)
                    event = b"data: " + json.dumps(one).encode()
                stream.feed(event + b"\n\n")
            stream.end()


def spoil(value: Any, data: st.DataObject) -> None:
    """Put something else in the place of one value, at any depth."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inner = value[key]
        if not isinstance(inner, dict | list) or data.draw(st.booleans()):
            value[key] = data.draw(st.sampled_from([None, 5, -1.5, True, "", "x", [], {}, [5], {"type": "text"}, [{}]]))
            return
        value = inner
