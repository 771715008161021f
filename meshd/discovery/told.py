"""What the policy says of an upstream for the catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Told(NamedTuple):
    """Of one upstream; all of it may be left out."""

    description: str = ""
    version: str = ""
    """Semantic version."""
    intents: tuple[str, ...] = ()
    """What it can be asked for, in a few words each."""
    tools: tuple[tuple[str, str], ...] = ()
    """Name and description of each."""
    models: tuple[str, ...] = ()
    openapi: str = ""
    """Where its document is: a path of its own, `file:` and a path, or an address."""
    is_reflected: bool = False
    """It is a gRPC server that reflects its services."""
    is_asked: bool | None = None
    """Whether it is asked what it offers; None for what its dialect says."""
