"""Forwarding: what may be carried out is written down before its first byte goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import Wait

if TYPE_CHECKING:
    from meshd.call import Call


class Forwarding:
    """Logs that a claimed call goes out; a call without a claim it lets pass."""

    __slots__ = ()

    name = "forwarding"

    def admit(self, call: Call) -> Any:
        """See `Filter.admit`. The first attempt waits for the store; the others are of the same claim."""
        claim = call.claim
        if claim is None or not claim.identity:
            return None
        return claim.attempted() if claim.is_logged else Wait(claim.forward())

    def explain(self, call: Call) -> str:
        """See `Filter.explain`."""
        claim = call.claim
        if claim is None or not claim.identity:
            return "nothing is written down"
        return "it is written down that the call goes out; a crash from then on leaves its claim unknown"
