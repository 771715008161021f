"""Ollama's own API: what decides in a request, how an answer is metered, and how one is ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.ollama import Ollama
from meshd.dialects.ollama_meter import OllamaMeter
from meshd.dialects.windows import window
from meshd.refusal import Reason, Refused
from meshd.tokens.encodings import WINDOW

DIALECT = Ollama()
MESSAGES = [{"role": "user", "content": "Is it foggy?"}]


def read(**members: Any) -> Ask:
    body = {"model": "llama3.2", "messages": MESSAGES} | members
    return DIALECT.read("chat", json.dumps(body).encode())


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"model": 7}, "'model'"),
        ({"options": {"num_predict": "9"}}, "'num_predict' must be an integer"),
        ({"options": {"num_predict": 9.0}}, "'num_predict'"),
        ({"options": []}, "'options': expected `object`"),
        ({"stream": "false"}, "'stream' of"),
        ({"stream": 0}, "must be true or false"),
        ({"messages": [7]}, "expected `object`"),
        ({"tools": [{}]}, "'tools'[0] names no tool"),
        ({"tools": [{"function": {}}]}, "'tools'[0] has no name"),
        ({"tools": [{"function": {"name": 1}}]}, "'name' of 'tools'[0]"),
    ],
)
def test_what_decides_must_have_its_type(members: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as caught:
        read(**members)
    assert says.removesuffix(" of") in caught.value.message
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"small","model":"large"}',
        b'{"model":"small","Model":"large"}',
        b'{"MODEL":"large"}',
        b'{"options":{"num_predict":1,"num_predict":100000}}',
        b'{"options":{"num_predict":1},"Options":{"num_predict":100000}}',
        '{"me\u017f\u017fages":[{"images":["AA"]}]}'.encode(),
        b'{"messages":[{"content":"x","Images":["AA"]}]}',
        b'{"messages":[{"content":"x","content":"y"}]}',
        b'{"tools":[{"function":{"name":"a","Name":"b"}}]}',
        b'{"tools":[{"function":{"name":"a"},"Function":{"name":"b"}}]}',
        b'{"stream":false,"STREAM":true}',
    ],
)
def test_a_name_in_another_case_is_a_duplicate_since_the_server_takes_it(body: bytes) -> None:
    with pytest.raises(Refused, match=r"more than once|which the server reads as"):
        DIALECT.read("chat", body)


@pytest.mark.parametrize("stream", [True, None])
def test_an_answer_streams_unless_the_request_says_otherwise(stream: bool | None) -> None:
    assert read(stream=stream).is_stream
    assert read().is_stream
    assert not read(stream=False).is_stream


@pytest.mark.parametrize("unlimited", [-1, -2, 0, None])
def test_a_cap_that_is_none_is_set(unlimited: int | None) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, "options": {"seed": 1, "num_predict": unlimited}}).encode()
    ask = DIALECT.read("chat", body)
    assert ask.output_cap is None
    ask.output_cap_granted = 12
    assert json.loads(DIALECT.rewrite(ask, body))["options"] == {"seed": 1, "num_predict": 12}


@pytest.mark.parametrize(
    ("members", "bound"),
    [
        ({"options": {"num_ctx": 4096}}, 4096),
        ({"options": {"num_ctx": -1}}, None),
        ({}, None),
        # A model in the provider's cloud has its own window, whatever is asked.
        ({"model": "qwen3-vl:235b-cloud", "options": {"num_ctx": 4096}}, None),
    ],
)
def test_images_are_bounded_by_what_the_model_holds(members: dict[str, Any], bound: int | None) -> None:
    ask = read(messages=[{"role": "user", "content": "?", "images": ["AA"]}], **members)
    assert ask.input_bound == (bound or window(ask.model))
    assert ask.bound_by == WINDOW
    body = {"model": "llava", "prompt": "?", "images": ["AA"]} | members
    ask = DIALECT.read("chat", json.dumps(body).encode())
    assert ask.input_bound == (bound or window(ask.model))
    assert read(messages=[{"role": "user", "content": "?", "images": None}], **members).input_bound < 1_000


def meter_of(**members: Any) -> OllamaMeter:
    return DIALECT.meter(read(**members))


def line(**members: Any) -> bytes:
    return json.dumps({"model": "llama3.2", "created_at": "2026-03-01T06:00:00Z"} | members).encode() + b"\n"


def word(text: str, **members: Any) -> bytes:
    return line(message={"role": "assistant", "content": text}, done=False, **members)


def test_the_splitter_is_by_content_type() -> None:
    meter = meter_of()
    assert meter.splitter_for(b"application/x-ndjson", 1 << 20) is not None
    assert meter.splitter_for(b"application/json; charset=utf-8", 1 << 20) is None
    assert meter.splitter_for(b"", 1 << 20) is None


@pytest.mark.parametrize(
    ("counts", "total", "is_estimated"),
    [
        ({"prompt_eval_count": 9, "eval_count": 4}, 13, False),
        ({"eval_count": 4}, None, True),
        ({"prompt_eval_count": 0, "eval_count": 4}, None, True),
        ({"prompt_eval_count": -3, "eval_count": 4}, None, True),
        ({"prompt_eval_count": 9}, 0, False),
        ({"prompt_eval_count": 9, "eval_count": 0}, 0, False),
        ({"prompt_eval_count": 9, "eval_count": "4"}, 0, False),
        ({"prompt_eval_count": 9, "eval_count": 10**12}, 0, False),
        ({}, 0, False),
    ],
)
def test_usage_is_reported_or_bounded_or_missing(counts: Any, total: int | None, is_estimated: bool) -> None:
    for is_streamed in (False, True):
        meter = meter_of()
        if is_streamed:
            meter.read_event(word("fog"))
            meter.read_event(line(message={"role": "assistant", "content": ""}, done=True, **counts))
        else:
            meter.read_message(line(message={"role": "assistant", "content": "fog"}, done=True, **counts))
        assert meter.is_terminal
        if total == 0:
            assert meter.usage is None
            continue
        assert meter.usage is not None
        # What went unsaid of the prompt is charged at its bound, never at zero.
        assert meter.usage.total == (read().input_bound + 4 if total is None else total)
        assert meter.usage.is_estimated is is_estimated


def test_thinking_and_calls_count_as_output() -> None:
    meter = meter_of()
    meter.read_event(line(message={"content": "", "thinking": "x" * 40}, done=False))
    assert meter.output_estimate == 10
    call = {"function": {"name": "wind", "arguments": {"place": "Ushant", "note": "y" * 40}}}
    event = meter.read_event(line(message={"content": "", "tool_calls": [call]}, done=False))
    assert event is not None
    assert event.tool_names == ("wind",)
    assert meter.output_estimate > 20
    generated = meter_of()
    generated.read_event(line(response="z" * 40, done=False))
    assert generated.output_estimate == 10


def test_an_error_in_a_stream_is_no_end() -> None:
    meter = meter_of()
    meter.read_event(word("fog"))
    meter.read_event(b'{"error":"the runner has ended"}\n')
    meter.read_event(line(done=True, eval_count=3, prompt_eval_count=3))
    assert not meter.is_terminal


def test_one_member_of_an_unexpected_type_does_not_hide_the_counts() -> None:
    meter = meter_of()
    meter.read_event(line(message=7, done=True, prompt_eval_count=3, eval_count=2))
    assert meter.usage == Usage(3, 2)


def test_a_cut_is_a_last_line_that_says_length() -> None:
    meter = meter_of()
    meter.read_event(word("fog and more fog"))
    meter.read_event(word(" again"))
    last = json.loads(meter.cut())
    assert (last["done"], last["done_reason"], last["message"]) == (
        True,
        "length",
        {"role": "assistant", "content": ""},
    )
    assert last["created_at"] == "2026-03-01T06:00:00Z"
    assert last["eval_count"] == meter.output_estimate > 0
    assert meter.cut().endswith(b"\n")
    generated = DIALECT.meter(DIALECT.read("chat", b'{"model":"m","prompt":"x"}'))
    assert json.loads(generated.cut())["response"] == ""
    assert "message" not in json.loads(generated.cut())


def test_a_cut_at_the_last_line() -> None:
    meter = meter_of()
    meter.read_event(line(done=True, done_reason="stop", eval_count=3, prompt_eval_count=3))
    assert meter.cut(is_event_forwarded=True) == b""
    assert json.loads(meter.cut())["done_reason"] == "length"
    meter.read_event(b"\n")
    assert meter.cut() == b""


def test_refusals_and_errors_are_a_message() -> None:
    refused = Refused(Reason.BUDGET_EXHAUSTED, "nothing left")
    assert json.loads(DIALECT.refusal_body(refused, call_id="c")[1]) == {"error": "nothing left"}
    assert meter_of().error_event(refused) == b'{"error":"nothing left"}\n'
