"""What a call is for, before any filter is asked: the language of its path, and the key that its query carries."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import Call, Direction
from meshd.policy.addressing import AddressBook
from meshd.proxy.arrival import arrive
from meshd.proxy.forwarding import path_to_send
from meshd.wire.message import Fields, Request
from tests.filters.calls import policy

POLICY = policy(
    upstreams="""
upstreams:
  gemini: {url: "https://generativelanguage.googleapis.com"}
  vertex: {url: "https://europe-west4-aiplatform.googleapis.com", kind: llm, dialect: gemini}
  ollama: {url: "http://127.0.0.1:11434"}
  openai: {url: "https://api.openai.com"}
"""
)


class Door:
    book = AddressBook(POLICY)


def arrived(target: str, *headers: tuple[bytes, bytes]) -> Call:
    fields = Fields([(b"host", b"localhost"), *headers])
    fields.authority = "localhost"
    request = Request("POST", target, fields)
    call = Call(
        "c", Direction.OUTBOUND, "POST", target, "localhost", fields.headers, 0.0, 0.0, "", [], fields.credentials
    )
    call.policy = POLICY
    assert not arrive(Door(), call, request)
    return call


@pytest.mark.parametrize(
    ("target", "name", "operation"),
    [
        ("/gemini/v1beta/models/m:generateContent", "gemini", "chat"),
        ("/vertex/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict", "anthropic", "chat"),
        ("/ollama/api/chat", "ollama", "chat"),
        ("/ollama/v1/chat/completions", "openai", "chat"),
        ("/ollama/v1/embeddings", "openai", "embeddings"),
        ("/ollama/v1/messages", "anthropic", "chat"),
    ],
)
def test_a_path_is_read_in_the_language_that_it_is_written_in(target: str, name: str, operation: str) -> None:
    call = arrived(target)
    assert (call.dialect.name, call.dialect.recognise("POST", call.path)) == (name, operation)


def test_a_key_in_the_query_is_a_credential_of_geminis() -> None:
    own = (b"x-goog-api-key", b"header")
    call = arrived("/gemini/v1beta/models/m:generateContent?alt=json&key=k-1", own)
    assert call.credentials == [own, (b"x-goog-api-key", b"k-1")]
    # What the wire has sorted is shared by requests with the same fields, and stays as it is.
    assert arrived("/gemini/v1beta/models/m:generateContent?alt=json", own).credentials == [own]
    assert arrived("/openai/v1/chat/completions?key=k-1").credentials == []


@pytest.mark.parametrize("target", ["/gemini/v1beta/models?key=k-1", "/gemini/v1beta/models/m:generateContent?key=k-1"])
def test_a_key_in_the_query_leaves_only_where_meshd_has_none(target: str) -> None:
    call: Any = arrived(target)
    assert path_to_send(call, None) == call.path
    assert path_to_send(call, b"ours") == call.path.partition("?")[0]
    other = arrived("/openai/v1/chat/completions?key=k-1")
    assert path_to_send(other, b"ours") == other.path
