"""Ids of tool calls, which each provider takes in a form of its own.

An id goes back and forth: the caller sends it again with the tool's result, to the provider that made it or to another.
One that fits both is kept. Another is replaced by a digest of itself, so that a call and its result are given the same
one wherever they stand, and nothing need be remembered.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

# Anthropic: ^[a-zA-Z0-9_-]+$ for `tool_use.id`; OpenAI: 40 characters at most. What fits both fits everywhere.
_FITTING: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_CALLS_MAX: Final = 1_024


def fitted(given: str, prefix: str) -> str:
    """Return an id as every provider takes it: itself, or `prefix` and a digest of it."""
    if _FITTING.fullmatch(given):
        return given
    return prefix + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class Ids:
    """The ids of the calls in one answer: none missing, none twice."""

    __slots__ = ("_prefix", "_seen")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._seen: set[str] = set()

    def next(self, given: object, answer: str) -> str:
        """Return the id of the next call. `answer` is the id of the answer, for a call that has none of its own."""
        made = fitted(given, self._prefix) if type(given) is str and given else ""
        if not made or made in self._seen:
            made = fitted(f"{answer}:{given}:{len(self._seen)}", self._prefix)
        self._seen.add(made)
        return made

    @property
    def is_full(self) -> bool:
        """Whether there are more calls than any answer has: nonsense must not make its translation grow."""
        return len(self._seen) >= _CALLS_MAX
