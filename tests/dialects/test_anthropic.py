"""Anthropic: what decides in a request, how an answer is metered, and how one is ended."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Ask, Usage
from meshd.dialects.anthropic import Anthropic
from meshd.dialects.anthropic_meter import AnthropicMeter
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.windows import WINDOW_UNKNOWN
from meshd.refusal import Reason, Refused

DIALECT = Anthropic()
MESSAGES = [{"role": "user", "content": "Is it foggy?"}]
WINDOW = 200_000


def read(**members: Any) -> Ask:
    body = {"model": "claude-3-5-haiku-latest", "max_tokens": 100, "messages": MESSAGES} | members
    return DIALECT.read("chat", json.dumps(body).encode())


@pytest.mark.parametrize(
    ("method", "path", "operation", "is_free"),
    [
        ("POST", "/v1/messages", "chat", False),
        ("POST", "/v1/messages?beta=true", "chat", False),
        ("POST", "/messages/", "chat", False),
        ("POST", "/v1/messages/count_tokens?beta=true", None, True),
        ("POST", "/v1/messages/batches", None, False),
        ("POST", "/v1/complete", None, False),
        ("GET", "/v1/messages", None, False),
        ("GET", "/v1/models", None, True),
        ("GET", "/v1/models/claude-x", None, True),
        ("POST", "/v1/files?x=/messages", None, True),
        ("POST", "/v1/sessions?x=/messages", None, False),
    ],
)
def test_recognise(method: str, path: str, operation: str | None, is_free: bool) -> None:
    assert DIALECT.recognise(method, path) == operation
    assert DIALECT.is_free(method, path) is is_free


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"model": None, "max_tokens": "1"}, "'max_tokens' must be an integer from 0 to 1000000000"),
        ({"max_tokens": -1}, "'max_tokens'"),
        ({"max_tokens": 1.5}, "'max_tokens'"),
        ({"max_tokens": True}, "'max_tokens'"),
        ({"model": {}}, "'model'"),
        ({"stream": "true"}, "'stream'"),
        ({"tools": [{"input_schema": {}}]}, "'tools'[0] has no name"),
        ({"tools": [{"name": 1}]}, "'name' of 'tools'[0]"),
        ({"tools": 1}, "'tools': expected `array`"),
        ({"thinking": "a lot"}, "'thinking': expected `object`"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "'budget_tokens'"),
        ({"system": 7}, "'system': expected `array`"),
        ({"mcp_servers": [{"url": "https://example.org"}]}, "'mcp_servers'[0] has no name"),
        ({"messages": [{"role": "user", "content": [7]}]}, "'messages'[0]: expected `object`"),
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
        b'{"model":"cheap","model":"dear"}',
        b'{"max_tokens":1,"max_tokens":100000}',
        b'{"tools":[{"name":"a","name":"b"}]}',
        b'{"thinking":{"type":"enabled","budget_tokens":1,"budget_tokens":2}}',
        b'{"system":[{"type":"image","type":"text"}]}',
        b'{"messages":[{"content":[{"type":"image"}],"content":"x"}]}',
        b'{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","type":"text"}]}]}]}',
        b'{"messages":[{"content":[{"type":"document","source":{"type":"file","type":"text"}}]}]}',
    ],
)
def test_duplicates_are_refused_at_every_level_that_decides(body: bytes) -> None:
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("chat", body)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("block", "is_hidden"),
    [
        ({"type": "text", "text": "x"}, False),
        ({"type": "tool_use", "id": "t", "name": "n", "input": {"deep": [{"type": "image"}]}}, False),
        ({"type": "tool_result", "tool_use_id": "t", "content": "x"}, False),
        ({"type": "tool_result", "tool_use_id": "t"}, False),
        ({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}, False),
        ({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}, False),
        ({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, {"type": "something_new"}]}, True),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}, False),
        ({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}, True),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, True),
        ({"type": "document"}, True),
        (IMAGE, False),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}, False),
        ({"type": "image"}, True),
        ({"type": "image", "source": None}, True),
        ({"type": "container_upload", "file_id": "f"}, True),
        ({"type": "something_new"}, True),
        ({}, True),
    ],
)
def test_input_that_the_body_does_not_show_is_bounded_by_the_window(block: dict[str, Any], is_hidden: bool) -> None:
    ask = read(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, block]}])
    assert (ask.input_bound == WINDOW) is is_hidden
    ask = read(messages=[*MESSAGES, {"role": "user", "content": [block]}, {"role": "user", "content": "x"}])
    assert (ask.input_bound == WINDOW) is is_hidden


def test_a_system_prompt_in_blocks() -> None:
    assert read(system=[{"type": "text", "text": "x"}]).input_bound < 1_000
    assert read(system=[IMAGE]).input_bound < 3_000
    assert read(system=[{"type": "document"}]).input_bound == WINDOW


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ("web_search",)),
        ({"tools": [{"type": "browser_toolset_20260801"}]}, ("browser_toolset_20260801",)),
        ({"mcp_servers": [{"type": "url", "name": "office", "url": "https://example.org"}]}, ("office",)),
        ({"container": {"skills": []}}, ()),
        ({"context_management": {"edits": []}}, ()),
    ],
)
def test_what_the_service_runs_is_bounded_by_a_window_each_turn(
    members: dict[str, Any], names: tuple[str, ...]
) -> None:
    ask = read(**members)
    assert ask.tools == names
    assert ask.input_bound == 10 * WINDOW


ADDED = {
    "type": "tool_addition",
    "tool": {"type": "tool_definition", "definition": {"type": "web_search_x", "name": "w"}},
}


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (ADDED, "w"),
        ({"type": "tool_addition", "tool": {"type": "tool_reference", "name": "old"}}, "old"),
        ({"type": "tool_addition", "tool": {"definition": {"type": "mcp_toolset"}}}, "mcp_toolset"),
        ({"type": "tool_addition"}, "tool_addition"),
    ],
)
def test_a_tool_that_a_message_adds_is_offered_too(block: dict[str, Any], name: str) -> None:
    ask = read(tools=[{"name": "a"}], messages=[{"role": "user", "content": [block]}])
    assert ask.tools == ("a", name)
    assert ask.input_bound == 10 * WINDOW


def test_a_thread_hides_what_was_said_before() -> None:
    assert read(thread={"type": "continue", "previous_message_id": "msg_1"}).input_bound == WINDOW
    assert read(thread=None).input_bound < 1_000


def test_a_tool_that_asks_another_model_has_that_ones_window_too() -> None:
    ask = read(tools=[{"type": "advisor_20260301", "name": "advisor", "model": "claude-3-opus-latest"}])
    assert ask.other_models == ("claude-3-opus-latest",)
    assert ask.input_bound == 20 * WINDOW


@pytest.mark.parametrize(
    ("fallbacks", "models", "choices", "cap"),
    [
        ([], (), 1, 100),
        ([{"model": "claude-3-x"}], ("claude-3-x",), 2, 100),
        ([{"model": "claude-3-x", "max_tokens": 900}, {"model": "y"}], ("claude-3-x", "y"), 3, 900),
        ("default", ("default",), 4, 100),
        (None, (), 1, 100),
    ],
)
def test_each_model_that_the_service_may_take_in_turn_is_covered(
    fallbacks: Any, models: tuple[str, ...], choices: int, cap: int
) -> None:
    ask = read(fallbacks=fallbacks)
    assert (ask.other_models, ask.choices, ask.output_cap) == (models, choices, cap)
    assert ask.input_bound >= choices * read().input_bound


def test_whoever_may_read_the_input_bounds_it() -> None:
    large = [{"model": "claude-opus-4-7"}]
    assert read(thread={"type": "continue"}, fallbacks=large).input_bound == 2 * 1_000_000
    seen = [{"role": "user", "content": [IMAGE]}]
    alone = read(messages=seen).input_bound
    assert 1_568 < alone < 3_000
    assert 2 * 4_784 < read(messages=seen, fallbacks=large).input_bound < 2 * 6_500
    # No rule bounds an image in front of a model that nobody knows.
    unknown = read(messages=seen, fallbacks=[{"model": "other"}])
    assert (unknown.input_bound, unknown.bound_by) == (2 * WINDOW_UNKNOWN, "window")


@pytest.mark.parametrize("fallbacks", [7, [7], [{}], [{"model": 1}], [{"model": "m", "max_tokens": "9"}]])
def test_fallbacks_that_are_nonsense_are_refused(fallbacks: Any) -> None:
    with pytest.raises(Refused) as caught:
        read(fallbacks=fallbacks)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("iterations", "counted"),
    [
        ([{"type": "message", "input_tokens": 5, "output_tokens": 2}], Usage(5, 2)),
        (
            [{"input_tokens": 5, "output_tokens": 2}, {"type": "compaction", "input_tokens": 9, "output_tokens": 4}],
            Usage(14, 6),
        ),
        ([{"input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 2}], Usage(12, 2, 7)),
        ([7, {"input_tokens": -5, "output_tokens": "2"}, None], Usage(5, 2)),
        ("much", Usage(5, 2)),
        ([], Usage(5, 2)),
    ],
)
def test_what_the_totals_leave_out_is_counted(iterations: Any, counted: Usage) -> None:
    usage = {"input_tokens": 5, "output_tokens": 2, "iterations": iterations}
    meter = AnthropicMeter(read())
    meter.read_message(json.dumps({"content": [], "usage": usage}).encode())
    assert meter.usage == counted
    streamed = AnthropicMeter(read(stream=True))
    streamed.read_event(b"data: " + json.dumps({"type": "message_delta", "usage": usage}).encode() + b"\n\n")
    assert streamed.usage == counted


def test_tools_bring_a_hidden_prompt() -> None:
    plain = read().input_bound
    assert read(tools=[{"name": "a", "input_schema": {"type": "object"}}]).input_bound > plain + 1_000
    assert read(tools=[{"type": "bash_20250124", "name": "bash"}]).input_bound > plain + 2_300
    assert read(output_config={"format": {"type": "json_schema"}}).input_bound > plain + 1_000


def test_the_bound_covers_a_tokenizer_that_normalises() -> None:
    # 50 x U+FDFA: 150 bytes, 750 tokens in the published legacy tokenizer.
    for body in ("\ufdfa" * 50, json.dumps("\ufdfa" * 50)):
        ask = DIALECT.read(
            "chat", f'{{"model":"m","messages":[{{"role":"user","content":"{body.strip(chr(34))}"}}]}}'.encode()
        )
        assert ask.input_bound >= 750


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), st.booleans())
def test_the_bound_is_never_below_the_normalised_text(text: str, is_ascii: bool) -> None:
    body = json.dumps(text, ensure_ascii=is_ascii).encode()
    assert normalised_bytes(body) >= len(body)
    assert normalised_bytes(body) >= len(unicodedata.normalize("NFKC", text).encode())


def test_no_character_outgrows_its_bound() -> None:
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x110000)):
        character = chr(code)
        size = len(unicodedata.normalize("NFKC", character).encode())
        if size > len(character.encode()):
            assert normalised_bytes(json.dumps(character).encode()) >= size
            assert normalised_bytes(character.encode()) >= size


def test_an_absent_cap_is_set() -> None:
    body = b'{"model":"m","messages":[]}'
    ask = DIALECT.read("chat", body)
    assert ask.output_cap is None
    assert DIALECT.rewrite(ask, body) is body
    ask.output_cap_granted = 30
    assert json.loads(DIALECT.rewrite(ask, body)) == {"model": "m", "messages": [], "max_tokens": 30}
    assert DIALECT.read("chat", body).input_bound < WINDOW_UNKNOWN


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | members)}\n\n".encode()


def start(**usage: Any) -> bytes:
    return event("message_start", message={"id": "msg_1", "model": "m-1", "content": [], "usage": usage})


def text(words: str, index: int = 0) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": words})


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
STOP = event("message_stop")


def end(**usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


def metered(*events: bytes) -> AnthropicMeter:
    meter = DIALECT.meter(read(stream=True))
    for each in events:
        got = meter.read_event(each)
        assert got is not None
        assert got.raw is each
    return meter


def test_what_a_stream_says_at_its_start_is_not_its_usage() -> None:
    meter = metered(start(input_tokens=50, output_tokens=1), BLOCK, text("x" * 400))
    assert meter.usage is None
    assert meter.output_estimate == 100
    assert not meter.is_terminal


def test_cumulative_reports_are_never_summed_and_zeros_never_lower_them() -> None:
    meter = metered(
        start(input_tokens=50, cache_read_input_tokens=20, output_tokens=1),
        end(output_tokens=30),
        end(input_tokens=0, output_tokens=40, cache_read_input_tokens=0),
        end(output_tokens=0),
        STOP,
    )
    assert meter.usage == Usage(70, 40, 20)
    assert meter.is_terminal


@pytest.mark.parametrize(
    "usage", [{"output_tokens": value} for value in (-1, True, 2.0, "7", 10**10, None, 0)] + [{}, None, [], 7]
)
def test_absurd_usage_is_missing_and_missing_is_not_zero(usage: Any) -> None:
    meter = metered(start(input_tokens=50), text("words"), event("message_delta", delta={}, usage=usage), STOP)
    assert meter.usage is None
    assert metered(start(), text("words"), end(output_tokens=7), STOP).usage is None


def test_usage_survives_nonsense_beside_it() -> None:
    odd = event("message_start", message={"content": 7, "id": [], "usage": {"input_tokens": 50}}, index="x")
    assert metered(odd, event("message_delta", delta=7, usage={"output_tokens": 4})).usage == Usage(50, 4)


def test_an_error_in_the_stream_is_no_success() -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    assert not metered(start(input_tokens=5), error, STOP).is_terminal


def test_every_kind_of_tool_call_is_named() -> None:
    meter = metered()
    for kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        got = meter.read_event(event("content_block_start", index=0, content_block={"type": kind, "name": "n"}))
        assert got is not None
        assert got.tool_names == ("n",)
        assert got.has_content
    got = meter.read_event(text("x"))
    assert got is not None
    assert got.tool_names == ()


def names_of(stream: bytes) -> list[str]:
    return [json.loads(each.split(b"data: ")[1])["type"] for each in stream.split(b"\n\n") if each]


def test_a_cut_closes_what_the_client_has_seen_open() -> None:
    whole = ["content_block_stop", "message_delta", "message_stop"]
    assert names_of(metered(start(input_tokens=5), BLOCK, text("x")).cut()) == whole
    # The start of a block in whose place the cut stands was never forwarded.
    assert names_of(metered(start(input_tokens=5), BLOCK).cut()) == whole[1:]
    assert names_of(metered(start(input_tokens=5), BLOCK).cut(is_event_forwarded=True)) == whole
    assert names_of(metered().cut()) == ["message_start", *whole[1:]]
    closed = event("content_block_stop", index=0)
    assert names_of(metered(start(input_tokens=5), BLOCK, closed, event("ping")).cut()) == whole[1:]
    assert names_of(metered(start(input_tokens=5), end(output_tokens=4), STOP).cut()) == ["message_stop"]
    assert metered(start(input_tokens=5), STOP).cut(is_event_forwarded=True) == b""


def test_a_plain_answer_that_cannot_be_read_is_passed_on() -> None:
    for body in (
        b"",
        b"<html>",
        b"[1]",
        b'{"usage":{"input_tokens":5,"output_tokens":3}',
        b"\xff",
        b'{"type":"error"}',
    ):
        meter = DIALECT.meter(read())
        assert meter.read_message(body).raw is body
        assert meter.usage is None
        assert meter.is_terminal


def test_a_body_does_not_choose_how_often_it_is_read() -> None:
    block: dict[str, Any] = {"type": "text", "text": "x"}
    bounds = []
    for _ in range(300):
        block = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
        bounds.append(read(messages=[{"role": "user", "content": [block]}]).input_bound)
    assert bounds[0] < bounds[1] < WINDOW
    assert set(bounds[2:]) == {WINDOW}


def test_the_bound_of_what_is_too_large_to_normalise_is_the_worst_case() -> None:
    text = "\ufdfa" * 400_000
    assert normalised_bytes(text.encode()) >= len(text) * 33
    assert normalised_bytes(json.dumps("\ufdfa" * 60_000).encode()) >= 60_000 * 33
    assert normalised_bytes(b"plain " * 400_000) == 2_400_000
