"""Claims with a key: who claims, who waits for whom, and who is told what. The facade over the shelf.

    claim     when a call is admitted: it goes on, is answered by what the first got, waits for it, or is refused
    forward   when it is about to go out: from here on the claim is in flight, in the store
    ended     when it has ended: its fate is written down behind the caller's back, and those who wait are told

Between `claim` and `forward` nothing is in the store: a call that waits for a person and is never sent leaves no trace.
Two sidecars may so admit the same call at once; one of them forwards it, and the other finds that out in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from meshd.claims import words
from meshd.claims.claim import Claim
from meshd.claims.record import ClaimRecord
from meshd.claims.replay import reply_of
from meshd.claims.rest import RestBroken
from meshd.claims.shelf import BEAT_S, CLAIMS, DIED, Shelf
from meshd.claims.states import Event, State
from meshd.claims.tape import Tape
from meshd.engines.port import StoreClosed, StoreError
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.call import Call
    from meshd.ledger import Ledger

POLL_S: Final = 1.0
"""How often a claim of another sidecar is looked at by one who waits for it, besides what the store tells."""
SWEEP_S: Final = 60.0
AGAIN_S: Final = 0.5
AGAIN_S_MAX: Final = 15.0
CLOSE_S: Final = 5.0
LATE_S: Final = 30.0
"""A write that failed may land later; what it would leave is looked for once more after this time."""
_AGAIN: Final = object()
_UNSETTLED: Final = "it was forwarded and ended without an answer that says whether it was carried out"

_log = logging.getLogger("meshd.claims")


class Book:
    """The claims of one sidecar."""

    def __init__(self, *, wall_clock: Callable[[], float], nonce: Callable[[], str], spill: Callable[[], Any]) -> None:
        self._wall_clock = wall_clock
        self._nonce = nonce
        self._spill = spill
        self._shelf: Shelf | None = None
        self._why: object = "the books are not open"
        self.under_way: dict[str, Claim] = {}
        """By identity: claims that this process has made and whose record is not final yet."""
        self.results: Counter[str] = Counter()
        """Calls with a claim, by what came of them."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watched: Any = None
        self._is_closed = False

    def keep(self, ledger: Ledger) -> None:
        """Keep claims where these books are kept. Claims under way end where they began."""
        store = ledger.store()
        self._why = ledger.fault or self._why
        clock = _loop_time
        self._shelf = None if store is None else Shelf(store, ledger.holder, ledger.started.epoch, clock)
        self._watched = None

    # ------------------------------------------------------------------ a call comes

    async def claim(self, call: Call, settings: Any, identity: str, fingerprint: bytes) -> Any:
        """Return the claim where the call goes on, a Reply, or None where its caller has hung up. Raises Refused."""
        while True:
            first = self.under_way.get(identity)
            if first is None:
                return await self._first(call, settings, identity, fingerprint)
            if first.fingerprint != fingerprint:
                raise self._no("reused", words.reused(settings.rule))
            if first.event is None and settings.in_flight == "refuse":
                raise self._no("in_flight", words.in_flight(settings.rule))
            decision = await self._join(first, call, settings)
            if decision is not _AGAIN:
                return decision

    async def _first(self, call: Call, settings: Any, identity: str, fingerprint: bytes) -> Any:
        claim = Claim(
            self, call, settings, Tape(settings.reply, self._spill), identity=identity, fingerprint=fingerprint
        )
        claim.nonce = self._nonce()
        # Before the store is asked: who comes meanwhile waits for what is found there.
        self.under_way[identity] = claim
        decision: Any = None
        try:
            decision = await self._look(claim, call)
        finally:
            if decision is not claim:
                self._forget(claim)
        if decision is claim:
            call.claim = claim
            self.results["first"] += 1
        return decision

    async def _join(self, first: Claim, call: Call, settings: Any) -> Any:
        """Wait for one that is under way here."""
        if first.event is None and not await first.wait(call, self._patience_s(call)):
            return None
        if first.event is Event.ANSWERED:
            reply = first.reply_to(call)
            if reply is not None:
                self.results["joined"] += 1
                return reply
            if first.tape.is_too_long:
                raise self._no(
                    "unknown", words.unknown(settings.rule, "it was answered, at greater length than is kept")
                )
            if self.under_way.get(first.identity) is first:
                # Not let go yet, so it is the file that cannot be read. To look again at once would go on for ever.
                raise self._no(
                    "unknown", words.unknown(settings.rule, "it was answered, and the answer cannot be read")
                )
        elif first.event is Event.LOST:
            raise self._no("unknown", words.unknown(settings.rule, _UNSETTLED))
        elif first.event is None:
            self._check_deadline(call)
        elif self.under_way.get(first.identity) is first:
            if not await first.wait(call, POLL_S):
                return None
            if self.under_way.get(first.identity) is first:
                return self._unreleased(settings)
        return _AGAIN

    def _unreleased(self, settings: Any) -> Any:
        """The one before it was not carried out, and that cannot be written down: the store is away."""
        if settings.on_store_error == "refuse":
            error = "what became of the call before it is not written down yet"
            raise self._no("unwritten", words.unwritten(settings.rule, error))
        return None  # it goes out unclaimed

    @staticmethod
    def _patience_s(call: Call) -> float | None:
        context = call.context
        return None if context is None or context.deadline_s is None else context.deadline_s - call.wall_s

    def _check_deadline(self, call: Call) -> None:
        context = call.context
        if context is not None and context.deadline_s is not None and self._wall_clock() >= context.deadline_s:
            raise Refused(Reason.DEADLINE, "The workflow's deadline passed while the call waited for the one before it")

    # ------------------------------------------------------------------ what the store says

    async def _look(self, claim: Claim, call: Call) -> Any:
        """Return the claim where nothing stands in its way; else as `claim` does."""
        settings = claim.settings
        try:
            while True:
                shelf = self._shelf
                if shelf is None:
                    raise StoreClosed(str(self._why))
                record, version = await shelf.read(claim.identity)
                if record is None or (record.state is not State.IN_FLIGHT and record.ends_s <= self._wall_clock()):
                    claim.version = version
                    claim.is_durable = True
                    return claim
                if record.fingerprint != claim.fingerprint:
                    raise self._no("reused", words.reused(settings.rule))
                if record.state is State.DONE:
                    return await self._replay(shelf, record, call, settings)
                if record.state is State.UNKNOWN:
                    raise self._no("unknown", words.unknown(settings.rule, record.why or _UNSETTLED))
                if await shelf.is_dead(record, is_known=self._knows):
                    await shelf.tell(claim.identity, Event.DIED, why=DIED)
                elif settings.in_flight == "refuse":
                    raise self._no("in_flight", words.in_flight(settings.rule))
                elif not await self._changed(shelf, claim, call):
                    return None
        except StoreError as error:
            if settings.on_store_error == "refuse":
                raise self._no("unwritten", words.unwritten(settings.rule, error)) from error
            claim.is_durable = False
            return claim

    async def _replay(self, shelf: Shelf, record: ClaimRecord, call: Call, settings: Any) -> Any:
        answer = record.answer
        if answer is None or answer.is_too_long:
            raise self._no("unknown", words.too_long(settings.rule, record))
        try:
            rest = await shelf.rest_of(record, answer)
        except RestBroken:
            raise self._no("unknown", words.too_long(settings.rule, record)) from None
        self.results["replayed"] += 1
        return reply_of(answer, answer.body, call, rest)

    async def _changed(self, shelf: Shelf, claim: Claim, call: Call) -> bool:
        """Wait until a claim of another sidecar may have changed; False where the caller has hung up."""
        await self._watch(shelf)
        self._check_deadline(call)
        return await claim.wait(call, POLL_S)

    async def _watch(self, shelf: Shelf) -> None:
        if self._watched is not shelf:
            self._watched = shelf
            await shelf.store.watch(CLAIMS, self._told)

    def _told(self, identity: str) -> None:
        for claim in [self.under_way.get(identity)] if identity else list(self.under_way.values()):
            if claim is not None and not claim.is_logged:
                claim.wake()

    def _knows(self, nonce: str) -> bool:
        return any(claim.nonce == nonce for claim in self.under_way.values())

    def _no(self, result: str, refused: Refused) -> Refused:
        self.results[result] += 1
        return refused

    # ------------------------------------------------------------------ it goes out

    async def forward(self, claim: Claim, call: Call) -> Any:
        """Write down that the call goes out; return the ticket of its attempt, or as `claim` does."""
        settings, shelf = claim.settings, self._shelf
        while True:
            if shelf is None or not claim.is_durable:
                return claim.attempted()
            begun_s = self._wall_clock()
            record = ClaimRecord(
                State.IN_FLIGHT, claim.fingerprint, shelf.holder, shelf.epoch, claim.nonce, begun_s,
                begun_s + settings.keep,
            )  # fmt: skip
            try:
                is_made = await shelf.forward(claim.identity, record, claim.version)
            except StoreError as error:
                claim.is_uncertain = True
                if settings.on_store_error == "refuse":
                    raise self._no("unwritten", words.unwritten(settings.rule, error)) from error
                return claim.attempted()
            if is_made:
                claim.is_logged = True
                self._later("beat", BEAT_S if shelf.is_shared else 0.0)
                self._later("sweep", SWEEP_S)
                return claim.attempted()
            # Another sidecar was first.
            decision = await self._look(claim, call)
            if decision is None:
                # Nobody waits for it any more. To say nothing here would be to let it go out.
                raise words.in_flight(settings.rule)
            if decision is not claim:
                self._forget(claim)  # who waits for it here need not wait until that answer has been read
                return decision

    async def elsewhere(self, claim: Claim, call: Call) -> Any:
        """The call is being sent by another sidecar, or was just now: return its answer, the claim where nothing of it
        is written down, None where the caller has hung up. Raises Refused."""
        shelf = self._shelf
        decision: Any = claim
        if shelf is not None and claim.is_durable:
            try:
                await self._watch(shelf)
            except StoreError:
                pass  # then it is looked at from time to time
            decision = await self._look(claim, call)
        if decision is claim:
            return claim if await claim.wait(call, POLL_S) else None
        if decision is not None:
            self._forget(claim)
        return decision

    # ------------------------------------------------------------------ it has ended

    def ended(self, claim: Claim, event: Event) -> None:
        """A claimed call has ended: see `Claim.settle`."""
        claim.event = event
        if not claim.is_logged and not claim.is_uncertain:
            self._forget(claim)
            return
        if event is not Event.RELEASED:
            claim.wake()
        self._run(self._write(claim, event))

    async def _write(self, claim: Claim, event: Event) -> None:
        """Write the fate of a claim down; until that is done this process tells of it."""
        shelf, answer = self._shelf, claim.answer
        if shelf is not None and event is Event.ANSWERED and answer is not None:
            await self._insist(lambda: shelf.keep(claim.identity, claim.nonce, answer, claim.tape))
        elif shelf is not None:
            await self._tell(shelf, claim.identity, claim.nonce, event)
        if claim.is_uncertain and shelf is not None and not self._is_closed:
            # What failed may land yet: it is looked for once more.
            loop = asyncio.get_running_loop()
            told = Event.LOST if event is Event.ANSWERED else event
            loop.call_later(LATE_S, lambda: self._run(self._tell(shelf, claim.identity, claim.nonce, told)))
        self._forget(claim)

    async def _tell(self, shelf: Shelf, identity: str, nonce: str, event: Event) -> None:
        why = _UNSETTLED if event is Event.LOST else ""
        await self._insist(lambda: shelf.tell(identity, event, nonce=nonce, why=why))

    async def _insist(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Try for as long as the store is away and this sidecar runs."""
        delay_s = AGAIN_S
        while True:
            try:
                await work()
                return
            except StoreClosed:
                return
            except StoreError as error:
                if self._is_closed:
                    return
                _log.warning("what became of a claim is not written down yet: %s", error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, AGAIN_S_MAX)

    def _forget(self, claim: Claim) -> None:
        if self.under_way.get(claim.identity) is claim:
            del self.under_way[claim.identity]
        if claim.event is None:
            claim.event = Event.RELEASED
        claim.wake()
        claim.tape.close()

    # ------------------------------------------------------------------ behind the calls

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _later(self, name: str, delay_s: float) -> None:
        if delay_s and name not in self._timers and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_later(delay_s, self._due, name)

    def _due(self, name: str) -> None:
        self._timers.pop(name, None)
        shelf = self._shelf
        if shelf is not None:
            self._run(self._beat(shelf) if name == "beat" else self._sweep(shelf))

    async def _beat(self, shelf: Shelf) -> None:
        try:
            await shelf.beat()
        except StoreError as error:
            _log.warning("other sidecars may take this one for dead: %s", error)
        if any(claim.is_logged for claim in self.under_way.values()):
            self._later("beat", BEAT_S)

    async def _sweep(self, shelf: Shelf) -> None:
        try:
            await shelf.sweep(self._wall_clock(), is_known=self._knows)
        except StoreError as error:
            _log.warning("claims that are over were not removed: %s", error)
        self._later("sweep", SWEEP_S)

    async def close(self) -> None:
        """Write down what is known; the store is still open."""
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
