"""What a rule of the policy sets for Delegation."""

from __future__ import annotations

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.purse import DELEGATED_FLOOR, QUEUE_S
from meshd.filters.units import Count, Duration


class DelegateSettings(Settings):
    """How many of its caller's tokens an agent is given for one call."""

    tokens: Count = Field(..., ge=1)
    """Most tokens that the called agent, and whoever it calls, may spend of the workflow's budget. A smaller number
    in the caller's `x-meshd-delegate` holds in its place; what is left flows back when the call has ended."""
    floor: Count = Field(DELEGATED_FLOOR, ge=1)
    """Fewest tokens worth giving: with less left, the call is refused."""
    queue_s: Duration = Field(QUEUE_S, alias="queue", ge=0, le=60)
    """Most seconds to wait while only calls in flight stand in the way."""
