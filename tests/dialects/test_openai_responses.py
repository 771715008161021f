"""OpenAI responses: what bounds a request, and how a stream of one is ended well-formed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from meshd.call import Ask, Usage
from meshd.dialects.images import image_tokens_max
from meshd.dialects.openai import OpenAI
from meshd.dialects.openai_responses_meter import KEPT_BYTES_MAX
from meshd.dialects.windows import window
from meshd.refusal import Reason, Refused
from tests.dialects.server import AnswerServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.dialects.contract import Meter

DIALECT = OpenAI()
WINDOW = 128_000
SSE = [(b"content-type", b"text/event-stream")]


@pytest.fixture(scope="module")
def server() -> Iterator[AnswerServer]:
    yield from serving()


def read(operation: str = "responses", **members: Any) -> Ask:
    return DIALECT.read(operation, json.dumps({"model": "gpt-4o", "input": "Is it foggy?"} | members).encode())


# -- what is asked for


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"max_output_tokens": 0}, "'max_output_tokens' must be an integer from 1"),
        ({"max_output_tokens": "9"}, "'max_output_tokens'"),
        ({"max_tool_calls": -1, "tools": [{"type": "web_search"}]}, "'max_tool_calls' must be an integer from 0"),
        ({"stream": "yes"}, "'stream' must be true or false"),
        ({"background": 1}, "'background' must be true or false"),
        ({"input": 7}, "'input': expected `array`"),
        ({"input": ["x"]}, "'input'"),
        ({"input": [{"type": 7}]}, "'type' of 'input'[0] must be a string"),
        ({"input": [{"role": "user", "content": [7]}]}, "'input'[0]"),
        ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "'type' of 'input'[0]"),
        ({"tools": "web_search"}, "'tools': expected `array`"),
        ({"tools": [{}]}, "'tools'[0] has no type"),
        ({"tools": [{"type": "function"}]}, "'tools'[0] has no name"),
        ({"tools": [{"type": "mcp"}]}, "'tools'[0] has no server_label"),
        ({"prompt": {}}, "'prompt' has no id"),
        ({"prompt": "p"}, "'prompt': expected `object`"),
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
        b'{"model":"cheap","input":"x","model":"dear"}',
        b'{"model":"m","input":[{"role":"user","content":"x","content":[{"type":"input_image"}]}]}',
        b'{"model":"m","input":[{"type":"message","type":"item_reference","content":"x"}]}',
        b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","type":"input_file"}]}]}',
        b'{"model":"m","input":[{"type":"function_call_output","output":[{"type":"a","type":"b"}]}]}',
        b'{"model":"m","tools":[{"type":"function","name":"a","name":"b"}]}',
        b'{"model":"m","tools":[{"type":"namespace","name":"n","tools":[{"type":"function","name":"a","name":"b"}]}]}',
        b'{"model":"m","max_output_tokens":5,"max_output_tokens":50000}',
    ],
)
def test_duplicates_are_refused_at_every_level_that_decides(body: bytes) -> None:
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("responses", body)


TEXT = {"type": "input_text", "text": "x"}
MCP = {"type": "mcp", "server_label": "s"}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"input": [{"role": "user", "content": "x"}]},
        {"input": [{"type": "message", "role": "user", "content": [TEXT]}]},
        {"input": [{"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
        {"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [TEXT]}]},
        {"input": [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAAA"}]},
        {"input": [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]}]},
        {"previous_response_id": None, "conversation": None, "prompt": None, "context_management": None},
        {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]},
        {"instructions": "be brief", "text": {"format": {"type": "json_object"}}},
    ],
)
def test_what_the_body_shows_is_bounded_by_its_bytes(members: dict[str, Any]) -> None:
    body = json.dumps({"model": "gpt-4o", "input": "Is it foggy?"} | members)
    assert len(body) <= read(**members).input_bound <= len(body) + 256


@pytest.mark.parametrize(
    "members",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "message", "id": "msg_1", "content": None}]},
        {"input": [{"role": "user", "content": {}}]},
        {"input": [{"role": "user", "content": [TEXT, {"type": "input_image", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [TEXT, {"type": "input_image", "image_url": {"url": "x"}}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"input": [{"role": "user", "content": [{}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]},
        {"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]},
        {"input": [{"type": "compaction", "encrypted_content": "gAAAA"}]},
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot"}}]},
        {"input": [{"type": "something_new"}]},
        {"instructions": [{"role": "user", "content": "x"}]},
        {"tools": [{"type": "local_shell"}]},
        {"tools": [{"type": "computer_use_preview", "display_width": 9}]},
    ],
)
def test_what_the_body_only_names_is_bounded_by_the_window(members: dict[str, Any]) -> None:
    assert read(**members).input_bound == WINDOW


@pytest.mark.parametrize(
    ("members", "names", "turns"),
    [
        ({"tools": [{"type": "web_search"}]}, ("web_search",), 10),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 0}, ("web_search",), 1),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 4}, ("web_search",), 5),
        ({"tools": [{"type": "something_new"}]}, ("something_new",), 10),
        ({"tools": [{"type": "mcp", "server_label": "web_search"}]}, ("mcp", "web_search"), 10),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "file_search"}]}, ("f", "file_search"), 10),
        ({"tools": [{"type": "local_shell"}]}, ("local_shell",), 1),
        ({"context_management": [{"type": "compaction"}]}, (), 2),
        ({"context_management": [{}], "tools": [{"type": "shell"}], "max_tool_calls": 1}, ("shell",), 3),
        ({"tools": [{"type": "namespace", "tools": [MCP]}]}, ("mcp", "s"), 10),
        ({"tools": [{"type": "namespace", "tools": [{"type": "namespace", "tools": []}]}]}, ("namespace",), 10),
        ({"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]}, ("web_search",), 10),
        ({"input": [{"type": "tool_search_output", "tools": [MCP]}]}, ("mcp", "s"), 10),
        ({"prompt": {"id": "p"}, "tools": [{"type": "function", "name": "f"}]}, ("f", "prompt:p"), 1),
    ],
)  # fmt: skip
def test_tools_and_the_turns_that_they_give_cause_for(
    members: dict[str, Any], names: tuple[str, ...], turns: int
) -> None:
    ask = read(**members)
    assert (ask.tools, ask.input_bound) == (names, WINDOW * turns)


def test_tools_that_the_body_shows_have_names() -> None:
    tools = [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]
    assert read(tools=tools).tools == ("f",)
    assert read(tools=tools).input_bound < 1_000
    shown = {"type": "additional_tools", "tools": [{"type": "custom", "name": "g"}]}
    assert read(input=[shown]).tools == ("g",)


@pytest.mark.parametrize("holder", ["message", "function_call_output"])
def test_an_image_is_bounded_by_its_published_most(holder: str) -> None:
    def bound(model: str = "gpt-4o", **detail: str) -> int:
        parts = [TEXT, {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 9_000} | detail]
        item = {"type": holder, ("content" if holder == "message" else "output"): parts}
        return read(model=model, input=[item]).input_bound

    most, least = image_tokens_max("gpt-4o"), image_tokens_max("gpt-4o", is_low=True)
    assert most is not None
    assert least is not None
    assert most < bound() < most + 200
    assert bound(detail="low") - least < 200
    assert bound(model="gpt-4") == window("gpt-4"), "for which there is no rule"


def test_texts_are_counted_like_those_of_a_chat() -> None:
    body = {
        "model": "gpt-4o", "instructions": "be brief\n\n" * 40, "input": [
            {"role": "user", "content": "Is it foggy? " * 40},
            {"role": "user", "content": [TEXT, {"type": "input_image", "image_url": "https://harbour.example/q"}]},
            {"type": "function_call_output", "call_id": "c", "output": "fog " * 40},
        ],
    }  # fmt: skip
    ask = DIALECT.read("responses", json.dumps(body).encode())
    found = DIALECT.texts(ask)
    assert found is not None
    texts = dict(zip(found.labels, found.parts, strict=True))
    assert texts["instructions"] == body["instructions"]
    assert texts["messages[0].content"] == "Is it foggy? " * 40
    assert texts["messages[2].output"] == "fog " * 40
    assert not any("harbour.example" in text for text in found.parts), "the image stands in the overhead"
    most = image_tokens_max("gpt-4o")
    assert most is not None
    assert most < found.overhead < most + 60
    only = DIALECT.texts(DIALECT.read("responses", b'{"model":"gpt-4o","input":"fog"}'))
    assert only is not None
    assert only.parts == ("fog",)


@pytest.mark.parametrize("operation", ["compaction", "rerank", "moderation", "image_generation", "speech"])
def test_what_cannot_be_told_apart_is_not_counted(operation: str) -> None:
    assert DIALECT.texts(DIALECT.read(operation, b'{"model":"gpt-4o","input":"fog"}')) is None
    sealed = {"type": "reasoning", "encrypted_content": "gAAAA"}
    assert DIALECT.texts(read(input=[sealed])) is None


def test_a_long_input_hides_no_item() -> None:
    items = [{"role": "user", "content": "a" * 500} for _ in range(60)]
    assert read(input=items).input_bound < WINDOW
    for hidden in ({"type": "item_reference", "id": "m"}, {"role": "user", "content": [{"type": "input_image"}]}):
        for separators in ((",", ":"), (", ", ": ")):
            body = json.dumps({"model": "gpt-4o", "input": [*items, hidden]}, separators=separators).encode()
            assert DIALECT.read("responses", body).input_bound == WINDOW


def test_turns_are_capped_where_the_output_is() -> None:
    body = json.dumps({"model": "m", "tools": [{"type": "web_search"}], "max_output_tokens": 90}).encode()
    ask = DIALECT.read("responses", body)
    assert DIALECT.rewrite(ask, body) is body, "without a budget nothing is capped"
    ask.output_cap_granted = 90
    assert json.loads(DIALECT.rewrite(ask, body)) == json.loads(body) | {"max_tool_calls": 9}
    limited = json.dumps({"model": "m", "tools": [{"type": "web_search"}], "max_tool_calls": 3}).encode()
    ask = DIALECT.read("responses", limited)
    ask.output_cap_granted = 9
    assert json.loads(DIALECT.rewrite(ask, limited)) == json.loads(limited) | {"max_output_tokens": 9}


def test_only_what_runs_in_the_background_begins() -> None:
    assert [read(background=value).begins for value in (True, False, None)] == [True, False, False]
    assert not read().begins


# -- what is answered


def event(kind: str, number: int, **members: Any) -> bytes:
    data = {"type": kind, "sequence_number": number} | members
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def response(**members: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "created_at": 7, "model": "gpt-4o-1", "status": "in_progress"} | (
        {"output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": None} | members
    )


PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
CALL = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "tide", "arguments": "", "status": "in_progress"}
BEGUN = [
    event("response.created", 0, response=response()),
    event("response.output_item.added", 1, output_index=0, item=MESSAGE),
    event("response.content_part.added", 2, **PLACE, part=PART),
]
WORDS = [event("response.output_text.delta", 3 + n, **PLACE, delta=word) for n, word in enumerate(["Thick", " fog"])]


def metered(*events: bytes, **members: Any) -> Meter:
    meter = DIALECT.meter(read(stream=True, **members))
    for each in events:
        got = meter.read_event(each)
        assert got is not None
        assert got.raw is each
    return meter


def events_of(stream: bytes) -> list[dict[str, Any]]:
    found = []
    for each in stream.split(b"\n\n")[:-1]:
        head, _, data = each.partition(b"\ndata: ")
        found.append(json.loads(data))
        assert head == b"event: " + found[-1]["type"].encode()
    return found


def test_a_cut_closes_what_is_open_and_says_why() -> None:
    meter = metered(*BEGUN, *WORDS)
    text, part, item, last = events_of(meter.cut(is_event_forwarded=True))
    assert (text["type"], text["text"], text["item_id"]) == ("response.output_text.done", "Thick fog", "msg_1")
    assert (part["type"], part["part"]["text"]) == ("response.content_part.done", "Thick fog")
    assert (item["type"], item["item"]["status"]) == ("response.output_item.done", "incomplete")
    assert last["type"] == "response.incomplete"
    assert last["response"] == response(
        status="incomplete", incomplete_details={"reason": "max_output_tokens"}, output=[item["item"]]
    )
    assert [each["sequence_number"] for each in (text, part, item, last)] == [5, 6, 7, 8]
    assert meter.cut() == b"", "once"


def test_a_cut_stands_in_the_place_of_the_last_event_or_follows_it() -> None:
    assert events_of(metered(*BEGUN, *WORDS).cut())[0]["text"] == "Thick"
    assert events_of(metered(*BEGUN, *WORDS).cut())[0]["sequence_number"] == 4
    end = event("response.completed", 5, response=response(status="completed"))
    assert metered(*BEGUN, end).cut(is_event_forwarded=True) == b""
    assert events_of(metered(*BEGUN, end).cut())[-1]["sequence_number"] == 5 + 3
    assert events_of(metered().cut())[0]["response"]["status"] == "incomplete"


def test_a_cut_leaves_out_a_call_of_half_its_arguments() -> None:
    opened = event("response.output_item.added", 3, output_index=1, item=CALL)
    piece = event("response.function_call_arguments.delta", 4, item_id="fc_1", output_index=1, delta='{"po')
    done = event("response.output_item.done", 5, output_index=1, item=CALL | {"arguments": "{}"})
    cut = events_of(metered(*BEGUN, opened, piece).cut(is_event_forwarded=True))
    assert [item["type"] for item in cut[-1]["response"]["output"]] == ["message"]
    cut = events_of(metered(*BEGUN, opened, piece, done).cut(is_event_forwarded=True))
    assert [item["type"] for item in cut[-1]["response"]["output"]] == ["message", "function_call"]


def test_a_refusal_of_the_model_s_is_closed_as_one() -> None:
    delta = event("response.refusal.delta", 3, **PLACE, delta="I will not")
    first, part, item, _ = events_of(metered(*BEGUN[:2], delta).cut(is_event_forwarded=True))
    assert (first["type"], first["refusal"]) == ("response.refusal.done", "I will not")
    assert part["part"] == {"type": "refusal", "refusal": "I will not"}
    assert item["item"]["content"] == [part["part"]]


def test_no_answer_makes_its_meter_grow() -> None:
    long = "x" * 100_000
    words = [event("response.output_text.delta", 3 + n, **PLACE, delta=long) for n in range(40)]
    meter = metered(*BEGUN, *words)
    assert meter.output_estimate == 1_000_000
    cut = meter.cut(is_event_forwarded=True)
    assert len(cut) < 2 * KEPT_BYTES_MAX
    assert events_of(cut)[-1]["response"]["output"] == []
    items = [event("response.output_item.added", n, output_index=n, item=MESSAGE) for n in range(5_000)]
    assert metered(*items).cut().count(b"response.output_item.done") <= 1_024 * 2


def test_usage_stands_in_the_event_that_ends_the_stream() -> None:
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3, "total_tokens": 12}
    for kind, is_terminal in (("completed", True), ("incomplete", True), ("failed", True)):
        meter = metered(*BEGUN, event(f"response.{kind}", 3, response=response(status=kind, usage=usage)))
        assert (meter.usage, meter.is_terminal) == (Usage(9, 3, 4, 0), is_terminal)
    meter = metered(*BEGUN, event("response.failed", 3, response=response(status="failed")))
    assert (meter.usage, meter.is_terminal) == (None, False)
    meter = metered(*BEGUN, *WORDS)
    assert (meter.usage, meter.is_terminal, meter.output_estimate) == (None, False, 2)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        7,
        {"input_tokens": 9},
        {"input_tokens": -1, "output_tokens": 3},
        {"input_tokens": 9, "output_tokens": 0},
        {"input_tokens": 10**10, "output_tokens": 3},
        {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
    ],
)
def test_absurd_usage_is_missing_and_missing_is_not_zero(usage: Any) -> None:
    end = event("response.completed", 5, response=response(status="completed", usage=usage))
    meter = metered(*BEGUN, *WORDS, end)
    assert meter.usage is None
    assert meter.is_terminal


def test_a_summary_of_reasoning_is_not_counted_beside_it() -> None:
    summary = event("response.reasoning_summary_text.delta", 3, item_id="rs", output_index=0, delta="x" * 4_000)
    reasoning = event("response.reasoning_text.delta", 4, item_id="rs", output_index=0, delta="x" * 40)
    assert metered(summary).output_estimate == 0
    assert metered(summary, reasoning).output_estimate == 10


def test_a_response_that_goes_on_says_so_until_it_is_over() -> None:
    meter = DIALECT.meter(read(background=True))
    said = meter.read_message(json.dumps(response(status="queued")).encode())
    assert (said.begun, said.ended, meter.usage) == ("resp_1", "", None)
    for status in ("completed", "failed", "cancelled", "incomplete"):
        said = DIALECT.meter(read()).read_message(json.dumps(response(status=status)).encode())
        assert (said.begun, said.ended) == ("", "resp_1")
    stream = DIALECT.meter(read(background=True, stream=True))
    first = stream.read_event(BEGUN[0])
    assert first is not None
    assert (first.begun, first.ended) == ("resp_1", "")
    last = stream.read_event(event("response.completed", 1, response=response(status="completed")))
    assert last is not None
    assert last.ended == "resp_1"
    nonsense = DIALECT.meter(read()).read_message(b"<html>")
    assert (nonsense.begun, nonsense.ended) == ("", "")


# -- the official client


def refused() -> Refused:
    return Refused(Reason.BUDGET_EXHAUSTED, "workflow w-1 has used 50,000 of 50,000; ask the team")


def test_the_sdk_raises_an_error_event(server: AnswerServer) -> None:
    meter = metered(*BEGUN, *WORDS)
    url = server.prepare(200, SSE, b"".join([*BEGUN, *WORDS]) + meter.error_event(refused()))
    seen: list[Any] = []

    def run() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
            seen.extend(client.responses.create(model="m", input="x", stream=True))

    with pytest.raises(openai.APIError) as caught:
        run()
    assert (caught.value.code, caught.value.type) == ("meshd_budget_exhausted", "budget_exhausted")
    assert caught.value.message == refused().message
    assert [each.type for each in seen][-1] == "response.output_text.delta"
    assert server.asked(url) == 1


def test_the_sdk_reads_a_cut_with_a_call_that_was_left_out(server: AnswerServer) -> None:
    opened = event("response.output_item.added", 3, output_index=1, item=CALL)
    events = [*BEGUN, opened]
    url = server.prepare(200, SSE, b"".join(events) + metered(*events).cut(is_event_forwarded=True))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        with client.responses.stream(model="m", input="x") as stream:
            kinds = [each.type for each in stream]
        last = list(client.responses.create(model="m", input="x", stream=True))[-1]
    assert kinds[-1] == "response.incomplete"
    assert last.type == "response.incomplete"
    assert last.response.output_text == ""


def test_what_the_sdk_sends_is_read(server: AnswerServer) -> None:
    url = server.prepare(200, SSE, b"".join(BEGUN))
    tools: Any = [{"type": "function", "name": "tide_table", "parameters": {}, "strict": True}, {"type": "web_search"}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        client.responses.create(
            model="gpt-4o",
            input=[{"role": "user", "content": "x"}],
            tools=tools,
            stream=True,
            max_output_tokens=80,
            max_tool_calls=2,
        ).close()
    ask = DIALECT.read("responses", server.body(url))
    assert (ask.model, ask.tools, ask.is_stream, ask.output_cap) == ("gpt-4o", ("tide_table", "web_search"), True, 80)
    assert ask.input_bound == 3 * WINDOW
