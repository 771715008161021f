"""Anthropic's models at the addresses of Vertex AI and Bedrock: the path says the model, a signature seals the call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.bedrock import Bedrock
from meshd.dialects.bedrock_meter import BedrockMeter
from meshd.dialects.table import dialect_at
from meshd.prices.billed import Billed
from meshd.refusal import Reason, Refused
from meshd.wire.event_stream import Splitter, decode
from tests.wire.frames import chunk, event

BODY = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 50, "messages": [{"role": "user", "content": "Tide?"}]}
BEDROCK = Bedrock()
MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
INVOKE = f"/model/{MODEL}/invoke"
STREAM = f"/model/{MODEL}/invoke-with-response-stream"
VERTEX = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-x:rawPredict"
SIGNED = [(b"authorization", b"AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/bedrock/aws4_request, Signature=0")]


def read(path: str = INVOKE, credentials: Any = (), **members: Any) -> Ask:
    return BEDROCK.read("chat", json.dumps(BODY | members).encode(), path, list(credentials))


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (INVOKE, MODEL),
        (f"/model/us.{MODEL}/invoke", f"us.{MODEL}"),
        (f"/model/global.{MODEL.replace(':', '%3A')}/invoke?x=1", f"global.{MODEL}"),
        (STREAM, MODEL),
    ],
)
def test_the_model_of_bedrock_stands_in_the_path(path: str, model: str) -> None:
    assert BEDROCK.recognise("POST", path) == "chat"
    ask = read(path)
    assert ask.model == model
    assert ask.is_stream is ("stream" in path)
    ask.model_granted = "anthropic.claude-y"
    assert read(BEDROCK.redirect(ask, path)).model == "anthropic.claude-y"
    # A model in the body would be another one than the path's: it stays as the caller sent it.
    assert json.loads(BEDROCK.rewrite(ask, json.dumps(BODY).encode())) == BODY


def test_a_model_that_no_path_can_carry_is_refused() -> None:
    ask = read()
    ask.model_granted = "arn:aws:bedrock:x/y"
    with pytest.raises(Refused, match="cannot stand there"):
        BEDROCK.redirect(ask, INVOKE)


@pytest.mark.parametrize(
    ("credentials", "is_sealed"),
    [
        (SIGNED, True),
        ([(b"authorization", b"aws4-ecdsa-p256-sha256 Credential=x")], True),
        ([(b"authorization", b"Bearer ABSKx")], False),
        ([(b"x-api-key", b"AWS4-HMAC-SHA256")], False),
        ([], False),
    ],
)
def test_a_signature_seals_the_request(credentials: Any, is_sealed: bool) -> None:
    assert read(credentials=credentials).is_sealed is is_sealed


def test_the_one_upstream_of_vertex_speaks_both_languages() -> None:
    for name in ("gemini", "anthropic"):
        dialect: Any = dialect_at(name, VERTEX)
        assert dialect.name == "anthropic"
        assert dialect.recognise("POST", VERTEX) == "chat"
        ask = dialect.read("chat", json.dumps(BODY | {"model": "claude-other"}).encode(), VERTEX)
        assert ask.model == "claude-x"
        assert not ask.is_stream
        ask.model_granted = "claude-y"
        assert dialect.redirect(ask, VERTEX) == VERTEX.replace("claude-x", "claude-y")
        streamed = VERTEX.replace(":raw", ":streamRaw")
        assert dialect.read("chat", json.dumps(BODY).encode(), streamed).is_stream
    gemini = "/v1/projects/p/locations/l/publishers/google/models/gemini-x:generateContent"
    assert dialect_at("gemini", gemini).name == "gemini"
    # What stands in the query is no place.
    assert dialect_at("gemini", f"{gemini}?x={VERTEX}").name == "gemini"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/models", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages?beta=true", "anthropic"),
        ("/api/chat", "ollama"),
        ("/api/tags?x=/v1/", "ollama"),
    ],
)
def test_an_upstream_of_ollamas_speaks_three_languages(path: str, name: str) -> None:
    assert dialect_at("ollama", path).name == name


def meter() -> BedrockMeter:
    made = BEDROCK.meter(read(STREAM))
    assert made.splitter_for(b"application/vnd.amazon.eventstream", 1 << 20) is not None
    assert made.splitter_for(b"application/json", 1 << 20) is None
    return made


def carried(data: bytes) -> list[dict[str, Any]]:
    """What Anthropic's SDK would find in these frames."""
    import base64

    frames = [decode(one) for one in Splitter().feed(data)]
    assert all(one is not None and one.headers[":event-type"] == "chunk" for one in frames)
    return [json.loads(base64.b64decode(json.loads(one.payload)["bytes"])) for one in frames if one is not None]


START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 7, "output_tokens": 1}},
}
OPEN = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
WORDS = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "words " * 8}}


def test_a_stream_in_frames_is_cut_in_frames() -> None:
    made = meter()
    for said in (START, OPEN, WORDS, WORDS):
        assert made.read_event(chunk(said)) is not None
    last = carried(made.cut())
    assert [one["type"] for one in last] == ["content_block_stop", "message_delta", "message_stop"]
    assert last[1]["delta"]["stop_reason"] == "max_tokens"
    assert made.output_estimate == 24


def test_bedrocks_own_counts_stand_in_for_missing_ones() -> None:
    metrics = {
        "inputTokenCount": 7,
        "outputTokenCount": 5,
        "cacheReadInputTokenCount": 3,
        "cacheWriteInputTokenCount": 2,
    }
    made = meter()
    for said in (START, OPEN, WORDS, {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}):
        made.read_event(chunk(said))
    assert made.is_terminal
    assert made.usage == Usage(12, 5, 3, billed=Billed(2))


@pytest.mark.parametrize(
    "metrics", [None, 7, {}, {"inputTokenCount": 7}, {"inputTokenCount": -1, "outputTokenCount": 2}]
)
def test_counts_that_are_absurd_stay_missing(metrics: Any) -> None:
    made = meter()
    made.read_event(chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}))
    assert made.usage is None


def test_an_exception_in_a_stream_is_no_end() -> None:
    made = meter()
    made.read_event(chunk(START))
    headers = [(":exception-type", "throttlingException"), (":message-type", "exception")]
    made.read_event(event(b'{"message":"slow down"}', headers))
    made.read_event(chunk({"type": "message_stop"}))
    assert not made.is_terminal


def test_an_error_event_is_an_exception() -> None:
    found = decode(meter().error_event(Refused(Reason.NOT_ALLOWED, "too long")))
    assert found is not None
    assert found.headers[":message-type"] == "exception"
    assert found.headers[":exception-type"] == "validationException"
    assert json.loads(found.payload) == {"message": "too long"}


def test_a_refusal_is_an_error_of_amazons_and_of_anthropics() -> None:
    _, body = BEDROCK.refusal_body(Refused(Reason.BUDGET_EXHAUSTED, "why"), call_id="c-1")
    found = json.loads(body)
    assert (found["__type"], found["message"]) == ("AccessDeniedException", "why")
    assert found["error"]["type"] == "billing_error"
