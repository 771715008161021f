"""What a rule of the policy sets for Breaker."""

from __future__ import annotations

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration


class BreakerSettings(Settings):
    """When a breaker opens, and how it closes again (numbers: guarantees, part 4)."""

    consecutive: int = Field(default=5, ge=1, le=1000)
    """Failures in a row that open it."""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of failed attempts within the window that opens it."""
    volume: int = Field(default=20, ge=1, le=100_000)
    """Attempts within the window below which the ratio says nothing."""
    window_s: Duration = Field(default=30.0, alias="window", gt=0, le=3600)
    """Seconds that the ratio looks back."""
    open_s: Duration = Field(default=15.0, alias="open", gt=0, le=3600)
    """Seconds that it stays open the first time; doubled each time that a probe fails."""
    open_max_s: Duration = Field(default=300.0, alias="open_max", gt=0, le=86_400)
    """Most seconds that it stays open."""
    probes: int = Field(default=3, ge=1, le=100)
    """Successes after the first probe's that close it."""
