"""Answers that are kept: whose, how long, and how many."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import Call
from meshd.dialects.table import DIALECTS
from meshd.dialects.too_long import is_too_long
from meshd.filters import answers as room
from meshd.filters.answers import ANSWER_BYTES_MAX, BYTES_MAX, ENTRIES_MAX, Answers, key_of
from meshd.filters.substitution import Standing
from tests.filters.calls import call, chat, policy

HEADERS = [(b"content-type", b"text/plain"), (b"set-cookie", b"s=1"), (b"x-request-id", b"7")]


def made(body: bytes = b'{"a": 1, "b": [2]}', **more: Any) -> Call:
    one = call(ask=chat("m"), body=body)
    one.dialect = DIALECTS["openai"]
    for name, value in more.items():
        setattr(one, name, value)
    return one


def key(one: Call) -> bytes:
    return key_of(one, Standing(one))


def test_the_same_request_in_other_words_is_the_same() -> None:
    assert key(made()) == key(made(b'{"b":[2],"a":1}'))
    assert key(made(path="/v1/chat/completions?key=a")) == key(made(path="/v1/chat/completions?key=b"))


@pytest.mark.parametrize(
    "other",
    [
        {"body": b'{"a": 1, "b": [3]}'},
        {"body": b'{"a": 1, "b": [2], "stream": true}'},
        {"agent": "another"},
        {"method": "PUT"},
        {"path": "/v1/other"},
        {"credentials": [(b"authorization", b"Bearer other")]},
        {"headers": [(b"cookie", b"user=2")]},
        {"policy": policy("tenant: another\n")},
        {"dialect": DIALECTS["anthropic"]},
    ],
)
def test_another_request_is_another(other: dict[str, Any]) -> None:
    assert key(made(**other)) != key(made())


def test_parts_cannot_be_moved_from_one_to_the_next() -> None:
    one, other = made(agent="ab"), made(agent="a")
    one.policy, other.policy = policy("tenant: x\n"), policy("tenant: xb\n")
    assert key(one) != key(other)


def test_an_answer_is_found_while_it_is_young_enough() -> None:
    kept = Answers()
    kept.put(b"k", 200, HEADERS, b"body", 100.0)
    found = kept.find(b"k", 160.0, 60.0)
    assert found is not None
    assert (found.status, found.body, found.headers) == (200, b"body", [(b"content-type", b"text/plain")])
    assert kept.find(b"k", 160.1, 60.0) is None
    assert kept.find(b"other", 100.0, 60.0) is None


def test_memory_is_bounded_by_answers_and_by_bytes() -> None:
    kept = Answers()
    for number in range(ENTRIES_MAX + 10):
        kept.put(b"%d" % number, 200, HEADERS, b"x", 0.0)
    assert (len(kept), kept.bytes_kept) == (ENTRIES_MAX, ENTRIES_MAX)
    assert kept.find(b"9", 0.0, 1.0) is None
    assert kept.find(b"10", 0.0, 1.0) is not None
    for number in range(40):
        kept.put(b"large %d" % number, 200, HEADERS, bytes(ANSWER_BYTES_MAX), 0.0)
    assert kept.bytes_kept <= BYTES_MAX
    assert len(kept) == BYTES_MAX // ANSWER_BYTES_MAX


def test_one_that_is_too_long_takes_the_old_one_with_it() -> None:
    kept = Answers()
    kept.put(b"k", 200, HEADERS, b"old", 0.0)
    kept.put(b"k", 200, HEADERS, bytes(ANSWER_BYTES_MAX + 1), 0.0)
    assert (len(kept), kept.bytes_kept) == (0, 0)
    assert room.ENTRIES_MAX == ENTRIES_MAX


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": "context_length_exceeded", "message": "x"}}',
        b'{"error": {"message": "This model\'s maximum context length is 8192 tokens."}}',
        b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 201 > 200 tokens"}}',
        b'{"error": {"message": "input length and `max_tokens` exceed context limit: 1 + 2 > 2"}}',
        b'{"error": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}',
        b'{"error": "the request exceeds the available context window"}',
    ],
)
def test_providers_words_for_too_long(body: bytes) -> None:
    assert is_too_long(body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no json", b"[]", b"3", b'{"error": 3}', b'{"error": {"message": 7}}', b"\xff", b"[" * 5000,
        b'{"error": {"code": "invalid_api_key", "message": "no"}}',
        b'{"error": {"code": "content_filter", "message": "The response was filtered"}}',
    ],
)  # fmt: skip
def test_other_errors_and_nonsense_are_none(body: bytes) -> None:
    assert not is_too_long(body)
