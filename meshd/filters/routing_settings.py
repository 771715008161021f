"""What a rule of the policy sets for Routing."""

from __future__ import annotations

from pydantic import Field

from meshd.filters.contract import Settings


class RouteSettings(Settings):
    """Where a call goes in place of what it names."""

    upstream: str | None = Field(default=None, min_length=1, max_length=64)
    """Name of an upstream of the same kind and dialect."""
    model: str | None = Field(default=None, min_length=1, max_length=256)
    """Model that is asked for in place of the one in the request."""
