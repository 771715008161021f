"""What the policy sets for Approval."""

from __future__ import annotations

from meshd.filters.contract import Settings


class ApprovalSettings(Settings):
    """A person must allow every tool call that can change something (short form of the policy)."""

    required: bool = True
    """False lifts it where a later rule asks for it."""
