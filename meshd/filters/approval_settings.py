"""What the policy sets for Approval."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from meshd.filters.contract import Settings
from meshd.filters.units import Count, Duration, Money


class ApprovalSettings(Settings):
    """Which calls a person must allow first (guarantees, part 6).

    Without `above_tokens` and `above_dollars`, every call to a tool, an agent or a host that the rule fits and that is
    not read-only; with one of them, calls that may cost more than that.
    """

    # Not a field, as `rule` is none: see `meshd.filters.contract.Settings`.
    is_short: ClassVar[bool] = False
    """Set by the short form: calls to tools that are not read-only ask, and calls to LLMs above the thresholds."""

    required: bool = True
    """False lifts it where a later rule asks for it."""
    reads: bool = False
    """Ask for calls that only read, too."""
    above_tokens: Annotated[Count, Field(ge=1)] | None = None
    """Ask where the call may cost more tokens than this."""
    above_dollars: Annotated[Money, Field(ge=1)] | None = None
    """Ask where the call may cost more than this."""
    approvers: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """Who may decide, of the document's `approvers`. Unset: any of them."""
    quorum: int = Field(default=1, ge=1, le=20)
    """How many must allow it. One who denies decides alone."""
    expires: Duration = Field(default=3600.0, gt=0, le=30 * 86_400)
    """Time to decide in; no answer is a no. An approval that was given must be used within the same time."""
    hold: Duration | None = Field(default=None, ge=0, le=86_400)
    """Longest time that the call itself is held. Unset: as long as its client waits. After it the client is told
    that the approval is pending, and the same call made again attaches to the same approval; or of a task, where it
    understands one."""
    on_store_error: Literal["refuse"] = "refuse"
    """What holds while no approval can be written: nothing passes unasked."""
