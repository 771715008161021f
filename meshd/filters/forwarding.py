"""Forwarding: what may be carried out is written down before its first byte goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import Wait

if TYPE_CHECKING:
    from meshd.call import Call, ReplyHead
    from meshd.outcome import Outcome


class _Both:
    """The tickets of a call that is claimed, and goes to another sidecar."""

    __slots__ = ("_claimed", "_hop")

    def __init__(self, claimed: Any, hop: Any) -> None:
        self._claimed = claimed
        self._hop = hop

    def on_head(self, head: ReplyHead) -> None:
        self._hop.on_head(head)

    def settle(self, outcome: Outcome) -> None:
        if self._claimed is not None:
            self._claimed.settle(outcome)


class Forwarding:
    """Writes into the trace that an attempt goes out, and into the store that a claimed call does."""

    __slots__ = ("_trace",)

    name = "forwarding"

    def __init__(self, trace: Any = None) -> None:
        """`trace` is a `meshd.trace.recorder.Recorder`, None where no trace is kept."""
        self._trace = trace

    def admit(self, call: Call) -> Any:
        """See `Filter.admit`. The first attempt waits for the store; the others are of the same claim."""
        trace, hop, is_durable = self._trace, None, False
        if trace is not None:
            hop, is_durable = trace.forwarded(call), trace.is_durable
        claim = call.claim
        if claim is None or not claim.identity:
            return Wait(self._written(None, hop, is_durable)) if is_durable else hop
        if hop is None and not is_durable:
            return claim.attempted() if claim.is_logged else Wait(claim.forward())
        return Wait(self._written(claim, hop, is_durable))

    async def _written(self, claim: Any, hop: Any, is_durable: bool) -> Any:
        if is_durable:
            await self._trace.whole()
        if claim is None:
            return hop
        claimed = claim.attempted() if claim.is_logged else await claim.forward()
        return claimed if hop is None else _Both(claimed, hop)

    def explain(self, call: Call) -> str:
        """See `Filter.explain`."""
        claim = call.claim
        if claim is None or not claim.identity:
            return "nothing is written down"
        return "it is written down that the call goes out; a crash from then on leaves its claim unknown"
