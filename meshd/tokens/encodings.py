"""Which models can be counted exactly, and with which vocabulary.

The map is tiktoken's own (`tiktoken/model.py`, August 2026), for the vocabularies that ship here. A model that it does
not know has no published tokenizer: Claude, Gemini and the GPT-6 family have none; Llama, Mistral, DeepSeek and Qwen
publish theirs, in formats that are not these, so for them the bytes stand.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

CL100K: Final = "cl100k_base"
O200K: Final = "o200k_base"

BYTES: Final = "bytes"
KEPT: Final = "kept"
COUNT: Final = "count"
WINDOW: Final = "window"
RAISED_BYTES: Final = "raised bytes"
RAISED_WINDOW: Final = "raised window"
"""What a bound of the input was made of (`Ask.bound_by`): the body's length, the same after a count that did not lower
it, an exact count, the model's context window where the body does not show its input; and two of these made larger
for a model that passed its bound before."""

_EXACT: Final = {
    "o1": O200K, "o3": O200K, "o4-mini": O200K, "gpt-5": O200K, "gpt-4.1": O200K, "gpt-4o": O200K,
    "gpt-4": CL100K, "gpt-3.5": CL100K, "gpt-3.5-turbo": CL100K, "gpt-35-turbo": CL100K,
    "davinci-002": CL100K, "babbage-002": CL100K, "text-embedding-ada-002": CL100K,
    "text-embedding-3-small": CL100K, "text-embedding-3-large": CL100K,
}  # fmt: skip
_PREFIXES: Final = (
    ("o1-", O200K), ("o3-", O200K), ("o4-mini-", O200K), ("gpt-5-", O200K), ("gpt-5.", O200K), ("gpt-4.5-", O200K),
    ("gpt-4.1-", O200K), ("chatgpt-4o-", O200K), ("gpt-4o-", O200K), ("gpt-4-", CL100K), ("gpt-3.5-turbo-", CL100K),
    ("gpt-35-turbo-", CL100K), ("gpt-oss", O200K),
)  # fmt: skip
"""In order: the first that fits. The open models' o200k_harmony differs from o200k_base in special tokens only."""


@lru_cache(maxsize=512)
def encoding_of(model: str) -> str:
    """Return the name of a model's encoding, empty where its tokens cannot be counted here.

    A gateway's `openai/` before the name is passed over, and so is `ft:` with what a fine-tuned model's name ends in.
    """
    name = model.removeprefix("openai/")
    if name.startswith("ft:"):
        name = name.removeprefix("ft:").partition(":")[0]
    # Ollama names a size behind a colon.
    name = name.partition(":")[0]
    exact = _EXACT.get(name)
    if exact is not None:
        return exact
    for prefix, encoding in _PREFIXES:
        if name.startswith(prefix):
            return encoding
    return ""


def is_open(model: str) -> bool:
    """Say whether a model that can be counted is served by others than its maker, who add a template of their own."""
    return model.removeprefix("openai/").startswith("gpt-oss")
