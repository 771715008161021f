"""What a rule of the policy sets for the chain of substitutes: `fallback`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration

FallbackOn = Literal["connect", "reset", "timeout", "5xx", "backpressure", "open", "overloaded", "budget", "context"]

ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]


class Substitute(Settings):
    """One link of the chain. Exactly one of `upstream` or `model`, `cached`, `command`, `python` and `reply` is set."""

    upstream: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Another upstream. Of another dialect too, where requests and answers can be translated: OpenAI's chat and
    Anthropic's messages, with tools."""
    model: ModelName | None = None
    """The model to ask for there; alone, another model of the same upstream."""
    cached: Duration | None = Field(default=None, gt=0, le=30 * 86_400)
    """The answer that the very same request last got, if it is no older than this."""
    command: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] | None = Field(default=None, min_length=1)
    """A program that reads the request as JSON from its standard input and writes the answer's text."""
    python: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=256)] | None = None
    """`module:function`, which is given the request as a dict and returns the answer's text."""
    reply: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """The answer's text, as it stands."""
    timeout: Duration = Field(default=10.0, gt=0, le=600)
    """Longest that `command` and `python` may take."""


def _links(value: Any) -> Any:
    return (value,) if isinstance(value, dict) else value


def _one_or_many(schema: dict[str, Any]) -> None:
    """Let editors take one link for a list of one, as `_links` does."""
    many = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in schema}
    schema["anyOf"] = [many["items"], many]


class ChainSettings(Settings):
    """What takes the place of a target that fails, in order. Every substitute is judged again by `allow`."""

    to: Annotated[
        tuple[Substitute, ...],
        BeforeValidator(_links),
        Field(min_length=1, max_length=8, json_schema_extra=_one_or_many),
    ]
    """The chain."""
    on: tuple[FallbackOn, ...] = ("connect", "reset", "timeout", "5xx", "backpressure", "open", "overloaded")
    """After what the next is tried: besides what `retry.on` knows, an `open` breaker, a full queue (`overloaded`), a
    `budget` that is used up (then only what costs nothing), and a request too long for the model (`context`)."""
