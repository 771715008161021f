"""What is known about models by their names: context windows, families, tokenizers.

A window is used only where the body does not show the input (a file by id, an earlier answer): the model cannot have
read more than that. Windows as their makers publish them, gathered in November 2026: those of Claude 4.6 and later from
Anthropic's own pages, the others as catalogues restate their makers' (models.dev of July 2026; for GPT-5.6 and later
the pages of gateways that sell them). Where variants of one name differ, the largest counts: a window that is too large
reserves too much, one that is too small is no bound. The longest prefix wins. A name that is not known gets the largest
window that is sold.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeVar

from meshd.tokens.encodings import encoding_of, is_open

T = TypeVar("T")

WINDOW_UNKNOWN: Final = 10_485_760
"""Llama 4 Scout's, the largest that is published."""

WINDOWS: Final[dict[str, int]] = {
    # OpenAI
    "gpt-3.5-turbo": 16_385,
    "gpt-35-turbo": 16_385,
    "gpt-4-32k": 32_768,
    "gpt-4": 128_000,  # 8,192 at first, 128,000 in its turbo and preview forms
    "gpt-4o": 128_000,
    "chatgpt-4o": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-4.5": 128_000,
    "gpt-5": 400_000,  # 128,000 in its chat forms
    "gpt-5.1": 400_000,
    "gpt-5.2": 400_000,
    "gpt-5.3": 400_000,
    "gpt-5.4": 1_050_000,
    "gpt-5.4-mini": 400_000,
    "gpt-5.4-nano": 400_000,
    "gpt-5.5": 1_050_000,
    "gpt-5.6": 1_050_000,
    "gpt-6": 1_050_000,
    "gpt-6.1": 1_050_000,
    "gpt-oss": 131_072,
    "o1": 200_000,
    "o3": 200_000,
    "o4-mini": 200_000,
    "text-embedding-3": 8_192,
    "text-embedding-ada-002": 8_192,
    # Anthropic. Sonnet 4 and 4.5 have a million by a header (context-1m) that a body does not show.
    "claude-2": 200_000,
    "claude-3": 200_000,
    "claude-haiku-4": 200_000,
    "claude-haiku-5": 1_000_000,
    "claude-sonnet-4": 1_000_000,
    "claude-sonnet-5": 1_000_000,
    "claude-opus-4": 1_000_000,
    "claude-opus-4-0": 200_000,
    "claude-opus-4-1": 200_000,
    "claude-opus-4-5": 200_000,
    "claude-opus-4-20250514": 200_000,
    "claude-opus-5": 1_000_000,
    "claude-fable-5": 1_000_000,
    "claude-mythos-5": 1_000_000,
    # Google
    "gemini-1.5-flash": 1_048_576,
    "gemini-1.5-pro": 2_097_152,
    "gemini-2.0-flash": 1_048_576,
    "gemini-2.5": 1_048_576,
    "gemini-2.5-flash-image": 32_768,
    "gemini-3": 1_048_576,
    "gemini-3-pro-image": 65_536,
    "gemini-3.1": 1_048_576,
    "gemini-3.1-flash-image": 65_536,
    "gemini-3.5": 1_048_576,
    "gemini-3.7": 1_048_576,
    "gemini-3.8": 1_048_576,
    "gemini-4": 1_048_576,
    "gemini-embedding-001": 2_048,
    "gemma-3": 131_072,
    "gemma3": 131_072,
    "gemma-4": 262_144,
    "gemma4": 262_144,
    # Meta; Ollama writes the version without a hyphen.
    "llama-3.1": 131_072,
    "llama3.1": 131_072,
    "llama-3.2": 131_072,
    "llama3.2": 131_072,
    "llama-3.3": 131_072,
    "llama3.3": 131_072,
    "llama-3": 8_192,
    "llama3": 8_192,
    "llama-4-maverick": 1_048_576,
    "llama-4-scout": 10_485_760,
    "llama4": 10_485_760,
    # Mistral
    "codestral": 262_144,
    "devstral": 262_144,
    "magistral": 131_072,
    "ministral": 262_144,
    "mistral-large": 262_144,
    "mistral-medium": 262_144,
    "mistral-nemo": 131_072,
    "mistral-small": 262_144,
    "open-mistral-nemo": 131_072,
    "pixtral": 131_072,
    # DeepSeek
    "deepseek-chat": 1_000_000,
    "deepseek-reasoner": 1_000_000,
    "deepseek-r1": 163_840,
    "deepseek-v3": 163_840,
    "deepseek-v4": 1_000_000,
    # Alibaba
    "qwen-flash": 1_000_000,
    "qwen-max": 32_768,
    "qwen-plus": 1_000_000,
    "qwen-turbo": 1_000_000,
    "qwen-vl": 131_072,
    "qwen2.5": 131_072,
    "qwen3": 262_144,
    "qwen3-coder": 1_048_576,
    "qwen3.5": 1_000_000,
    "qwen3.6": 1_000_000,
    "qwen3.7": 1_000_000,
    "qwq": 131_072,
    # xAI
    "grok-3": 131_072,
    "grok-4": 256_000,
    "grok-4-fast": 2_000_000,
    "grok-4-1-fast": 2_000_000,
}

FAMILIES: Final = ("openai", "anthropic", "gemini", "llama", "mistral", "deepseek", "qwen", "other")
"""Values of a label, so there are no more of them than these."""

_FAMILY: Final = (
    ("gpt-", 0), ("chatgpt-", 0), ("o1", 0), ("o3", 0), ("o4", 0), ("text-embedding-", 0), ("claude-", 1),
    ("gemini-", 2), ("gemma", 2), ("llama", 3), ("codellama", 3), ("mistral", 4), ("ministral", 4), ("codestral", 4),
    ("devstral", 4), ("magistral", 4), ("pixtral", 4), ("open-mi", 4), ("deepseek-", 5), ("qwen", 6), ("qwq", 6),
)  # fmt: skip


@lru_cache(maxsize=512)
def plain_name(model: str) -> str:
    """Return a model's name without what gateways and clouds put before it, in lower case.

    As in `openai/gpt-4o`, `ft:gpt-4o:org::id`, `models/gemini-2.5-pro`, `us.anthropic.claude-opus-4-6-v1`.
    """
    name = model.removeprefix("ft:").rpartition("/")[2].lower()
    _, found, behind = name.rpartition("anthropic.")
    return behind if found else name


def by_prefix(table: dict[str, T], name: str) -> T | None:
    """Return what a table says of the longest prefix of a name that it has, None where it has none.

    A prefix ends at a border of the name: `gpt-4` says nothing about `gpt-45` or `gpt-4.1`.
    """
    for end in range(len(name), 0, -1):
        known = table.get(name[:end])
        if known is not None and (end == len(name) or not name[end].isalnum()) and name[end : end + 1] != ".":
            return known
    return None


@lru_cache(maxsize=512)
def window(model: str) -> int:
    """Return a model's context window in tokens, by the longest known prefix; WINDOW_UNKNOWN where there is none."""
    return by_prefix(WINDOWS, plain_name(model)) or WINDOW_UNKNOWN


@lru_cache(maxsize=512)
def family(model: str) -> str:
    """Return which of FAMILIES a model is of, by its name."""
    name = plain_name(model)
    for prefix, index in _FAMILY:
        if name.startswith(prefix):
            return FAMILIES[index]
    return "other"


@lru_cache(maxsize=512)
def is_openai(model: str) -> bool:
    """Say whether a model is one of OpenAI's own, served by OpenAI's rules."""
    return family(model) == "openai" and not is_open(model)


@lru_cache(maxsize=512)
def is_byte_level(model: str) -> bool:
    """Say whether a model's tokenizer is published, does not normalise its input (each token covers at least a byte),
    and nobody's chat template adds to it."""
    return bool(encoding_of(model)) and not is_open(model)
