"""One image is bounded by its model's published rule, whatever its bytes are, and no window is reserved for it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects.anthropic import Anthropic
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.openai import OpenAI
from meshd.dialects.windows import window

OPENAI, ANTHROPIC = OpenAI(), Anthropic()
PICTURE = base64.b64encode(bytes(range(256)) * 400).decode()


def image(url: str = f"data:image/png;base64,{PICTURE}", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | more}


def ask_openai(model: str, *parts: dict[str, Any], **members: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": list(parts)}]} | members
    return OPENAI.read("chat", json.dumps(body).encode())


# Published: tokens of the largest image, before our margin.
@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o", 85 + 8 * 170),
        ("gpt-4.1-2025-04-14", 85 + 8 * 170),
        ("gpt-4o-mini", 2_833 + 8 * 5_667),
        ("gpt-5", 70 + 8 * 140),
        ("o3", 75 + 8 * 150),
        ("o4-mini", 10_568),
        ("gpt-4.1-nano", 15_115),
        ("gpt-5.4", 12_000),
        ("gpt-5.6-sol", 36_000),
        ("claude-3-5-sonnet-latest", 1_568),
        ("claude-sonnet-4-5", 1_568),
        ("claude-opus-4-6", 1_568),
        ("claude-opus-4-7", 4_784),
        ("claude-opus-5-5", 4_784),
        ("gemini-3-pro-preview", 2_240),
    ],
)
def test_the_most_that_an_image_costs(model: str, tokens: int) -> None:
    found = image_tokens_max(model)
    assert found is not None
    assert tokens * 1.09 <= found <= tokens * 1.11 + 100


@pytest.mark.parametrize(
    "model", ["", "gpt-4", "gpt-5.1", "gpt-5-pro", "o3-mini", "llama3.2-vision", "gemini-2.5-pro", "claude-6"]
)
def test_no_rule_is_made_up(model: str) -> None:
    assert image_tokens_max(model) is None


def test_low_detail_costs_less() -> None:
    assert image_tokens_max("gpt-4o", is_low=True) == 85 + 8 + 64
    low, high = ask_openai("gpt-4o", image(detail="low")), ask_openai("gpt-4o", image(detail="high"))
    assert high.input_bound - low.input_bound == 1_360 * 11 // 10 + 1
    # What is said otherwise is not believed.
    assert ask_openai("gpt-4o", image(detail="lowest")).input_bound > high.input_bound


@pytest.mark.parametrize("url", [f"data:image/png;base64,{PICTURE}", "https://example.org/a.png"])
def test_a_small_budget_is_enough_for_an_image(url: str) -> None:
    ask = ask_openai("gpt-4o", {"type": "text", "text": "What is this?"}, image(url))
    assert ask.input_bound < 2_000
    assert ask.bound_by == "bytes"


def test_images_add_up_and_never_pass_the_window() -> None:
    one, two = (ask_openai("gpt-4o", *[image()] * count).input_bound for count in (1, 2))
    most = image_tokens_max("gpt-4o")
    assert most is not None
    assert two - one - most < 100
    assert ask_openai("gpt-4o-mini", *[image()] * 100).input_bound == window("gpt-4o-mini")
    assert ask_openai("gpt-4o", image(), image(), tools=[{"type": "web_search"}]).input_bound == 10 * 128_000


def test_text_beside_an_image_is_still_bounded() -> None:
    text = {"type": "text", "text": "word " * 1_000}
    assert ask_openai("gpt-4o", text, image()).input_bound > 5_000
    # So is what hides in the image's own part.
    assert ask_openai("gpt-4o", image() | {"caption": "word " * 1_000}).input_bound > 5_000
    assert ask_openai("gpt-4o", image(name="word " * 1_000)).input_bound > 5_000


def test_an_image_in_front_of_a_model_without_a_rule_is_bounded_by_the_window() -> None:
    assert ask_openai("gpt-4", image()).input_bound == window("gpt-4")
    assert ask_openai("gpt-4", image()).bound_by == "window"


def test_images_for_claude() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    body = {"model": "claude-opus-5-5", "max_tokens": 5, "messages": [{"role": "user", "content": []}]}
    content = body["messages"][0]["content"]  # type: ignore[index]
    for block in (
        {"type": "image", "source": source},
        {"type": "tool_result", "content": [{"type": "image", "source": source}]},
    ):
        content.append(block)
    ask = ANTHROPIC.read("chat", json.dumps(body).encode())
    assert 2 * 4_784 < ask.input_bound < 2 * 5_800
    content += content[:1] * 500
    ask = ANTHROPIC.read("chat", json.dumps(body).encode())
    assert ask.input_bound == 1_000_000


@pytest.mark.parametrize(
    ("raw", "size"),
    [(b'"AAAA"', 6), (b'"data:image\\/png;base64,AA"', 27), (b'"\\u0041"', 0), ('"\ufdfa"'.encode(), 0)],
)
def test_only_what_can_be_nothing_else_is_taken_off(raw: bytes, size: int) -> None:
    assert data_bytes(raw) == size


@given(text=st.text(max_size=200), url=st.text(max_size=50) | st.just(f"data:image/png;base64,{PICTURE}"))
def test_the_bound_covers_the_text_and_the_image_whatever_stands_for_it(text: str, url: str) -> None:
    spelled = json.dumps(text)
    body = json.dumps({"model": "gpt-4o", "messages": [{"content": [{"type": "text", "text": text}, image(url)]}]})
    ask = OPENAI.read("chat", body.encode("utf-8", "replace"))
    most = image_tokens_max("gpt-4o")
    assert most is not None
    assert ask.input_bound >= len(spelled) + most
