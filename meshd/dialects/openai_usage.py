"""What the APIs of OpenAI report of tokens, under either of their names for them, as Usage."""

from __future__ import annotations

from typing import Any, Final

from meshd.call import Usage
from meshd.dialects.counting import COUNT_MAX, count
from meshd.prices.billed import Billed

TIER_CHARACTERS_MAX: Final = 32


def usage_of(
    given: Any, made: Any, total: Any, given_details: Any, made_details: Any, has_output: bool
) -> Usage | None:
    """Return a report as Usage, None where it is missing or absurd. `given` and `made` are input and output.

    Output is what the total leaves beside the input where that is more: some servers count reasoning there only.
    """
    # What nearly every server says needs no second look: two counts and their sum.
    is_usual = type(given) is type(made) is int and given >= 0 <= made and given + made == total
    if not is_usual or given + made > COUNT_MAX:
        given, made, total = count(given), count(made), count(total)
        if given is None:
            return None
        rest = max(total - given, 0) if total is not None else None
        if made is None:
            if rest is None and has_output:
                return None
            made = rest or 0
        elif rest is not None:
            made = max(made, rest)
    if given + made == 0:
        return None
    cached = written = reasoning = 0
    if type(given_details) is dict:
        cached = min(count(given_details.get("cached_tokens")) or 0, given)
        written = min(count(given_details.get("cache_write_tokens")) or 0, given)
    if type(made_details) is dict:
        reasoning = min(count(made_details.get("reasoning_tokens")) or 0, made)
    return Usage(given, made, cached, reasoning, billed=Billed(written) if written else None)


def usage_in(said: Any, *, has_output: bool) -> Usage | None:
    """Return the Usage of a decoded `usage` member with `input_tokens` and `output_tokens`; None where it is none."""
    if type(said) is not dict:
        return None
    return usage_of(
        said.get("input_tokens"),
        said.get("output_tokens"),
        said.get("total_tokens"),
        said.get("input_tokens_details"),
        said.get("output_tokens_details"),
        has_output,
    )


def served(usage: Usage, tier: Any) -> Usage:
    """Note the tier of service that an answer names, on which its price depends; what is no text names none."""
    if type(tier) is str and tier:
        written = 0 if usage.billed is None else usage.billed.cache_write_tokens
        usage.billed = Billed(written, -1, tier[:TIER_CHARACTERS_MAX])
    return usage
