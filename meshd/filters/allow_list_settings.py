"""What a rule of the policy sets for AllowList."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from meshd.filters.contract import Settings


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Globs = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(max_length=10_000)]
"""Patterns with `*` (any run) and `?` (one character), case-sensitive; one text or a list."""


class AllowSettings(Settings):
    """What is allowed. Unset: anything; an empty list: nothing."""

    denied: str | None = Field(default=None, max_length=500)
    """Refuse every call, with this message."""
    models: Globs | None = None
    """Models that an LLM may be asked for."""
    tools: Globs | None = None
    """Tools that may be offered to a model, called by its answer, called at an upstream of `dialect: mcp`, or called as
    any other upstream of kind tool."""
    prompts: Globs | None = None
    """Prompts, by name, that a request to an LLM may name by `prompt://`."""
    targets: Globs | None = None
    """Names of upstreams; of a rule for events, topics."""
    hosts: Globs | None = None
    """Hosts of upstreams of kind host, in lower case."""
