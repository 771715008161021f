"""What an agent copies from the request it received to the requests that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DELEGATE = "x-meshd-delegate"
TOKENS_MAX = 10**15 - 1
CARRIED = frozenset({"x-meshd-context", "traceparent", "tracestate", "baggage"})
"""Header fields that tie an agent's own requests to the workflow of the request it is answering."""


def carried(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the header fields to send on, names in lower case, from those of the request being answered.

    Takes what web frameworks offer: a mapping, or pairs of texts. Of a field that came twice nothing is returned:
    neither value can be trusted to be the right one.
    """
    pairs = headers.items() if hasattr(headers, "items") else headers
    found: dict[str, str] = {}
    doubled: set[str] = set()
    for name, value in pairs:
        lower = name.lower()
        if lower in CARRIED:
            if lower in found:
                doubled.add(lower)
            found[lower] = value
    return {name: value for name, value in found.items() if name not in doubled}


def delegating(tokens: int) -> dict[str, str]:
    """Return the header field that gives the agent which is called at most `tokens` of the caller's own.

    What it has not spent when the call has ended flows back. Raises ValueError for what is no number of tokens.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= TOKENS_MAX:
        raise ValueError(f"a number of tokens from 1 to {TOKENS_MAX}, not {tokens!r}")
    return {DELEGATE: str(tokens)}
