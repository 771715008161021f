"""Gemini: what decides in a request, how an answer is metered, and how one is ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.gemini import Gemini, key_in, without_key
from meshd.dialects.gemini_meter import GeminiMeter
from meshd.dialects.images import image_tokens_max
from meshd.dialects.windows import WINDOW_UNKNOWN, window
from meshd.refusal import Reason, Refused
from meshd.wire.json_array import Splitter

DIALECT = Gemini()
PATH = "/v1beta/models/gemini-x:generateContent"
STREAM = "/v1beta/models/gemini-x:streamGenerateContent"
CONTENTS = [{"role": "user", "parts": [{"text": "Is it foggy?"}]}]


def read(path: str = PATH, **members: Any) -> Ask:
    body = {"contents": CONTENTS} | members
    return DIALECT.read("chat", json.dumps(body).encode(), path)


def part(**members: Any) -> Ask:
    return read(contents=[{"parts": [{"text": "see"}, members]}, {"parts": [{"text": "x"}]}])


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"generationConfig": {"maxOutputTokens": "9"}}, "'maxOutputTokens' must be an integer from 1"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "'maxOutputTokens'"),
        ({"generation_config": {"max_output_tokens": 1.5}}, "'max_output_tokens'"),
        ({"generationConfig": {"candidateCount": -1}}, "'candidateCount'"),
        ({"generationConfig": [1]}, "'generationConfig': expected `object`"),
        ({"generationConfig": {"thinkingConfig": 7}}, "'thinkingConfig': expected `object`"),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": "x"}}}, "'thinkingBudget'"),
        ({"contents": "hello"}, "'contents': expected `array`"),
        ({"contents": [7]}, "expected `object`"),
        ({"contents": [{"parts": ["x"]}]}, "'contents'[0]: expected `object`"),
        ({"contents": [{"parts": [{"functionResponse": 7}]}]}, "'contents'[0]: expected `object`"),
        ({"contents": [{"parts": [{"inlineData": 7}]}]}, "'contents'[0]: expected `object`"),
        ({"contents": [{"parts": [{"mediaResolution": 7}]}]}, "'contents'[0]: expected `object`"),
        ({"generationConfig": {"responseModalities": 7}}, "'responseModalities': expected `array`"),
        ({"serviceTier": 7}, "'serviceTier'"),
        ({"tools": "all"}, "'tools': expected `array`"),
        ({"tools": [{"functionDeclarations": [{}]}]}, "function without a name"),
        ({"tools": [{"functionDeclarations": [{"name": 1}]}]}, "'name' of 'tools'[0]"),
        ({"cachedContent": 7}, "'cachedContent'"),
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
        b'{"contents":[],"contents":[]}',
        b'{"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9}}',
        b'{"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9}}',
        b'{"generationConfig":{"maxOutputTokens":1},"generation_config":{"maxOutputTokens":9}}',
        b'{"generationConfig":{"candidateCount":1,"candidate_count":8}}',
        b'{"generationConfig":{"thinkingConfig":{"thinkingBudget":1,"thinking_budget":9}}}',
        b'{"tools":[{"functionDeclarations":[],"function_declarations":[{"name":"x"}]}]}',
        b'{"tools":[{"functionDeclarations":[{"name":"a","name":"b"}]}]}',
        b'{"contents":[{"parts":[{"text":"x"}],"parts":[]}]}',
        b'{"contents":[{"parts":[{"text":"x","text":"y"}]}]}',
        b'{"contents":{"parts":{"text":"x","text":"y"}}}',
        b'{"systemInstruction":{"parts":[]},"system_instruction":{"parts":[]}}',
        b'{"system_instruction":{"parts":[{"text":"x","text":"y"}]}}',
        b'{"cachedContent":"a","cached_content":"b"}',
    ],
)
def test_duplicates_are_refused_in_either_spelling_at_every_level_that_decides(body: bytes) -> None:
    with pytest.raises(Refused, match=r"more than once|has both"):
        DIALECT.read("chat", body, PATH)


@pytest.mark.parametrize(
    ("members", "is_hidden"),
    [
        ({"text": "x"}, False),
        ({"text": "x", "thought": True, "thought_signature": "c2ln"}, False),
        ({"functionCall": {"name": "f", "args": {"inlineData": 1}}}, False),
        ({"functionResponse": {"name": "f", "response": {}}}, False),
        ({"function_response": {"name": "f", "parts": [{"inlineData": {"data": "AA"}}]}}, True),
        ({"executableCode": {"code": "1"}, "inlineData": None}, False),
        ({"codeExecutionResult": {"output": "1"}}, False),
        ({"inlineData": {"mimeType": "image/png", "data": "AA"}}, True),
        ({"inline_data": {"mime_type": "audio/wav", "data": "AA"}}, True),
        ({"fileData": {"fileUri": "https://example.org/f"}}, True),
        ({"file_data": {"file_uri": "https://example.org/f"}}, True),
        ({"somethingNew": {}}, True),
    ],
)
def test_input_that_the_body_does_not_show_is_bounded_by_the_window(members: dict[str, Any], is_hidden: bool) -> None:
    assert (part(**members).input_bound == WINDOW_UNKNOWN) is is_hidden
    ask = read(systemInstruction={"parts": members})
    assert (ask.input_bound == WINDOW_UNKNOWN) is is_hidden


@pytest.mark.parametrize(
    ("parts", "is_hidden"),
    [
        (b'[{"text":"x"}]', False),
        (b'[{"text":""}]', False),
        (b'[{"text":"\\"}]"}]', False),
        (b'[{"text":"x"},{"inlineData":{}}]', True),
        (b'[{"text":"x","inlineData":{}}]', True),
        (b'[{"text":"x","videoMetadata":7}]', True),
        (b'[{"text":"\\","inlineData":{}}]', None),
        (b'[{"text":7,"inlineData":{}}]', True),
        (b'[ {"text":"x","fileData":{}}]', True),
    ],
)
def test_a_text_alone_is_known_by_its_quotes(parts: bytes, is_hidden: bool | None) -> None:
    body = b'{"contents":[{"parts":' + parts + b"}]}"
    if is_hidden is None:
        with pytest.raises(Refused, match="is not JSON"):
            DIALECT.read("chat", body, PATH)
        return
    assert (DIALECT.read("chat", body, PATH).input_bound == WINDOW_UNKNOWN) is is_hidden


@pytest.mark.parametrize(
    ("member", "field", "tier"),
    [
        (None, None, "standard"),
        ("PRIORITY", None, "priority"),
        ("flex", b"priority", "flex"),
        ("unspecified", None, "standard"),
        ("standard", b"priority", "priority"),
        (None, b"Flex", "flex"),
        (None, b"x" * 90, "x" * 32),
    ],
)
def test_the_tier_is_read_since_prices_differ_by_it(member: str | None, field: bytes | None, tier: str) -> None:
    headers = [(b"host", b"x")] + ([(b"x-vertex-ai-llm-shared-request-type", field)] if field else [])
    for name in ("serviceTier", "service_tier"):
        body = json.dumps({"contents": CONTENTS, name: member}).encode()
        assert DIALECT.read("chat", body, PATH, headers).tier == tier


IMAGE = {"mimeType": "image/png", "data": "A" * 4_000_000}
SEES = "/v1beta/models/gemini-3-flash-preview:generateContent"
SEES_WINDOW = window("gemini-3-flash-preview")
SEES_MOST = image_tokens_max("gemini-3-flash-preview") or 0


@pytest.mark.parametrize(
    ("members", "is_hidden"),
    [
        ({"inlineData": IMAGE}, False),
        ({"inline_data": {"mime_type": "image/webp", "data": "AA"}}, False),
        ({"inlineData": IMAGE, "mediaResolution": {"level": "MEDIA_RESOLUTION_ULTRA_HIGH"}}, False),
        ({"inlineData": IMAGE, "mediaResolution": {"numTokens": 90_000}}, True),
        ({"inlineData": IMAGE, "media_resolution": {"num_tokens": 90_000}}, True),
        ({"inlineData": IMAGE, "videoMetadata": {"fps": 24}}, True),
        ({"inlineData": {"mimeType": "image/png"}}, True),
        ({"inlineData": {"mimeType": "image/png", "data": 7}}, True),
        ({"inlineData": {"mimeType": "application/pdf", "data": "AA"}}, True),
        ({"inlineData": {"data": "AA"}}, True),
        # What stands there is the file's to say, whatever the request calls it.
        ({"fileData": {"mimeType": "image/png", "fileUri": "https://example.org/f"}}, True),
    ],
)
def test_an_image_costs_its_published_most(members: dict[str, Any], is_hidden: bool) -> None:
    ask = read(SEES, contents=[{"parts": [{"text": "see"}, members]}])
    assert (ask.bound_by == "window") is is_hidden
    if is_hidden:
        assert ask.input_bound == SEES_WINDOW
    else:
        assert SEES_MOST < ask.input_bound < SEES_MOST + 1_000


def test_many_images_cost_a_window_at_most() -> None:
    two = read(SEES, contents=[{"parts": [{"inlineData": IMAGE}]}] * 2).input_bound
    assert 2 * SEES_MOST < two < 2 * SEES_MOST + 1_000
    small = {"inlineData": {"mimeType": "image/png", "data": "AA"}}
    assert read(SEES, contents=[{"parts": [small] * 1_000}]).input_bound == SEES_WINDOW


@pytest.mark.parametrize(
    ("model", "config", "is_unbounded"),
    [
        ("gemini-2.5-flash", {}, False),
        ("gemini-2.5-flash", {"responseModalities": ["TEXT"]}, False),
        ("gemini-2.5-flash", {"responseModalities": "TEXT"}, False),
        ("gemini-2.5-flash", {"response_modalities": ["TEXT", "IMAGE"]}, True),
        ("gemini-2.5-flash", {"responseModalities": ["AUDIO"]}, True),
        ("gemini-2.5-flash", {"responseModalities": [2]}, True),
        ("gemini-2.5-flash", {"responseModalities": None}, False),
        ("gemini-2.5-flash-image", {}, True),
        ("gemini-3-pro-image-preview", {}, True),
        ("gemini-3-pro-image-preview", {"responseModalities": ["TEXT"]}, False),
        ("gemini-2.5-pro-preview-tts", {}, True),
    ],
)
def test_nothing_bounds_pictures_and_sound_that_are_made(model: str, config: Any, is_unbounded: bool) -> None:
    ask = read(f"/v1beta/models/{model}:generateContent", generationConfig=config)
    assert bool(ask.unbounded) is is_unbounded


def test_each_embedding_that_is_no_text_has_a_window_of_its_own() -> None:
    path = "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    text, other = ({"content": {"parts": [part]}} for part in ({"text": "x"}, {"fileData": {"fileUri": "f"}}))
    for requests, bound_by in (([text, text], "bytes"), ([text, other, text], "window")):
        ask = DIALECT.read("embeddings", json.dumps({"requests": requests}).encode(), path)
        assert ask.bound_by == bound_by
        assert (ask.input_bound == 3 * 2_048) is (bound_by == "window")


def test_a_cache_hides_its_input() -> None:
    assert read(cachedContent="cachedContents/c").input_bound == WINDOW_UNKNOWN
    assert read(cached_content="cachedContents/c").input_bound == WINDOW_UNKNOWN
    assert read(cachedContent=None).input_bound < 1_000


@pytest.mark.parametrize(
    ("tool", "names", "turns"),
    [
        ({"googleSearch": {}}, ("google_search",), 10),
        ({"google_search": {}}, ("google_search",), 10),
        ({"codeExecution": {}, "urlContext": {}}, ("code_execution", "url_context"), 10),
        ({"fileSearch": {"fileSearchStoreNames": ["s"]}}, ("file_search",), 10),
        ({"googleSearchRetrieval": {}}, ("google_search_retrieval",), 10),
        ({"newTool": {}}, ("new_tool",), 10),
        ({"googleSearch": None}, (), 0),
        ({"computerUse": {"environment": "ENVIRONMENT_BROWSER"}}, ("computer_use",), 0),
        ({"function_declarations": [{"name": "a"}, {"name": "b"}]}, ("a", "b"), 0),
        ({"functionDeclarations": {"name": "a"}}, ("a",), 0),
    ],
)
def test_tools_and_the_turns_that_the_service_takes_with_them(tool: Any, names: tuple[str, ...], turns: int) -> None:
    for tools in ([tool], tool):
        ask = read(tools=tools)
        assert ask.tools == names
        assert ask.input_bound == turns * WINDOW_UNKNOWN if turns else 700 < ask.input_bound < 1_000


@pytest.mark.parametrize("name", ["..", "a%2Fb", "a;b", "a%00", "", "a b", "a%20b", "-a", "x" * 300])
def test_a_model_that_servers_might_read_in_different_ways_is_not_read(name: str) -> None:
    assert DIALECT.recognise("POST", f"/v1beta/models/{name}:generateContent") is None


def test_a_model_is_read_after_its_escapes() -> None:
    assert read("/v1beta/models/gemini%2Dx:generateContent").model == "gemini-x"
    assert read("/v1beta/tunedModels/fog-1:generateContent").model == "tunedModels/fog-1"
    assert read("/v1/projects/p/locations/l/endpoints/77:generateContent").model == "endpoints/77"


@pytest.mark.parametrize(
    ("path", "model", "sent"),
    [
        (PATH, "gemini-y", "/v1beta/models/gemini-y:generateContent"),
        (f"{STREAM}?alt=sse&key=k", "gemini-y", "/v1beta/models/gemini-y:streamGenerateContent?alt=sse&key=k"),
        ("/v1beta/tunedModels/a:generateContent", "gemini-y", "/v1beta/models/gemini-y:generateContent"),
        ("/v1/p/endpoints/7:generateContent", "endpoints/8", "/v1/p/endpoints/8:generateContent"),
    ],
)
def test_another_model_stands_in_the_path(path: str, model: str, sent: str) -> None:
    ask = read(path)
    ask.model_granted = model
    assert DIALECT.redirect(ask, path) == sent
    assert read(sent).model == model


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (PATH, "a b"),
        (PATH, "other/a"),
        (PATH, "../x"),
        (PATH, "endpoints/8"),
        ("/v1/p/endpoints/7:generateContent", "y"),
    ],
)
def test_a_model_that_no_path_can_carry_is_refused(path: str, model: str) -> None:
    ask = read(path)
    ask.model_granted = model
    with pytest.raises(Refused, match="cannot stand there") as caught:
        DIALECT.redirect(ask, path)
    assert caught.value.reason is Reason.NOT_ALLOWED


def test_a_key_in_the_query_is_found_and_taken_out() -> None:
    assert key_in(f"{PATH}?alt=sse&key=AIza-1&x") == b"AIza-1"
    assert key_in(f"{PATH}?access_token=t") == b"t"
    assert key_in(f"{PATH}?monkey=1") is key_in(PATH) is None
    assert without_key(f"{PATH}?key=1&alt=sse&key=2&access_token=3") == f"{PATH}?alt=sse"
    assert without_key(f"{PATH}?key=1") == without_key(PATH) == PATH


@pytest.mark.parametrize(
    ("budget", "granted", "lowered"), [(500, 300, 150), (500, 140, 128), (100, 300, 100), (-1, 50, -1)]
)
def test_a_thinking_budget_is_lowered_with_the_cap(budget: int, granted: int, lowered: int) -> None:
    config = {"maxOutputTokens": 1000, "thinkingConfig": {"thinkingBudget": budget}}
    body = json.dumps({"contents": CONTENTS, "generationConfig": config}).encode()
    ask = DIALECT.read("chat", body, PATH)
    ask.output_cap_granted = granted
    sent = json.loads(DIALECT.rewrite(ask, body))["generationConfig"]
    assert sent == {"maxOutputTokens": granted, "thinkingConfig": {"thinkingBudget": lowered}}


def meter_of(
    path: str = f"{STREAM}?alt=sse", content_type: bytes = b"text/event-stream", **members: Any
) -> GeminiMeter:
    meter = DIALECT.meter(read(path, **members))
    assert meter.splitter_for(content_type, 1 << 20) is not None
    return meter


def event(candidates: list[Any] | None = None, usage: Any = None, **members: Any) -> bytes:
    chunk: dict[str, Any] = members
    if candidates is not None:
        chunk["candidates"] = candidates
    if usage is not None:
        chunk["usageMetadata"] = usage
    return b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n"


def says(text: str, **members: Any) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text}], "role": "model"}} | members


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 8}, Usage(5, 3)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 4}, Usage(5, 7, 0, 4)),
        ({"promptTokenCount": 5, "thoughtsTokenCount": 4, "totalTokenCount": 9}, Usage(5, 4, 0, 4)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 20}, Usage(5, 15)),
        (
            {"promptTokenCount": 5, "candidatesTokenCount": 3, "toolUsePromptTokenCount": 9, "totalTokenCount": 17},
            Usage(14, 3),
        ),
        ({"promptTokenCount": 5, "candidatesTokenCount": 3, "cachedContentTokenCount": 50}, Usage(5, 3, 5)),
        ({"promptTokenCount": 5}, None),
        ({"candidatesTokenCount": 5}, None),
        ({"promptTokenCount": -5, "candidatesTokenCount": 3}, None),
        ({"promptTokenCount": 5, "candidatesTokenCount": "3"}, None),
        ({"promptTokenCount": 5, "candidatesTokenCount": 10**10}, None),
        ({"promptTokenCount": 5.0, "candidatesTokenCount": 3}, None),
        ({"promptTokenCount": 5, "totalTokenCount": 5}, None),
        ([], None),
        (7, None),
    ],
)
def test_usage_is_what_was_reported_or_missing_but_never_zero(usage: Any, counted: Usage | None) -> None:
    body = json.dumps({"candidates": [says("foggy", finishReason="STOP")], "usageMetadata": usage}).encode()
    plain = DIALECT.meter(read())
    plain.read_message(body)
    assert plain.usage == counted
    streamed = meter_of()
    streamed.read_event(b"data: " + body + b"\r\n\r\n")
    assert streamed.usage == counted
    assert streamed.is_terminal


def test_running_counts_are_not_summed_and_a_smaller_one_is_no_correction() -> None:
    meter = meter_of()
    for made in (2, 7, 5):
        meter.read_event(event([says("word")], {"promptTokenCount": 4, "candidatesTokenCount": made}))
    assert meter.usage == Usage(4, 7)
    assert not meter.is_terminal


def test_a_stream_of_several_candidates_ends_with_the_last() -> None:
    meter = meter_of(generationConfig={"candidateCount": 2})
    meter.read_event(event([says("a", index=0, finishReason="STOP")]))
    assert not meter.is_terminal
    meter.read_event(event([says("b", index=1, finishReason="STOP")]))
    assert meter.is_terminal


def test_an_error_in_a_stream_is_no_end() -> None:
    meter = meter_of()
    meter.read_event(event(error={"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}))
    meter.read_event(event([says("x", finishReason="STOP")]))
    assert not meter.is_terminal


def test_a_picture_is_content_and_counts_for_no_words() -> None:
    meter = meter_of()
    got = meter.read_event(
        event([{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "A" * 90_000}}]}}])
    )
    assert got is not None
    assert got.has_content
    assert meter.output_estimate == 0


def test_one_member_of_an_unexpected_type_does_not_hide_the_usage() -> None:
    meter = meter_of()
    meter.read_event(event(7, {"promptTokenCount": 4, "candidatesTokenCount": 6}, promptFeedback=[]))  # type: ignore[arg-type]
    assert meter.usage == Usage(4, 6)


def last_of(data: bytes) -> dict[str, Any]:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\r\n\r\n")
    found: dict[str, Any] = json.loads(data[6:])
    return found


def test_a_cut_finishes_what_is_open() -> None:
    meter = meter_of(generationConfig={"candidateCount": 2})
    usage = {"promptTokenCount": 4, "candidatesTokenCount": 6, "thoughtsTokenCount": 5}
    meter.read_event(
        event([says("a", index=0, finishReason="STOP")], usage, responseId="r-1", modelVersion="gemini-x-1")
    )
    meter.read_event(event([says("b", index=1)]))
    last = last_of(meter.cut())
    assert [(one["index"], one["finishReason"]) for one in last["candidates"]] == [(1, "MAX_TOKENS")]
    assert last["usageMetadata"] == {
        "promptTokenCount": 4, "candidatesTokenCount": 6, "thoughtsTokenCount": 5, "totalTokenCount": 15,
    }  # fmt: skip
    assert last["responseId"] == "r-1"
    assert last["modelVersion"] == "gemini-x-1"


def test_a_cut_in_the_place_of_the_last_event_finishes_what_that_would_have() -> None:
    meter = meter_of()
    meter.read_event(event([says("a")]))
    meter.read_event(event([says("b", finishReason="STOP")]))
    assert last_of(meter.cut())["candidates"][0]["finishReason"] == "MAX_TOKENS"
    meter.read_event(b": over\r\n\r\n")
    assert meter.cut() == b""
    behind = meter_of()
    behind.read_event(event([says("b", finishReason="STOP")]))
    assert behind.cut(is_event_forwarded=True) == b""


ELEMENTS = [{"candidates": [says("a")]}, {"candidates": [says("b")]}, {"candidates": [says("c", finishReason="STOP")]}]


@pytest.mark.parametrize("read_count", range(5))
@pytest.mark.parametrize("is_event_forwarded", [False, True])
@pytest.mark.parametrize("is_error", [False, True])
def test_an_array_that_is_cut_anywhere_is_an_array(read_count: int, is_event_forwarded: bool, is_error: bool) -> None:
    if is_error and is_event_forwarded:
        return  # An error always stands in the place of the event last read.
    meter = meter_of(STREAM, b"application/json; charset=UTF-8")
    pieces = Splitter().feed(json.dumps(ELEMENTS).encode())
    assert len(pieces) == 4
    for piece in pieces[:read_count]:
        assert meter.read_event(piece) is not None
    forwarded = pieces[: read_count if is_event_forwarded else max(read_count - 1, 0)]
    refused = Refused(Reason.NOT_ALLOWED, "too long")
    end = meter.error_event(refused) if is_error else meter.cut(is_event_forwarded=is_event_forwarded)
    got = json.loads(b"".join(forwarded) + end)
    whole = [one for one in forwarded if one != b"]"]
    assert got[: len(whole)] == ELEMENTS[: len(whole)]
    if is_error:
        assert [one["error"]["status"] for one in got[len(whole) :]] == ["PERMISSION_DENIED"]
    else:
        assert len(got) == (len(whole) if len(whole) == 3 else len(whole) + 1)
        assert got[-1]["candidates"][0]["finishReason"] == ("STOP" if len(whole) == 3 else "MAX_TOKENS")


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [
        (Reason.BUDGET_EXHAUSTED, 402, "RESOURCE_EXHAUSTED"),
        (Reason.NOT_ALLOWED, 403, "PERMISSION_DENIED"),
        (Reason.MALFORMED, 400, "INVALID_ARGUMENT"),
        (Reason.CIRCUIT_OPEN, 503, "UNAVAILABLE"),
        (Reason.UPSTREAM_TIMEOUT, 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_refusal_is_an_error_of_googles(reason: Reason, code: int, status: str) -> None:
    content_type, body = DIALECT.refusal_body(Refused(reason, "why"), call_id="c")
    error = json.loads(body)["error"]
    assert content_type.startswith(b"application/json")
    assert (error["code"], error["status"], error["message"]) == (code, status, "why")
    assert error["details"][0]["domain"] == "meshd"


def test_every_reason_has_a_status_of_googles() -> None:
    for reason in Reason:
        _, body = DIALECT.refusal_body(Refused(reason, "why"), call_id="c")
        assert json.loads(body)["error"]["status"] != "UNKNOWN"
