"""Errors, translated both ways, and what no provider should say: a typed error, and never another."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from meshd.dialects.translation import TranslationError
from tests.dialects.test_translation_replies import USE, completion, said
from tests.dialects.test_translation_streams import DONE, START, block, chunk, piece
from tests.dialects.translating import asking, between, stream_of

# -- nonsense

NONSENSE = [
    b"",
    b"null",
    b"5",
    b"[]",
    b"<html>",
    b"\xff\xfe",
    b'{"a":',
    b'{"content": 5, "choices": 5}',
    b"[" * 100_000,
]
NO_MESSAGE = [b"{}", b'{"content": null, "choices": []}', b'{"error": {"message": "no"}, "content": [], "choices": []}']


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
@pytest.mark.parametrize("body", [*NONSENSE, *NO_MESSAGE], ids=lambda body: body[:20])
def test_nonsense_for_a_reply(caller: str, body: bytes) -> None:
    with pytest.raises(TranslationError, match="the answer"):
        asking(caller).reply(body)


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
@pytest.mark.parametrize("body", NONSENSE[1:], ids=lambda body: body[:20])
def test_nonsense_in_a_stream(caller: str, body: bytes) -> None:
    if body == b'{"content": 5, "choices": 5}' and caller == "openai":
        return
    with pytest.raises(TranslationError, match="the stream"):
        asking(caller).stream().feed(b"data: " + body + b"\n\n")


@pytest.mark.parametrize(
    ("caller", "events"),
    [
        ("openai", [{"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}]),
        ("openai", [*block(0, USE), *block(0, USE)]),
        ("openai", [*block("0", USE)]),
        ("openai", [START, {"type": "message_stop"}]),
        ("openai", [*(event for index in range(1_025) for event in block(index, USE | {"id": f"t{index}"}))]),
        ("anthropic", [DONE]),
        ("anthropic", [chunk({"content": "a"}), DONE]),
        ("anthropic", [piece(0, "{}", id="a")]),
        ("anthropic", [piece(0, "{", id="a", name="f"), piece(1, "{}", id="b", name="g"), piece(0, "}")]),
        ("anthropic", [piece(0, "{", id="a", name="f"), chunk({"content": "!"}), piece(0, "}")]),
        ("anthropic", [piece(index, "{}", id=f"c{index}", name="f") for index in range(1_025)]),
    ],
)  # fmt: skip
def test_streams_that_are_no_sense(caller: str, events: list[Any]) -> None:
    with pytest.raises(TranslationError, match=r"stream|answer"):
        stream_of(caller, events)


@pytest.mark.parametrize("depth", [100, 450, 490, 900, 5_000])
def test_what_is_nested_deeply_is_read_or_a_typed_error(depth: int) -> None:
    """As deep as a parser goes, and deeper than what is made of it may go."""
    objects, lists = b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth + b"]" * depth
    parts = b'[{"text":' * depth + b'"x"' + b"}]" * depth
    call = b'{"id":"a","function":{"name":"f","arguments":%b}}'
    for value in (objects, lists, parts):
        for body in (
            b'{"choices":[{"message":{"content":%b}}]}' % value,
            b'{"choices":[{"message":{"tool_calls":[' + call % value + b"]}}]}",
            b'{"error":%b}' % value,
            b'{"choices":[{"delta":{"tool_calls":[' + call % value + b"]}}]}",
            b'{"content":[{"type":"tool_use","name":"f","input":%b}]}' % value,
            b'{"type":"error","error":%b}' % value,
            b'{"content":[{"type":"text","text":%b}],"usage":%b}' % (value, value),
        ):
            for caller in ("openai", "anthropic"):
                made = asking(caller)
                with contextlib.suppress(TranslationError):
                    made.reply(body)
                with contextlib.suppress(TranslationError):
                    made.stream().feed(b"data: " + body + b"\n\n")
                made.error(500, body)


def test_json_that_only_a_tolerant_parser_reads_is_read() -> None:
    body = completion({"content": "X"}).replace(b'"X"', b'"half \\ud83d"').replace(b"8}", b"NaN}")
    assert said(body)["content"][0]["text"] == "half ?"


# -- errors


@pytest.mark.parametrize(
    ("status", "body", "expected", "kind"),
    [
        (400, {"message": "bad"}, 400, "invalid_request_error"),
        (401, {"message": "key"}, 401, "authentication_error"),
        (403, {"message": "no"}, 403, "permission_error"),
        (404, {"message": "which?"}, 404, "not_found_error"),
        (413, {"message": "long"}, 413, "request_too_large"),
        (418, {"message": "tea"}, 418, "invalid_request_error"),
        (429, {"message": "slow"}, 429, "rate_limit_error"),
        (429, {"message": "paid?", "code": "insufficient_quota"}, 402, "billing_error"),
        (500, {"message": "oh"}, 500, "api_error"),
        (503, {"message": "full"}, 503, "overloaded_error"),
        (504, {"message": "late"}, 504, "timeout_error"),
    ],
)
def test_openai_s_errors(status: int, body: dict[str, Any], expected: int, kind: str) -> None:
    made, written = between("anthropic").error(status, json.dumps({"error": body}).encode())
    assert made == expected
    assert json.loads(written) == {"type": "error", "error": {"type": kind, "message": body["message"]}}


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected", "code"),
    [
        (400, "invalid_request_error", "bad", 400, None),
        (400, "invalid_request_error", "prompt is too long: 9 tokens", 400, "context_length_exceeded"),
        (401, "authentication_error", "key", 401, "invalid_api_key"),
        (404, "not_found_error", "which?", 404, "model_not_found"),
        (429, "rate_limit_error", "slow", 429, "rate_limit_exceeded"),
        (500, "api_error", "oh", 500, None),
        (529, "overloaded_error", "full", 503, "server_overloaded"),
    ],
)
def test_anthropic_s_errors(status: int, kind: str, message: str, expected: int, code: str | None) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    made, written = between("openai").error(status, body)
    assert made == expected
    assert json.loads(written) == {"error": {"message": message, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "body", [*NONSENSE, b'{"error": "full"}', b'[{"error": {"message": "full"}}]', b'{"message": "full"}']
)
def test_errors_that_are_none_of_the_dialect(caller: str, body: bytes) -> None:
    status, written = between(caller).error(502, body)
    assert status == 502
    message = json.loads(written)["error"]["message"]
    assert message == ("full" if b"full" in body else "the provider answered with status 502")
