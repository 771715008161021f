"""What a rule of the policy sets for Idempotency."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration, Size


class IdempotencySettings(Settings):
    """How a call that is made again gets the first one's answer (numbers: guarantees, part 5).

    A call is known again by its `Idempotency-Key`, by an A2A `messageId`, by a key in `_meta`, or, where a client's
    retry shows itself, by what it says.
    """

    required: bool = False
    """Refuse calls that may change something and have no key."""
    in_flight: Literal["join", "refuse"] = "join"
    """What a duplicate gets while the first is under way: the first one's answer when it is there, or a 409."""
    derived: bool = True
    """Know a call again without a key where it says that it is a retry (`x-stainless-retry-count`) or names a
    `tool_call_id`."""
    keep: Duration = Field(default=86_400.0, gt=0, le=30 * 86_400)
    """How long an answer is kept."""
    reply: Size = Field(default=8 * 2**20, ge=1024, le=256 * 2**20)
    """Bytes of an answer that are kept. Of a longer one it is known that it was given, and a duplicate is told so."""
    on_store_error: Literal["refuse", "pass"] = "refuse"
    """What holds while no claim can be written."""
