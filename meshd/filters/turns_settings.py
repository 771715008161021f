"""What the policy sets for Turns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Duration, Size

Rung = Literal["note", "tell", "hold", "refuse"]


class TurnsSettings(Settings):
    """When agents that go in circles are stopped (numbers: guarantees, part 3).

    A turn is one call on an edge from agent to agent; a turn that brings something new counts a tenth.
    """

    reentry: int = Field(default=2, ge=0, le=1000)
    """How often an agent may be called again by those that it has called itself, directly or through others."""
    edge: int = Field(default=20, ge=1, le=1_000_000)
    """Turns from one agent to another within a workflow."""
    connected: int = Field(default=40, ge=1, le=1_000_000)
    """Turns among agents that call one another in a circle, together."""
    workflow: int = Field(default=200, ge=1, le=1_000_000)
    """Turns of a workflow."""
    periods: int = Field(default=3, ge=2, le=100)
    """After so many rounds of the same, with the same answers, it is a loop."""
    stale_spend: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the workflow's budget that may be spent since anything new was said."""
    polls: int = Field(default=10, ge=1, le=100_000)
    """Times a second that the same question may be asked whose answer changes, or that only reads. Faster ones wait."""
    ladder: Rung = "refuse"
    """The highest step that is taken: `note` counts and traces it, `tell` lets the call pass and says so to the model,
    `hold` asks whom `on_exceeded` names, `refuse` refuses. Where `on_exceeded` is set, it is asked before anything is
    refused."""
    on_store_error: Literal["refuse", "pass"] = "pass"
    """What holds while the turns of other sidecars cannot be read. Those of this one are always counted."""
    span: Duration = Field(default=86_400.0, gt=0, le=30 * 86_400)
    """How long a workflow without a turn is remembered."""
    sample: Size = Field(default=4096, ge=256, le=65_536)
    """Bytes that are looked at of a payload and of an answer: half from the beginning, half from the end."""
