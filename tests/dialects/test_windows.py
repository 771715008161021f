"""What names say about models: windows, families, tokenizers."""

from __future__ import annotations

import pytest

from meshd.dialects.windows import (
    FAMILIES,
    WINDOW_UNKNOWN,
    WINDOWS,
    family,
    is_byte_level,
    is_openai,
    plain_name,
    window,
)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o-mini-2024-07-18", 128_000),
        ("openai/gpt-4.1", 1_047_576),
        ("ft:gpt-4o:org::id", 128_000),
        ("gpt-4", 128_000),
        ("gpt-4-32k-0613", 32_768),
        ("gpt-5-chat-latest", 400_000),
        ("gpt-5.4-mini-2026-03-17", 400_000),
        ("gpt-5.4-pro", 1_050_000),
        ("gpt-6-sol", 1_050_000),
        ("gpt-oss:20b", 131_072),
        ("claude-3-7-sonnet-latest", 200_000),
        ("claude-opus-4-5-20251101", 200_000),
        ("claude-opus-4-6", 1_000_000),
        ("claude-opus-4-20250514", 200_000),
        ("claude-sonnet-4-20250514", 1_000_000),
        ("claude-haiku-4-5", 200_000),
        ("claude-haiku-5-5", 1_000_000),
        ("us.anthropic.claude-opus-4-1-20250805-v1:0", 200_000),
        ("models/gemini-2.5-pro", 1_048_576),
        ("gemini-2.5-flash-image-preview", 32_768),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 10_485_760),
        ("llama3.1:8b", 131_072),
        ("mistral-large-latest", 262_144),
        ("deepseek-chat", 1_000_000),
        ("qwen3-coder-plus", 1_048_576),
        ("qwen-max-latest", 32_768),
    ],
)
def test_published_windows(model: str, tokens: int) -> None:
    assert window(model) == tokens


@pytest.mark.parametrize(
    "model", ["", "gpt-45", "gpt-4.2", "gpt-5.9", "claude", "my-finetune", "llama-5", "x" * 9000, "\ud800"]
)
def test_what_is_not_known_has_the_largest_window_that_is_sold(model: str) -> None:
    assert window(model) == WINDOW_UNKNOWN == max(WINDOWS.values())


@pytest.mark.parametrize(
    ("model", "of"),
    [
        ("gpt-4o", "openai"), ("o4-mini", "openai"), ("text-embedding-3-small", "openai"), ("gpt-oss-20b", "openai"),
        ("anthropic/claude-opus-5", "anthropic"), ("gemini-3-pro", "gemini"), ("meta-llama/Llama-3.3-70B", "llama"),
        ("ministral-8b", "mistral"), ("deepseek-r1:8b", "deepseek"), ("qwen3:4b", "qwen"), ("", "other"),
        ("m", "other"),
    ],
)  # fmt: skip
def test_families_are_a_closed_set(model: str, of: str) -> None:
    assert family(model) == of
    assert of in FAMILIES


def test_every_name_of_the_table_is_one_that_is_looked_up() -> None:
    assert [name for name in WINDOWS if plain_name(name) != name] == []


def test_only_published_tokenizers_are_bounded_by_bytes_alone() -> None:
    assert is_byte_level("gpt-4o")
    assert is_byte_level("text-embedding-ada-002")
    # Its tokenizer is known, what servers say before the first message is not.
    assert not is_byte_level("gpt-oss:20b")
    assert not is_byte_level("gpt-6-sol")
    assert is_openai("gpt-6-sol")
    assert not is_openai("gpt-oss:20b")
