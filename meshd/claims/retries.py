"""Calls without a key whose retries show themselves: the official clients', in memory.

They send no key, but say how often they have tried (`x-stainless-retry-count`), and send the very same bytes again. So
a first attempt is remembered while it runs, by what it says, and its answer is kept only where its caller hung up
before it was there: that is when these clients try again. A retry takes such an orphan and nothing else. Two equal
requests that both say 0 are two samples, and never share an answer, nor does a retry take the answer of a sample whose
caller still waits.

Nothing of this is in the store: to write each completion down before it is sent would cost every call a round trip, to
save after a crash of this very sidecar what a completion costs. After such a crash a retry runs anew, and the budget
has the first one at its bound. Who wants more sends a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Wait
from meshd.claims.claim import Claim
from meshd.claims.keys import caller_of, workflow_of
from meshd.claims.states import Event
from meshd.claims.tape import Tape

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from meshd.call import Call

KEPT_MAX: Final = 256
KEPT_BYTES_MAX: Final = 32 * 2**20
"""Of requests and answers whose retry has not come yet: the oldest leave first."""
KEPT_S_MAX: Final = 600.0
"""An official client waits 8 s at most before it tries again."""
_ANSWERED: Final = Event.ANSWERED


class Retries:
    """Attempts under way, and the answers that nobody has taken yet."""

    def __init__(self, results: Counter[str], spill: Callable[[], Any]) -> None:
        self._results = results
        self._spill = spill
        self._claims: dict[Any, list[Claim]] = {}
        self._kept: dict[Claim, int] = {}
        """Orphans that have been answered, the oldest first, with the bytes that they hold."""
        self._kept_bytes = 0

    def admit(self, call: Call, settings: Any, count: int) -> Any:
        """Return the claim of a call that goes on, a Reply, or a Wait. `count`: how often its client tried before."""
        self._expire(call.now_s)
        key = (
            caller_of(call), workflow_of(call), call.target.name, call.method, call.path, tuple(call.credentials),
            call.body,
        )  # fmt: skip
        if count:
            orphan = self._orphan(key)
            if orphan is not None:
                if orphan.event is None:
                    orphan.is_orphaned = False
                    return Wait(self._join(orphan, call, settings))
                reply = orphan.reply_to(call)
                self._drop(orphan)
                if reply is not None:
                    self._results["replayed"] += 1
                    return reply
        return self._first(key, call, settings)

    def _orphan(self, key: Any) -> Claim | None:
        for claim in self._claims.get(key, ()):
            if claim.is_orphaned:
                return claim
        return None

    def _first(self, key: Any, call: Call, settings: Any) -> Claim:
        claim = Claim(self, call, settings, Tape(settings.reply, self._spill))
        claim.key = key
        claims = self._claims.get(key)
        if claims is None:
            self._claims[key] = [claim]
        else:
            claims.append(claim)
        call.claim = claim
        return claim

    async def _join(self, orphan: Claim, call: Call, settings: Any) -> Any:
        if not await orphan.wait(call):
            orphan.is_orphaned = True
            if orphan.event is not None:
                self.ended(orphan, orphan.event)
            return None
        reply = orphan.reply_to(call) if orphan.event is _ANSWERED else None
        self._drop(orphan)
        if reply is None:
            # It failed, and its caller would have been told to try again: this is that try.
            return self._first(orphan.key, call, settings)
        self._results["joined"] += 1
        return reply

    async def forward(self, claim: Claim, call: Call) -> Any:
        """Nothing is written down."""
        return claim.attempted()

    async def elsewhere(self, claim: Claim, call: Call) -> Any:
        """Nobody else knows of it."""
        return claim

    def ended(self, claim: Claim, event: Event) -> None:
        """An attempt has ended: see `Claim.settle`."""
        claim.event = event
        if event is _ANSWERED and claim.is_orphaned:
            self._keep(claim)
        elif not claim.is_waited_for:
            self._drop(claim)
        claim.wake()

    def _keep(self, claim: Claim) -> None:
        size = len(claim.key[-1] or b"") + claim.tape.size
        self._kept[claim] = size
        self._kept_bytes += size
        while self._kept_bytes > KEPT_BYTES_MAX or len(self._kept) > KEPT_MAX:
            self._drop(next(iter(self._kept)))

    def _expire(self, now_s: float) -> None:
        while self._kept:
            oldest = next(iter(self._kept))
            if now_s - oldest.ended_s < min(oldest.settings.keep, KEPT_S_MAX):
                break
            self._drop(oldest)

    def _drop(self, claim: Claim) -> None:
        self._kept_bytes -= self._kept.pop(claim, 0)
        claims = self._claims.get(claim.key)
        if claims is not None and claim in claims:
            claims.remove(claim)
            if not claims:
                del self._claims[claim.key]
        claim.tape.close()
