"""OpenAI images and audio: what is bounded, what nobody can bound, and what an answer says of tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.openai import OpenAI
from meshd.refusal import Reason, Refused

DIALECT = OpenAI()
PROMPT = "A lighthouse in fog."
FORM = [(b"content-type", b"multipart/form-data; boundary=b7")]


def read(operation: str = "image_generation", **members: Any) -> Ask:
    return DIALECT.read(operation, json.dumps({"model": "gpt-image-1", "prompt": PROMPT} | members).encode())


def form(operation: str, path: str = "", **fields: str | bytes) -> Ask:
    body = b""
    for name, content in fields.items():
        is_file = isinstance(content, bytes)
        head = f'content-disposition: form-data; name="{name}"' + ('; filename="f"' if is_file else "")
        body += b"--b7\r\n" + head.encode() + b"\r\n\r\n" + (content if is_file else content.encode()) + b"\r\n"
    return DIALECT.read(operation, body + b"--b7--\r\n", path, FORM)


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"quality": "low", "size": "1024x1024"}, 272),
        ({"quality": "low", "size": "1536x1024"}, 408),
        ({"quality": "medium", "size": "1024x1024", "n": 3}, 3 * 1_056),
        ({"quality": "high", "size": "1024x1536"}, 6_240),
        ({"quality": "high"}, 6_240),
        ({"quality": "auto", "size": "1024x1024"}, 4_160),
        ({"quality": "unheard of"}, 6_240),
        ({}, 6_240),
        ({"n": 10}, 62_400),
        ({"quality": "low", "size": "1024x1024", "partial_images": 3, "n": 2}, 2 * (272 + 300)),
        ({"model": "gpt-image-1-mini", "quality": "high"}, 6_563),
        ({"output_format": "webp", "quality": "low"}, 408),
    ],
)
def test_an_image_costs_what_the_table_says(members: dict[str, Any], tokens: int) -> None:
    ask = read(**members)
    text = len(json.dumps({"model": "gpt-image-1", "prompt": PROMPT} | members))
    assert ask.input_bound == text + 256 + tokens
    assert (ask.unbounded, ask.has_output) == ("", False)


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("image_generation", {"model": "gpt-image-2"}),
        ("image_generation", {"model": "gpt-image-1.5"}),
        ("image_generation", {"model": "dall-e-3"}),
        ("image_generation", {"model": None}),
        ("image_generation", {"output_format": "gif"}),
        ("image_variation", {}),
        ("image_edit", {"model": "gpt-image-1-mini", "images": [{"file_id": "f"}]}),
        ("speech", {"model": "gpt-4o-mini-tts"}),
        ("speech", {"model": "kokoro"}),
        ("speech", {"model": None}),
        ("transcription", {"model": "gpt-transcribe"}),
        ("transcription", {"model": "gpt-4o-transcribe", "chunking_strategy": "auto"}),
        ("transcription", {"model": "gpt-4o-transcribe-diarize"}),
        ("translation", {"model": "gpt-4o-transcribe-2"}),
    ],
)
def test_what_nobody_can_bound_says_why(operation: str, members: dict[str, Any]) -> None:
    assert len(read(operation, **members).unbounded) > 20


def test_images_that_are_given_are_counted_however_they_come() -> None:
    one = 65 + 4 * 129 + 6_240
    plain = read("image_edit", quality="low", size="1024x1024").input_bound
    for members, count in (
        ({"images": [{"file_id": "a"}, {"image_url": "data:,x"}]}, 2),
        ({"image": "data:,x", "mask": {"file_id": "m"}}, 2),
    ):
        ask = read("image_edit", quality="low", size="1024x1024", **members)
        assert ask.input_bound - plain == count * one + len(json.dumps(members)) - 2 + 2
    ask = form("image_edit", model="gpt-image-1", prompt="fog", quality="low", image=b"\xff" * 9_000, mask=b"\xff")
    assert ask.input_bound == len("gpt-image-1fog") + len("low") + 256 + 408 + 2 * one


@pytest.mark.parametrize(
    ("model", "is_by_bytes"),
    [("whisper-1", True), ("openai/whisper-large-v3", True), ("gpt-4o-mini-transcribe", False)],
)
def test_a_recording_is_bounded_by_its_bytes_or_by_the_window(model: str, is_by_bytes: bool) -> None:
    ask = form("transcription", model=model, file=b"\xff" * 30_000)
    assert (ask.input_bound > 30_000) is is_by_bytes
    assert is_by_bytes or ask.input_bound == 18_000
    assert (ask.model, ask.unbounded) == (model, "")


def test_the_pieces_of_a_chunking_strategy_are_seen() -> None:
    named: Any = {"model": "gpt-4o-transcribe", "chunking_strategy[type]": "server_vad", "file": b"x"}
    assert "pieces" in form("transcription", **named).unbounded


def test_a_deployment_s_name_is_the_model_of_a_form_too() -> None:
    path = "/openai/deployments/whisper-eu/audio/transcriptions?api-version=1"
    ask = form("transcription", path, file=b"x", model="gpt-4o-transcribe")
    assert (ask.model, ask.unbounded) == ("whisper-eu", "")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"n": 11}, "'n' must be an integer from 1 to 10"),
        ({"n": "2"}, "'n'"),
        ({"partial_images": 4}, "'partial_images'"),
        ({"quality": 7}, "'quality'"),
        ({"stream": "yes"}, "'stream'"),
        ({"model": ["gpt-image-1"]}, "'model'"),
    ],
)
def test_what_decides_must_have_its_type(members: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as caught:
        read(**members)
    assert says in caught.value.message
    assert caught.value.reason is Reason.MALFORMED
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("image_generation", b'{"model":"gpt-image-1","n":1,"n":9}')


USAGE = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281}


def event(kind: str, **members: Any) -> bytes:
    return b"event: x\ndata: " + json.dumps({"type": kind} | members).encode() + b"\n\n"


def test_a_stream_of_several_images_ends_with_the_last_and_costs_them_all() -> None:
    meter = DIALECT.meter(read(n=2, stream=True))
    meter.read_event(event("image_generation.partial_image", b64_json="x"))
    meter.read_event(event("image_generation.completed", b64_json="x", usage=USAGE))
    assert not meter.is_terminal
    meter.read_event(event("image_generation.completed", b64_json="x", usage=USAGE))
    assert meter.is_terminal
    assert meter.usage == Usage(18, 544)
    assert meter.output_estimate == 0, "bytes that are no text are cut for nothing"


def test_an_error_in_the_stream_is_no_success() -> None:
    meter = DIALECT.meter(read(stream=True))
    meter.read_event(event("error", error={"message": "overloaded"}))
    meter.read_event(event("image_generation.completed", usage=USAGE))
    assert not meter.is_terminal


def test_there_is_no_well_formed_way_to_cut_an_image() -> None:
    meter = DIALECT.meter(read(stream=True))
    kind, data = meter.cut().removesuffix(b"\n\n").split(b"\ndata: ")
    assert kind == b"event: error"
    assert json.loads(data)["error"]["code"] == "meshd_not_allowed"
    meter.read_event(event("image_generation.completed", usage=USAGE))
    assert meter.cut() == b""


@pytest.mark.parametrize(
    "usage", [None, {}, [], {"type": "duration", "seconds": 9}, {"input_tokens": -1, "output_tokens": 3}, "none"]
)
def test_absurd_usage_is_missing_and_missing_is_not_zero(usage: Any) -> None:
    meter = DIALECT.meter(read("transcription", model="whisper-1"))
    meter.read_message(json.dumps({"text": "fog", "usage": usage}).encode())
    assert (meter.usage, meter.is_terminal) == (None, True)
    stream = DIALECT.meter(read("transcription", model="gpt-4o-transcribe", stream=True))
    stream.read_event(event("transcript.text.done", text="fog", usage=usage))
    assert (stream.usage, stream.is_terminal) == (None, True)


@pytest.mark.parametrize("body", [b"", b"ID3\x04\xff\xfb", b"1\n00:00:00,000 --> ", b"{\xff", b'{"usage":'])
def test_an_answer_that_is_no_json_is_passed_on(body: bytes) -> None:
    meter = DIALECT.meter(read("speech", model="tts-1"))
    assert meter.read_message(body).raw is body
    assert meter.usage is None
