"""What a rule of the policy sets for retries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration

RetryOn = Literal["connect", "reset", "timeout", "5xx", "backpressure"]


class RetrySettings(Settings):
    """Which failed attempts are made again (numbers: guarantees, part 4)."""

    attempts: int = Field(default=2, ge=0, le=10)
    """Attempts beyond the first."""
    budget: float = Field(default=0.2, ge=0, le=1)
    """Retries for each recent call to the same upstream: what an outage adds to the traffic."""
    backoff_s: Duration = Field(default=0.25, alias="backoff", ge=0, le=60)
    """Upper end of the first pause in seconds, doubled each time; the pause is random from zero to there."""
    backoff_max_s: Duration = Field(default=5.0, alias="backoff_max", ge=0, le=300)
    """Most seconds that the upper end grows to."""
    on: tuple[RetryOn, ...] | None = None
    """What is tried again. Unset: for an LLM all but a timeout, for other kinds a failed connect, and for
    idempotent methods also a reset and a 5xx."""
