"""What models take of a request that is translated for them, by their names.

Claude after platform.claude.com of November 2026: from 4.7 on every request with a sampling parameter that is not at
its default is refused, structured outputs came with 4.5, effort with 4.6, and a `max_tokens` must always be said.
OpenAI's reasoning models take neither temperature nor top_p.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from meshd.dialects.windows import is_openai, plain_name

# claude-opus-4-7, claude-3-5-haiku-20241022, claude-sonnet-4-20250514 and claude-fable-5.1: a date is no version.
_CLAUDE: Final = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?![\d.])")
_GPT: Final = re.compile(r"gpt-(\d{1,3})(?!\d)")
_UNKNOWN: Final = (0, 0)

# A model that thinks counts that against the cap. 4,096 is what every Claude 3 allows, and a name that is not known may
# be one; every later one allows 32,000 or more.
_CAP_DEFAULT: Final = 16_384
_CAP_DEFAULT_UNKNOWN: Final = 4_096


@lru_cache(maxsize=512)
def claude_version(model: str) -> tuple[int, int]:
    """Return the version that a Claude's name says, (0, 0) where it says none."""
    found = _CLAUDE.match(plain_name(model))
    if found is None:
        return _UNKNOWN
    return int(found[1]), int(found[2] or 0)


def takes_sampling(model: str) -> bool:
    """Say whether a model of Anthropic's takes temperature, top_p and top_k. One that is not known does not: to leave
    them out is never refused."""
    return _UNKNOWN < claude_version(model) < (4, 7)


def takes_schemas(model: str) -> bool:
    """Say whether a model of Anthropic's can be held to a schema. One that is not known is asked."""
    version = claude_version(model)
    return version == _UNKNOWN or version >= (4, 5)


def takes_effort(model: str) -> bool:
    """Say whether a model of Anthropic's can be told how much effort to make."""
    return claude_version(model) >= (4, 6)


def cap_default(model: str) -> int:
    """Return the output cap that is asked for where nobody has set one, in tokens."""
    return _CAP_DEFAULT if claude_version(model) >= (4, 0) else _CAP_DEFAULT_UNKNOWN


@lru_cache(maxsize=512)
def is_reasoning(model: str) -> bool:
    """Say whether a model is one of OpenAI's that reason, which take no sampling parameters."""
    if not is_openai(model):
        return False
    name = plain_name(model)
    found = _GPT.match(name)
    if found is not None:
        return int(found[1]) >= 5 and "-chat" not in name
    return name.startswith(("o1", "o3", "o4"))
