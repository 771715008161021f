"""What a request and its answer say that prices depend on: tiers of service, and what is put into a cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Usage
from meshd.dialects.anthropic import Anthropic
from meshd.dialects.gemini import Gemini
from meshd.dialects.openai import OpenAI
from meshd.prices.billed import Billed
from meshd.prices.price import quoted
from meshd.prices.table import table

CHAT = {"model": "gpt-5.4", "messages": [{"role": "user", "content": "Is it foggy?"}]}
RESPONSES = {"model": "gpt-5.4", "input": "Is it foggy?"}
CLAUDE = CHAT | {"model": "claude-opus-5-5", "max_tokens": 9}


def usage_of(dialect: Any, operation: str, asked: dict[str, Any], said: dict[str, Any]) -> Usage:
    meter = dialect.meter(dialect.read(operation, json.dumps(asked).encode()))
    meter.read_message(json.dumps(said).encode())
    assert meter.usage is not None
    found: Usage = meter.usage
    return found


@pytest.mark.parametrize(("operation", "asked"), [("chat", CHAT), ("responses", RESPONSES)])
@pytest.mark.parametrize(
    ("members", "tier"), [({}, ""), ({"service_tier": "flex"}, "flex"), ({"service_tier": None}, "")]
)
def test_an_openai_request_names_its_tier(
    operation: str, asked: dict[str, Any], members: dict[str, Any], tier: str
) -> None:
    assert OpenAI().read(operation, json.dumps(asked | members).encode()).tier == tier


def test_an_anthropic_request_asks_for_its_fast_mode() -> None:
    assert Anthropic().read("chat", json.dumps(CLAUDE).encode()).tier == ""
    assert Anthropic().read("chat", json.dumps(CLAUDE | {"speed": "fast"}).encode()).tier == "fast"


@pytest.mark.parametrize(
    ("tier", "written", "billed"),
    [
        (None, 0, None),
        ("default", 0, Billed(0, -1, "default")),
        ("priority", 40, Billed(40, -1, "priority")),
        (None, 40, Billed(40)),
        (7, -5, None),
        (["x"], 10**12, None),
        ("p" * 100, 400, Billed(90, -1, "p" * 32)),
    ],
)
def test_an_openai_answer_says_what_it_is_billed_by(tier: Any, written: int, billed: Billed | None) -> None:
    details = {"cached_tokens": 10, "cache_write_tokens": written}
    chat = {
        "id": "1", "created": 1, "model": "m", "service_tier": tier,
        "choices": [{"index": 0, "message": {"content": "No."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 2, "total_tokens": 92, "prompt_tokens_details": details},
    }  # fmt: skip
    assert usage_of(OpenAI(), "chat", CHAT, chat) == Usage(90, 2, 10, billed=billed)
    response = {
        "id": "1", "model": "m", "status": "completed", "service_tier": tier,
        "usage": {"input_tokens": 90, "output_tokens": 2, "total_tokens": 92, "input_tokens_details": details},
    }  # fmt: skip
    assert usage_of(OpenAI(), "responses", RESPONSES, response) == Usage(90, 2, 10, billed=billed)


def test_a_stream_says_its_tier_at_its_beginning() -> None:
    dialect = OpenAI()
    meter = dialect.meter(dialect.read("chat", json.dumps(CHAT | {"stream": True}).encode()))
    first = {"id": "1", "created": 1, "model": "m", "service_tier": "flex", "choices": []}
    last = {
        "id": "1",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
    for chunk in (first, last):
        meter.read_event(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert meter.usage == Usage(9, 1, billed=Billed(0, -1, "flex"))


@pytest.mark.parametrize(
    ("said", "billed"),
    [
        ({}, None),
        ({"cache_creation_input_tokens": 30}, Billed(30)),
        (
            {
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
            },
            Billed(30, 10),
        ),
        ({"cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_1h_input_tokens": -4}}, Billed(30)),
        ({"cache_creation_input_tokens": 30, "cache_creation": "all"}, Billed(30)),
        (
            {
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_1h_input_tokens": 0},
                "iterations": [
                    {"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_1h_input_tokens": 10}},
                    {"cache_creation_input_tokens": 20, "cache_creation": {"ephemeral_1h_input_tokens": 5}},
                    {"cache_creation": {"ephemeral_1h_input_tokens": "all"}},
                ],
            },
            Billed(30, 15),
        ),
        ({"cache_creation_input_tokens": 30, "iterations": [{"input_tokens": 1}]}, Billed(30)),
    ],
)
def test_an_anthropic_answer_says_what_it_kept_and_for_how_long(said: dict[str, Any], billed: Billed | None) -> None:
    answer = {
        "type": "message",
        "id": "1",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 5, "output_tokens": 2} | said,
    }
    written = said.get("cache_creation_input_tokens", 0)
    assert usage_of(Anthropic(), "chat", CLAUDE, answer) == Usage(5 + written, 2, billed=billed)


@pytest.mark.parametrize(
    ("asked", "said", "tier", "microdollars"),
    [
        # gemini-2.5-flash: 700 at $0.30, 300 of the cache at $0.03, 100 at $2.50 for a million.
        ({}, {}, "", 469),
        ({}, {"trafficType": "ON_DEMAND"}, "standard", 469),
        ({"serviceTier": "priority"}, {}, "", 845),
        ({"serviceTier": "priority"}, {"trafficType": "ON_DEMAND"}, "standard", 469),
        ({}, {"trafficType": "ON_DEMAND_PRIORITY"}, "priority", 845),
        ({"serviceTier": "priority"}, {"serviceTier": "STANDARD"}, "standard", 469),
        ({"serviceTier": "priority"}, {"trafficType": "PROVISIONED_THROUGHPUT"}, "", 845),
        ({"serviceTier": "priority"}, {"serviceTier": ["x"], "trafficType": 7}, "", 845),
    ],
)
def test_a_gemini_call_is_charged_at_the_tier_that_served_it(
    asked: dict[str, Any], said: dict[str, Any], tier: str, microdollars: int
) -> None:
    dialect = Gemini()
    body = json.dumps({"contents": [{"parts": [{"text": "Is it foggy?"}]}]} | asked).encode()
    ask = dialect.read("chat", body, "/v1beta/models/gemini-2.5-flash:generateContent")
    meter = dialect.meter(ask)
    counts = {
        "promptTokenCount": 1_000, "cachedContentTokenCount": 300, "candidatesTokenCount": 60, "thoughtsTokenCount": 40,
        "totalTokenCount": 1_100,
    }  # fmt: skip
    meter.read_message(json.dumps({"candidates": [], "usageMetadata": counts | said}).encode())
    assert meter.usage == Usage(1_000, 100, 300, 40, billed=Billed(tier=tier) if tier else None)
    price = table().find(ask.model)
    assert price is not None
    assert quoted(price, ask, body).charge(meter.usage) == microdollars
