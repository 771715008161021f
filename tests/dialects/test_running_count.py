"""Whoever watches a stream's events sees how far the answer has come: that is what a cut at the budget goes by."""

from __future__ import annotations

import json

import pytest

from meshd.dialects.table import DIALECTS

REQUEST = {"model": "m", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "go"}]}
TEXT = "many words " * 20
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
