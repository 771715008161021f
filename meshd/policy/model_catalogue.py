"""What an upstream's section says for the catalogue: see `meshd.policy.model`."""

from typing import Annotated

from pydantic import BaseModel, Field

from meshd.filters.contract import SECTION

MODEL_PATTERN = r"^[!-~]{1,128}$"
"""Models; those whose price is said with `*` and `?`."""


class Catalogued(BaseModel):
    """Keys of an upstream that are there to find it by."""

    model_config = SECTION

    description: Annotated[str, Field(max_length=4096)] = ""
    """What it is for, in words for whoever looks for it in the catalogue."""
    version: Annotated[str, Field(max_length=256)] = ""
    """Its semantic version."""
    intents: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=64)] = ()
    """What it can be asked for, in a few words each."""
    labels: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=317)], Annotated[str, Field(max_length=4096)]],
        Field(max_length=256),
    ] = {}
    """Labels, as its container has them. Those whose name ends in `.intent` are read: they hold more `intents`, with
    commas between them, as in `ai.acme.intent: "market_analysis,technical_audit"`."""
    tools: dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=4096)]] = {}
    """Tools that it serves, and what each is for. One that speaks MCP says so itself."""
    models: tuple[Annotated[str, Field(pattern=MODEL_PATTERN)], ...] = ()
    """Models that an LLM serves."""
    openapi: Annotated[str, Field(min_length=2, max_length=2048)] | None = None
    """Where an OpenAPI document describes it: a path of its own (`/openapi.json`), a file (`file:billing.yaml`), or an
    address."""
    reflection: bool = False
    """It is a gRPC server that reflects its services."""
    discover: bool | None = None
    """Ask it what it offers. Unset: where its dialect is `mcp` or `a2a`."""
