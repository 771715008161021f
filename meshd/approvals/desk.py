"""The desk: where calls ask, people decide, and what was allowed is used. All state is in the store; a desk that ends
loses nothing, and any other desk over the same store goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from meshd.approvals.crowd import Crowd
from meshd.approvals.deciding import Declined, Why, decided, holds, over
from meshd.approvals.drafting import draft
from meshd.approvals.hands import Hands
from meshd.approvals.holding import Holding
from meshd.approvals.keys import Guard, approver_of, is_made
from meshd.approvals.line import LOOK_S, Line
from meshd.approvals.record import Approval, Damaged
from meshd.approvals.shelf import TRIES_MAX, Found, Shelf
from meshd.approvals.state import TABLE, Event, State
from meshd.approvals.tally import Tally
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from meshd.approvals.question import Clean, Question
    from meshd.engines.port import Store

log = logging.getLogger("meshd.approvals")

PENDING_MAX: Final = 10_000
"""Questions that wait for people at once, of one sidecar: more would bury those that matter."""
SETTLE_TRIES: Final = 8
SETTLE_S: Final = 0.25
"""Between two tries to note how a call ended, doubling."""


class Rules(Protocol):
    """What the desk reads of the policy of the moment."""

    @property
    def owner(self) -> str: ...

    @property
    def agent(self) -> str: ...

    @property
    def approvers(self) -> Mapping[str, str]: ...


class NotAllowed(Exception):
    """The call may not go out. `state` is where its approval stands; PENDING where nobody has decided yet."""

    def __init__(self, approval: Approval, state: State) -> None:
        super().__init__(state.value)
        self.approval = approval
        self.state = state


class SentAlready(Exception):
    """The very same call, by its key, has used the approval: look at its claim, and ask anew where there is none."""

    def __init__(self, approval: Approval) -> None:
        super().__init__(approval.id)
        self.approval = approval


class Flooded(Exception):
    """More waits for people than anybody could look through."""


class Desk:
    """One for the process, on the loop's thread. Methods raise StoreError where the store does not answer."""

    def __init__(
        self,
        store: Callable[[], Store | None],
        rules: Callable[[], Rules],
        *,
        clean: Clean = lambda _, text: text,
        told: Callable[[Approval], None] = lambda _: None,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
        sidecar: str = "",
    ) -> None:
        """`clean` takes secrets out of a text that stands under a name; `told` hears of each approval that is new or
        has changed here; `clock` gives unix seconds."""
        self.shelf = Shelf(store, random)
        self.line = Line(self.shelf, self._seen)
        self.guard = Guard()
        self.tally = Tally()
        self.crowd = Crowd()
        self.hands = Hands()
        self.pending: dict[str, float] = {}
        """Ids that nobody has decided on, as far as is known here, and when they expire."""
        self.sidecar = sidecar
        self._rules = rules
        self.clean = clean
        self._told = told
        self.clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------ calls

    async def obtain(self, question: Question, hold_s: float, holding: Holding | None = None) -> Approval:
        """Ask, wait for at most `hold_s` seconds, and use what is allowed: return it, used. Who gets it sends the call,
        and owes `settled`. Raises NotAllowed; SentAlready; Flooded; StoreError."""
        holding = holding or Holding()
        ends_s = asyncio.get_running_loop().time() + hold_s
        await self.line.watch()
        while True:
            found = await self.ask(question)
            holding.found(found.approval, is_decided=found.approval.state_at(self.clock()) is not State.PENDING)
            settled = await self._decided(found, ends_s, holding, question.key)
            if settled is None:
                continue  # used by another, or gone: this call asks for itself
            used = await self._use(settled, question.call, question.key)
            if used is not None:
                holding.found(used, is_decided=True)
                return used
            _look_whether_sent(await self._reread(settled.approval.id), question.key)

    async def redeem(self, id: str, digest: str, call: str) -> Approval:
        """Use what was allowed for a call that is made again, and ask nobody. `digest` is of that call as it is now;
        empty where nobody would be asked about it any more. Raises NotAllowed, APPROVED where it is for another call;
        Declined; StoreError."""
        while True:
            found = await self._known(id)
            state = found.approval.state_at(self.clock())
            if state is not State.APPROVED or digest not in ("", found.approval.digest):
                raise NotAllowed(found.approval, state)
            used = await self._use(found, call)
            if used is not None:
                return used

    async def ask(self, question: Question) -> Found:
        """Return the approval that is in force for a call: an earlier one, or a new one that people are told of."""
        now_s = self.clock()
        digest = question.digest
        full = self.crowd.full(question.agent, self.clean("", question.workflow), now_s)
        if len(self.pending) >= PENDING_MAX:
            full = f"{PENDING_MAX} approvals wait for a decision already"
        if full:
            if (known := (await self.shelf.in_force(digest, now_s, question.key))[0]) is not None:
                return known
            raise Flooded(full)
        found, is_new = await self.shelf.add(
            lambda id: draft(id, digest, question, now_s, self.clean, self.sidecar), digest, now_s, question.key
        )
        if is_new:
            self.tally.asked += 1
            self._seen(found)
            self._told(found.approval)
        return found

    async def wait(self, id: str, hold_s: float, holding: Holding, use: str = "") -> Approval:
        """Return an approval once it is decided, or as it stands after `hold_s` seconds. What is allowed is used in the
        name of `use`, where that is given, and never given back: asked again, it is used by that name. Raises Declined
        where there is none; StoreError."""
        ends_s = asyncio.get_running_loop().time() + hold_s
        await self.line.watch()
        while True:
            found = await self._known(id)
            if use and found.approval.used_by == use:
                return found.approval
            try:
                settled = await self._decided(found, ends_s, holding, "")
            except NotAllowed as error:
                return error.approval
            if settled is None or not use:
                return await self.show(id)
            # Not undone where the caller leaves meanwhile: it may ask again, and must find what it was told.
            using: asyncio.Task[Approval | None] = self._keep(self._use(settled, use))
            if (used := await asyncio.shield(using)) is not None:
                return used

    async def _decided(self, found: Found, ends_s: float, holding: Holding, key: str) -> Found | None:
        """Return an approval once it is allowed; None where the call must ask anew. Raises NotAllowed; SentAlready."""
        loop = asyncio.get_running_loop()
        id = found.approval.id
        now: Found | None = None
        while True:
            future = self.line.join(id)
            holding.on(future)
            try:
                # It may have changed before the call stood in the line.
                now = now or await self._reread(id)
                _look_whether_sent(now, key)
                if now is None or now.approval.state is State.USED:
                    return None
                state = now.approval.state_at(self.clock())
                if state is State.APPROVED and not holding.is_gone:
                    return now
                if state is State.EXPIRED:
                    await self.lapse(now)
                left_s = ends_s - loop.time()
                if state is not State.PENDING or holding.is_gone or left_s <= 0:
                    raise NotAllowed(now.approval, state)
                wait_s = max(0.0, min(left_s, now.approval.expires_s - self.clock(), LOOK_S))
                timer = loop.call_later(wait_s, _ring, future)
                try:
                    now = await future
                finally:
                    timer.cancel()
            finally:
                self.line.leave(id, future)

    async def _reread(self, id: str) -> Found | None:
        try:
            return await self.shelf.read(id)
        except Damaged as error:
            log.error("%s: whoever waits for it asks anew", error)
            return None

    async def _use(self, found: Found, call: str, key: str = "") -> Approval | None:
        """Use what is allowed; None where somebody else has, or where it holds no more."""
        approval = found.approval
        if not holds(approval, self._rules().approvers):
            log.warning("the approval %s has lost its quorum: whoever allowed it may not any more", approval.id)
            await self.cancel(approval.id, "whoever allowed it may not any more")
            return None
        used = msgspec.structs.replace(approval.after(Event.USE, self.clock()), used_by=call, used_key=key)
        writing = self._keep(self.shelf.change(found, used))
        try:
            # Whoever is told to end must not leave in doubt whether it was used.
            is_used = await asyncio.shield(writing)
        except BaseException:
            self.settled(approval.id, call, is_unsent=True, outcome="", after=writing)
            raise
        if not is_used:
            return None
        self.tally.count(State.USED.value)
        self._told(used)
        return used

    def settled(
        self, id: str, call: str, *, is_unsent: bool, outcome: str, after: asyncio.Task[Any] | None = None
    ) -> None:
        """The call that used an approval has ended. Where nothing of it was sent, the approval is as it was before;
        else `outcome` says how it ended. Noted behind the call, for as long as that takes."""
        self._keep(self._settle(id, call, is_unsent, outcome, after))

    async def _settle(self, id: str, call: str, is_unsent: bool, outcome: str, after: asyncio.Task[Any] | None) -> None:
        if after is not None:
            await asyncio.wait((after,))
        for tries in range(SETTLE_TRIES):
            try:
                found = await self.shelf.read(id)
                if found is None or found.approval.used_by != call or found.approval.state is not State.USED:
                    return
                approval = found.approval
                if is_unsent:
                    changed = msgspec.structs.replace(
                        approval.after(Event.GIVE_BACK, self.clock()), used_by="", used_key=""
                    )
                else:
                    changed = msgspec.structs.replace(approval, outcome=outcome)
                if await self.shelf.change(found, changed):
                    if is_unsent and (now := await self.shelf.read(id)) is not None:
                        self.line.tell(now)
                    return
            except (StoreError, Damaged) as error:
                if tries == SETTLE_TRIES - 1:
                    log.error("how the call %s ended could not be noted with its approval %s: %s", call, id, error)
                await asyncio.sleep(SETTLE_S * 2**tries)

    # ------------------------------------------------------------------ people

    async def decide(self, id: str, key: str, *, approver: str, is_allowed: bool, reason: str) -> Approval:
        """Allow or deny, as whoever has the key; `approver` may be left empty. Raises Declined."""
        rules, name = self._rules(), self.approver(key, approver, of=f"the approval {id}")
        for _ in range(TRIES_MAX):
            found = await self._known(id)
            if name == rules.owner and found.approval.agent == rules.agent:
                raise Declined(Why.OWN, f"{rules.agent} is {name}'s own agent: somebody else must decide.")
            try:
                changed = decided(found.approval, name, is_allowed=is_allowed, reason=reason, now_s=self.clock())
            except Declined as declined:
                log.warning("%s may not decide on the approval %s: %s", name, id, declined)
                raise
            if await self.shelf.change(found, changed):
                log.info("the approval %s is %s, by %s", id, changed.state.value, name)
                return await self._has_changed(changed)
        raise Declined(Why.BUSY, "Others keep changing this approval. Try again.")

    def has_approvers(self) -> bool:
        """Say whether the policy names somebody who may decide."""
        return bool(self._rules().approvers)

    def approver(self, key: str, approver: str = "", *, of: str = "the catalogue") -> str:
        """Return whose key it is, which is to decide on `of`; of `approver`, where that is said. Raises Declined."""
        approvers = self._rules().approvers
        wait_s = self.guard.wait_s(self.clock()) if not is_made(key) else 0.0
        if wait_s:
            self.guard.refused += 1
            raise Declined(Why.LIMITED, f"There were too many wrong keys. Try again in {wait_s:.0f} seconds.")
        name = approver_of(key, approver, approvers)
        if not name:
            self.guard.wrong()
            log.warning("a decision on %s came with a wrong key", of, extra={"fields": {"as": approver[:64]}})
            known = "the policy names them" if approvers else "there are none in this policy"
            raise Declined(Why.KEY, f"No approver{f' {approver[:64]}' if approver else ''} has this key; {known}.")
        return name

    async def cancel(self, id: str, why: str) -> Approval:
        """Take a question back, or what was allowed and not used. Raises Declined."""
        for _ in range(TRIES_MAX):
            found = await self._known(id)
            state = found.approval.state_at(self.clock())
            if (state, Event.CANCEL) not in TABLE:
                raise Declined(Why.OVER, over(found.approval, state))
            cancelled = found.approval.after(Event.CANCEL, self.clock()).emptied()
            changed = msgspec.structs.replace(cancelled, cancelled_for=why[:1000])
            if await self.shelf.change(found, changed):
                return await self._has_changed(changed)
        raise Declined(Why.BUSY, "Others keep changing this approval. Try again.")

    async def show(self, id: str) -> Approval:
        """Return an approval. Raises Declined where there is none, or its record is damaged."""
        return (await self._known(id)).approval

    async def list(self, state: State | None, limit: int, workflow: str | None = None) -> list[Approval]:
        """Return approvals in a state, or all; of one workflow, or of any; the newest first, at most `limit`."""
        now_s = self.clock()
        chosen: list[Approval] = []
        async for page in self.shelf.all():
            some = (found.approval for _, found in page if found is not None)
            fits = (one for one in some if workflow is None or one.workflow == workflow)
            chosen += [one for one in fits if state is None or one.state_at(now_s) is state]
            if len(chosen) > 4 * limit:
                chosen = sorted(chosen, key=lambda one: -one.asked_s)[:limit]
        return sorted(chosen, key=lambda one: -one.asked_s)[:limit]

    # ------------------------------------------------------------------ within

    async def _known(self, id: str) -> Found:
        try:
            found = await self.shelf.read(id)
        except Damaged as error:
            raise Declined(Why.DAMAGED, f"{error}. Nothing passes by it; the call asks anew.") from None
        if found is None:
            raise Declined(Why.UNKNOWN, f"There is no approval {id[:64]}.")
        return found

    async def lapse(self, found: Found) -> None:
        """Note that the time of an approval is over: it is over whether or not that is noted."""
        if found.approval.state not in (State.PENDING, State.APPROVED):
            return
        lapsed = found.approval.after(Event.LAPSE, self.clock()).emptied()
        if await self.shelf.change(found, lapsed):
            await self._has_changed(lapsed)

    async def _has_changed(self, approval: Approval) -> Approval:
        """Tell everybody of a change that was made here."""
        if approval.state is not State.PENDING:
            self.tally.count(approval.state.value)
        if (now := await self._reread(approval.id)) is not None:
            self.line.tell(now)
            self._told(approval)
        return approval

    def _seen(self, found: Found) -> None:
        approval = found.approval
        self.crowd.note(approval, self.clock())
        if approval.state is State.PENDING:
            self.pending[approval.id] = approval.expires_s
        else:
            self.pending.pop(approval.id, None)

    def _keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, StoreError):
            log.error("an approval's note failed: %s", error)

    async def close(self) -> None:
        """Note what is still to be noted, and wake nobody any more."""
        await self.line.close()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=5.0)


def _look_whether_sent(found: Found | None, key: str) -> None:
    if key and found is not None and found.approval.used_key == key:
        raise SentAlready(found.approval)


def _ring(future: asyncio.Future[Found | None]) -> None:
    if not future.done():
        future.set_result(None)
