"""What is known about models by their names: context windows and families.

A window is used only where the body does not show the input (an image by URL, a file by id): the model cannot have
read more than that. Windows as the providers published them, gathered 2026-11; the longest prefix wins. A name that
is not known gets the largest window that is sold, so that the bound stays a bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

WINDOW_UNKNOWN: Final = 1_048_576

WINDOWS: Final[dict[str, int]] = {
    "gpt-3.5-turbo": 16_385,
    "gpt-4-32k": 32_768,
    "gpt-4": 128_000,  # 8,192 at first, 128,000 in its turbo and preview forms
    "gpt-4o": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-5-chat": 128_000,
    "o1": 200_000,
    "o3": 200_000,
    "o4-mini": 200_000,
    "chatgpt-4o": 128_000,
    "text-embedding-3": 8_192,
    "text-embedding-ada-002": 8_192,
    # Claude models that offer a million tokens do so by a header that a body does not show.
    "claude-2": 200_000,
    "claude-3": 200_000,
}

# Published to use byte-level BPE (cl100k_base, o200k_base): no normalising, every token covers at least one byte.
_BYTE_LEVEL: Final = (
    "gpt-",
    "o1",
    "o3",
    "o4",
    "chatgpt-",
    "text-embedding-3",
    "text-embedding-ada",
    "ft:gpt-",
    "openai/gpt-",
)


@lru_cache(maxsize=512)
def window(model: str) -> int:
    """Return a model's context window in tokens, by the longest known prefix; WINDOW_UNKNOWN where there is none."""
    name = model.removeprefix("ft:").removeprefix("openai/").removeprefix("anthropic/")
    for end in range(len(name), 0, -1):
        known = WINDOWS.get(name[:end])
        # A prefix ends at a border of the name: `gpt-4` says nothing about `gpt-45`.
        if known is not None and (end == len(name) or not name[end].isalnum()) and name[end : end + 1] != ".":
            return known
    return WINDOW_UNKNOWN


@lru_cache(maxsize=512)
def is_byte_level(model: str) -> bool:
    """Say whether a model is one of OpenAI's own, whose tokenizers do not normalise their input."""
    return model.startswith(_BYTE_LEVEL)
