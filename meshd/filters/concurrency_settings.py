"""What a rule of the policy sets for how many attempts may be under way at once."""

from __future__ import annotations

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration


class ConcurrencySettings(Settings):
    """How many attempts are under way at once for an upstream, model and credential (numbers: guarantees, part 4).

    The limit falls when the upstream says that it is overloaded (429, 529), and grows again with what succeeds.
    """

    max: int = Field(default=1024, ge=1, le=100_000)
    """Most at once, however well it goes."""
    min: int = Field(default=1, ge=1, le=100_000)
    """Fewest at once, however often the upstream says 429."""
    adaptive: bool = True
    """False keeps the limit at `max`."""
    queue: int = Field(default=256, ge=0, le=100_000)
    """Attempts that may wait for their turn. More are refused at once."""
    queue_s: Duration = Field(default=10.0, alias="wait", ge=0, le=3600)
    """Longest that one waits. One that could not be done within its deadline is refused at once."""
