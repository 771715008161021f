"""What a rule of the policy sets for Budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.purse import FLOOR, OUTPUT_DEFAULT, QUEUE_S
from meshd.filters.units import Count, Duration


class BudgetSettings(Settings):
    """What a rule sets: how many tokens, for whom, and what happens at the end of them."""

    tokens: Count = Field(..., ge=0)
    """Tokens, input and output together, that the account may spend in all."""
    per: Literal["workflow", "agent"] = "workflow"
    """Whose tokens are counted together."""
    account: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """A name makes this budget an account of its own, apart from others of the same workflow or agent. Budgets
    without one count the same tokens, each against its own limit."""
    mode: Literal["fast", "durable"] = "fast"
    """`fast`: a killed process loses nothing, a crashed host the rest of the lease. `durable`: synced first."""
    output_default: Count = Field(OUTPUT_DEFAULT, ge=1)
    """Output cap in tokens for a request that sets none."""
    floor: Count = Field(FLOOR, ge=1)
    """Fewest output tokens worth clamping to; below that the call is refused."""
    on_exhausted: Literal["cut", "error"] = "cut"
    """How a stream that runs past its cap ends: as if the cap had been reached, or with an error event."""
    queue_s: Duration = Field(QUEUE_S, alias="queue", ge=0, le=60)
    """Most seconds to wait while only calls in flight stand in the way."""
    on_store_error: Literal["refuse", "pass"] = "refuse"
    """What to do while the books cannot be kept. `pass` lets calls through unaccounted."""
