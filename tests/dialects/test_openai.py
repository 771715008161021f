"""OpenAI: what decides in a request, how an answer is metered, and how one is ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.openai import OpenAI
from meshd.dialects.openai_meter import OpenAIMeter
from meshd.dialects.windows import WINDOW_UNKNOWN, window
from meshd.refusal import Reason, Refused

DIALECT = OpenAI()
MESSAGES = [{"role": "user", "content": "Is it foggy?"}]


def read(operation: str = "chat", **members: Any) -> Ask:
    body = {"model": "gpt-4o-mini", "messages": MESSAGES} | members
    return DIALECT.read(operation, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/chat/completions", "chat"),
        ("POST", "/v1/chat/completions/", "chat"),
        ("POST", "/openai/v1/chat/completions?x=/embeddings", "chat"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/completions", "text_completion"),
        ("POST", "/v1/chat/completions/abc", None),
        ("POST", "/v1/CHAT/completions", None),
        ("POST", "/v1/x?/chat/completions", None),
        ("POST", "/v1/Chat/completions", None),
        ("POST", "/v1/chat/./completions", None),
        ("POST", "/v1//chat//completions", "chat"),
        ("POST", "/openai/deployments/mine/chat/completions?api-version=1", "chat"),
        ("POST", "/v1/engines/gpt-4/chat/completions", "chat"),
        ("POST", "", None),
    ],
)
def test_recognise(method: str, path: str, operation: str | None) -> None:
    assert DIALECT.recognise(method, path) == operation


@pytest.mark.parametrize(
    ("method", "path", "is_free"),
    [
        ("GET", "/v1/models", True),
        ("GET", "/v1/models/gpt-4o?x=1", True),
        ("HEAD", "/models", True),
        ("GET", "/llm/models", True),
        ("POST", "/v1/models", False),
        ("DELETE", "/v1/models/ft:gpt-4o:me", False),
        ("GET", "/v1/realtime?a=/models/", False),
        ("GET", "/v1/responses/r1?stream=true", True),
        ("POST", "/v1/responses", False),
    ],
)
def test_free(method: str, path: str, is_free: bool) -> None:
    assert DIALECT.is_free(method, path) is is_free


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"model": 4}, "'model' of the request body must be a string, not 4"),
        ({"model": ["gpt-4o"]}, "'model'"),
        ({"stream": "yes"}, "'stream' must be true or false, not \"yes\""),
        ({"stream": 1}, "'stream'"),
        ({"n": 0}, "'n' must be an integer from 1 to 128, not 0"),
        ({"n": -1}, "'n'"),
        ({"n": 10**9}, "'n'"),
        ({"n": True}, "'n'"),
        ({"n": "2"}, "'n'"),
        ({"n": 1.0}, "'n'"),
        ({"max_tokens": -5}, "'max_tokens' must be an integer from 1 to 1000000000, not -5"),
        ({"max_tokens": 10.0}, "not 10.0"),
        ({"max_completion_tokens": "100"}, "'max_completion_tokens'"),
        ({"max_completion_tokens": 10**30}, "'max_completion_tokens'"),
        ({"stream_options": "usage"}, "'stream_options': expected `object`"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "'include_usage'"),
        ({"tools": {}}, "'tools': expected `array`"),
        ({"tools": ["web_search"]}, "'tools': expected `object`"),
        ({"tools": [{}]}, "'tools'[0] names no tool"),
        ({"tools": [{"type": "function"}]}, "names no tool"),
        ({"tools": [{"type": "function", "function": {}}]}, "has no name"),
        ({"tools": [{"type": "function", "function": {"name": 7}}]}, "'name' of 'tools'[0] must be a string"),
        ({"tools": [{"type": "function", "function": "f"}]}, "expected `object`"),
        ({"functions": [{"description": "x"}]}, "'functions'[0] has no name"),
        ({"messages": [{"role": "user", "content": [{"type": 1}]}]}, "'type' of 'messages'[0]"),
        ({"messages": {"role": {}}}, "'messages': expected `array`"),
        ({"messages": ["x", []]}, "'messages'"),
    ],
)
def test_what_decides_must_have_its_type(members: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as caught:
        read(**members)
    assert says in caught.value.message
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","messages":[],"model":"dear"}',
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
        b'{"model":"m","tools":[{"type":"function","function":{"name":"a","name":"b"}}]}',
        b'{"model":"m","tools":[{"type":"function","type":"x","function":{"name":"a"}}]}',
        b'{"model":"m","tools":[{"type":"function","function":{"name":"a"},"functi\\u006fn":{"name":"b"}}]}',
        b'{"model":"m","functions":[{"name":"a","name":"b"}]}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}],"content":"text"}]}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","type":"text"}]}]}',
        b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"detail":"low","detail":"high"}}]}]}',
    ],
)
def test_duplicates_are_refused_at_every_level_that_decides(body: bytes) -> None:
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("chat", body)


def test_null_is_absent() -> None:
    nulls: dict[str, Any] = dict.fromkeys(
        ("n", "max_tokens", "max_completion_tokens", "stream", "tools", "stream_options", "functions")
    )
    ask = read(**nulls)
    assert (ask.choices, ask.output_cap, ask.is_stream, ask.tools) == (1, None, False, ())
    assert DIALECT.read("chat", b"{}").model == ""


@pytest.mark.parametrize(
    ("part", "is_hidden"),
    [
        ({"type": "text", "text": "x"}, False),
        ({"type": "refusal", "refusal": "no"}, False),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, False),
        ({"type": "image_url"}, True),
        ({"type": "image_url", "image_url": None}, True),
        ({"type": "image_url", "image_url": {"url": 7}}, True),
        ({"type": "image_url", "image_url": ["x"]}, True),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, True),
        ({"type": "file", "file": {"file_id": "file-1"}}, True),
        ({"type": "something_new"}, True),
        ({}, True),
    ],
)
def test_input_that_the_body_does_not_show_is_bounded_by_the_window(part: dict[str, Any], is_hidden: bool) -> None:
    ask = read(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])
    assert (ask.input_bound == window("gpt-4o-mini")) is is_hidden
    assert (ask.bound_by == "window") is is_hidden
    assert window("gpt-4o-mini") == 128_000


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "audio": {"id": "audio_1"}},
        {"role": "user", "content": {"type": "image_url"}},
        {"role": "user", "content": [{"type": "image_url"}]},
    ],
)
def test_no_message_hides_its_input_behind_its_shape_or_spelling(message: dict[str, Any]) -> None:
    for spelled in (json.dumps(message), json.dumps(message, indent=1), json.dumps(message, separators=(",", ":"))):
        for escaped in (spelled, spelled.replace("audio", "audi\\u006f").replace("content", "c\\u006fntent")):
            body = b'{"model":"unheard-of","messages":[{"role":"user","content":"a"},' + escaped.encode() + b"]}"
            assert DIALECT.read("chat", body).input_bound == WINDOW_UNKNOWN


@pytest.mark.parametrize(
    ("members", "names", "windows"),
    [
        ({"tools": [{"type": "web_search"}]}, ("web_search",), 10),
        ({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "x"}]}, ("f", "x"), 10),
        ({"tools": [{"type": "x", "function": {"name": "f"}}]}, ("f", "x"), 10),
        ({"web_search_options": {}}, ("web_search",), 1),
        ({"tools": [{"function": {"name": "f"}}]}, ("f",), 0),
    ],
)
def test_tools(members: dict[str, Any], names: tuple[str, ...], windows: int) -> None:
    ask = read(**members)
    assert ask.tools == names
    if windows:
        assert ask.input_bound == windows * 128_000
    else:
        assert ask.input_bound < 1_000


@pytest.mark.parametrize(
    ("given", "is_hidden"),
    [
        ("text {with} braces", False),
        (["a {", "b"], False),
        ([1, 2, 3], False),
        ([{"type": "image"}], True),
        ([["x"]], False),
    ],
)
def test_embeddings(given: Any, is_hidden: bool) -> None:
    ask = DIALECT.read("embeddings", json.dumps({"model": "text-embedding-3-small", "input": given}).encode())
    assert (ask.input_bound == 8_192) is is_hidden
    assert not ask.has_output
    with pytest.raises(Refused, match="'input'"):
        DIALECT.read("embeddings", b'{"model":"m","input":7}')


def test_the_larger_of_two_caps_bounds_and_both_are_lowered() -> None:
    body = json.dumps({"model": "m", "max_tokens": 50, "max_completion_tokens": 200}).encode()
    ask = DIALECT.read("chat", body)
    assert ask.output_cap == 200
    ask.output_cap_granted = 20
    assert json.loads(DIALECT.rewrite(ask, body)) == {"model": "m", "max_tokens": 20, "max_completion_tokens": 20}
    ask.output_cap_granted = 100
    assert json.loads(DIALECT.rewrite(ask, body)) == {"model": "m", "max_tokens": 50, "max_completion_tokens": 100}


@pytest.mark.parametrize(("model", "name"), [("o4-mini", "max_completion_tokens"), ("llama3.1", "max_tokens")])
def test_the_cap_is_set_under_the_name_that_the_model_s_servers_know(model: str, name: str) -> None:
    body = json.dumps({"model": model}).encode()
    ask = DIALECT.read("chat", body)
    ask.output_cap_granted = 20
    assert json.loads(DIALECT.rewrite(ask, body)) == {"model": model, name: 20}


def test_each_attempt_is_rewritten_from_what_was_read() -> None:
    body = json.dumps({"model": "m", "max_tokens": 50}).encode()
    ask = DIALECT.read("chat", body)
    for granted in (10, 40, 5):
        ask.output_cap_granted = granted
        assert json.loads(DIALECT.rewrite(ask, body))["max_tokens"] == granted


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **members: Any) -> bytes:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    whole = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-1", "choices": choices} | members
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


def metered(*events: bytes, **members: Any) -> OpenAIMeter:
    meter = DIALECT.meter(read(stream=True, **members))
    for event in events:
        meter.read_event(event)
    return meter


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": 5.0, "completion_tokens": 3},
        {"prompt_tokens": "5", "completion_tokens": 3},
        {"prompt_tokens": 10**10, "completion_tokens": 3},
        {"prompt_tokens": 5},
        {"completion_tokens": 5},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 5, "completion_tokens": 0},
        {},
        [],
        "none",
        7,
        None,
    ],
)
def test_absurd_usage_is_missing_and_missing_is_not_zero(usage: Any) -> None:
    meter = metered(chunk({"content": "words and words"}), chunk(usage=usage), b"data: [DONE]\n\n")
    assert meter.usage is None
    assert meter.output_estimate == len("words and words") // 4
    assert meter.is_terminal


def test_usage_survives_nonsense_beside_it() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    oddities: list[dict[str, Any]] = [{"choices": "x"}, {"choices": [7, {"delta": 3}]}, {"id": 7}, {"model": []}]
    for nonsense in (*oddities, {"created": "now"}):
        meter = metered(chunk(**({"usage": usage} | nonsense)))
        assert meter.usage == Usage(5, 3)


def test_running_usage_only_grows() -> None:
    running = [chunk({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": made}) for made in (1, 7, 3)]
    meter = metered(*running)
    assert meter.usage == Usage(5, 7)
    assert meter.output_estimate == 7


def test_only_the_usage_chunk_that_meshd_asked_for_is_dropped() -> None:
    usage = chunk(usage={"prompt_tokens": 5, "completion_tokens": 3})
    prompt_filter = chunk(prompt_filter_results=[])
    last = chunk({}, finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 3})
    for options, is_dropped in ((None, True), ({"include_usage": True}, False), ({"include_usage": False}, False)):
        meter = metered(stream_options=options)
        assert (meter.read_event(usage) is None) is is_dropped
        for kept in (prompt_filter, last, b": ping\n\n", b"data: [DONE]\n\n"):
            event = meter.read_event(kept)
            assert event is not None
            assert event.raw is kept


def test_an_error_in_the_stream_is_no_success() -> None:
    meter = metered(chunk({"content": "x"}), b'data: {"error":{"message":"overloaded"}}\n\n', b"data: [DONE]\n\n")
    assert not meter.is_terminal


def test_tool_calls_are_named_in_every_form() -> None:
    meter = metered()
    forms: list[dict[str, Any]] = [
        {"tool_calls": [{"function": {"name": "a"}}, {"custom": {"name": "b"}}]},
        {"function_call": {"name": "c"}},
    ]
    seen = []
    for form in forms:
        event = meter.read_event(chunk(form))
        assert event is not None
        assert event.has_content
        seen.append(event.tool_names)
    event = meter.read_event(chunk({"content": "x"}))
    assert event is not None
    assert seen == [("a", "b"), ("c",)]
    assert event.tool_names == ()


def test_the_tools_of_all_choices_are_named_in_their_order() -> None:
    choices = [
        {"index": at % 3, "message": {"function_call": {"name": f"t{at}"}}, "finish_reason": "stop"}
        for at in range(5000)
    ]
    meter = OpenAIMeter(Ask("chat", "gpt-4o", choices=3))
    event = meter.read_message(json.dumps({"choices": choices}).encode())
    assert event.tool_names == tuple(f"t{at}" for at in range(5000))
    assert len(meter.finish_reasons) == 1024


def events_of(stream: bytes) -> list[Any]:
    datas = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in datas]


def test_a_cut_finishes_every_open_choice_and_gives_the_usage_that_was_asked_for() -> None:
    meter = metered(
        chunk({"content": "a" * 40}),
        chunk({"content": "b"}, index=2),
        chunk({}, finish="stop", index=1),
        chunk({"content": "not forwarded"}, index=0),
        n=3,
        stream_options={"include_usage": True},
    )
    *ends, usage, done = events_of(meter.cut())
    assert [(end["choices"][0]["index"], end["choices"][0]["finish_reason"]) for end in ends] == [
        (0, "length"),
        (2, "length"),
    ]
    assert all((end["id"], end["model"], end["created"]) == ("c1", "m-1", 7) for end in ends)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] >= 10
    assert done == "[DONE]"


def test_a_cut_stands_in_the_place_of_the_last_event_or_follows_it() -> None:
    finish = chunk({}, finish="stop")
    assert len(events_of(metered(finish).cut())) == 2
    assert events_of(metered(finish).cut(is_event_forwarded=True)) == ["[DONE]"]
    assert metered(b"data: [DONE]\n\n").cut() == b""


def test_a_plain_answer_that_cannot_be_read_is_passed_on() -> None:
    for body in (b"", b"<html>", b"[1]", b'{"usage":{"prompt_tokens":5,"completion_tokens":3}', b"\xff"):
        meter = metered()
        assert meter.read_message(body).raw is body
        assert meter.usage is None


def test_what_python_servers_write_is_read_as_the_sdk_reads_it() -> None:
    usage = b'"usage":{"prompt_tokens":5,"completion_tokens":3}'
    for odd in (b'"content":"\\ud83d"', b'"logprob":-Infinity,"content":"x"', b'"score":NaN'):
        meter = metered(b'data:  {"id":"c1","choices":[{"index":0,"delta":{' + odd + b"}}]," + usage + b"}\n\n")
        assert meter.usage == Usage(5, 3)


def test_no_answer_makes_its_meter_grow_or_crawl() -> None:
    finish = b"".join(b',{"index":%d,"finish_reason":"stop"}' % index for index in range(5_000))
    calls = b",".join([b'{"function":{"name":"a"}}'] * 20_000)
    meter = metered(
        b'data: {"id":"c1","choices":[{"index":0}' + finish + b"]}\n\n",
        b'data: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[' + calls + b"]}}]}\n\n",
    )
    assert len(meter.finish_reasons) <= 1024
    assert meter.cut().count(b"finish_reason") <= 1024
