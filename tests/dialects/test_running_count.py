"""Whoever watches a stream's events sees how far the answer has come: that is what a cut at the budget goes by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.dialects.table import DIALECTS
from tests.wire.frames import chunk

REQUEST = {"model": "m", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "go"}]}
TEXT = "many words " * 20
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
FRAMED: dict[str, Any] = {
    "gemini": ("/v1/models/m:streamGenerateContent", {"candidates": [{"content": {"parts": [{"text": TEXT}]}}]}),
    "ollama": ("/api/chat", {"message": {"role": "assistant", "content": TEXT}, "done": False}),
    "bedrock": ("/model/anthropic.m/invoke-with-response-stream", DELTA),
}
CASES = {
    "openai": ("/v1/chat/completions", {"choices": [{"index": 0, "delta": {"content": TEXT}}]}),
    "anthropic": (
        "/v1/messages",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_piece_is_counted_into_its_event(name: str) -> None:
    dialect = DIALECTS[name]
    path, piece = CASES[name]
    operation = dialect.recognise("POST", path)
    assert operation is not None
    meter = dialect.meter(dialect.read(operation, json.dumps(REQUEST).encode()))
    counted = []
    for _ in range(10):
        event = meter.read_event(f"data: {json.dumps(piece)}\n\n".encode())
        assert event is not None
        counted.append(event.output_estimate)
        assert event.output_estimate == meter.output_estimate
    assert counted == sorted(set(counted))
    assert counted[-1] >= 10 * len(TEXT) // 8


@pytest.mark.parametrize("name", FRAMED)
def test_each_piece_of_another_framing_is_counted_too(name: str) -> None:
    dialect: Any = DIALECTS[name]
    path, piece = FRAMED[name]
    operation = dialect.recognise("POST", path)
    assert operation is not None
    body = json.dumps(REQUEST | {"contents": []}).encode()
    meter = dialect.meter(dialect.read(operation, body, path))
    meter.splitter_for(b"application/json", 1 << 20)
    raw = chunk(piece) if name == "bedrock" else json.dumps(piece).encode()
    counted = [meter.read_event(raw).output_estimate for _ in range(10)]
    assert counted == sorted(set(counted))
    assert counted[-1] == meter.output_estimate >= 10 * len(TEXT) // 8
