"""Where a held call stands that was answered with a task, as its approval, its record and its carrier have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.approvals.held_calls import ASKED, ENDED
from meshd.approvals.state import State
from meshd.dialects.held_task import HeldTask, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.carrying import Carrying
    from meshd.approvals.desk import Desk
    from meshd.approvals.held_calls import HeldCall
    from meshd.approvals.record import Approval


class Deferred:
    """Says it. Raises StoreError where the store does not answer."""

    __slots__ = ("_carrying", "_desk", "_waiting_words")

    def __init__(self, desk: Desk, carrying: Carrying, waiting_words: Callable[[Approval], str]) -> None:
        self._desk = desk
        self._carrying = carrying
        self._waiting_words = waiting_words

    def waiting(self, held: HeldCall, approval: Approval) -> HeldTask:
        """Return the task of a call that nobody has decided on."""
        return _task(held, approval, Stage.WAITING, self._waiting_words(approval))

    async def stands(self, held: HeldCall, approval: Approval) -> HeldTask:
        """Return the task of a call as it stands now."""
        state = approval.state_at(self._desk.clock())
        if state is State.USED and held.state == ASKED and (now := await self._carrying.held.read(held.id)) is not None:
            held = now.call  # Whoever uses it has claimed it before.
        if held.state == ENDED:
            if held.failure:
                return _task(held, approval, Stage.FAILED, held.failure)
            answer = await self._carrying.held.answer(held)
            if answer is None:
                return _task(held, approval, Stage.FAILED, "The answer is gone from the store.")
            return _task(held, approval, Stage.ENDED, "It was carried out.", answer)
        if state is State.PENDING:
            return self.waiting(held, approval)
        if state is State.USED and held.state == ASKED and approval.outcome:
            words = "It was allowed, and the same call, made again, has used that: its answer went there."
            return _task(held, approval, Stage.FAILED, words)
        if state is State.USED:
            if not await self._carrying.is_lost(held):
                return _task(held, approval, Stage.RUNNING, "It was allowed, and is being carried out.")
            words = (
                "It was allowed, and the sidecar that carried it out ended before the answer was there: nobody knows "
                "whether it was carried out. It is not tried again by itself."
            )
            return _task(held, approval, Stage.FAILED, words)
        if state is State.APPROVED:
            return _task(held, approval, Stage.RUNNING, "It was allowed, and is about to be carried out.")
        return _over(held, approval, state)


def _over(held: HeldCall, approval: Approval, state: State) -> HeldTask:
    """Return the task of a call that will never go out."""
    denial = approval.denied_by
    if denial is not None:
        words = f"It was denied by {denial.approver} (approval {approval.id}): {denial.reason.strip()}"
        return _task(held, approval, Stage.DENIED, words)
    if state is State.CANCELLED:
        words = f"It was cancelled: {approval.cancelled_for or 'taken back'}"
        return _task(held, approval, Stage.CANCELLED, words)
    words = f"Nobody decided on the approval {approval.id} in time, and no answer is a no."
    return _task(held, approval, Stage.DENIED, words)


def _task(held: HeldCall, approval: Approval, stage: Stage, words: str, answer: bytes = b"") -> HeldTask:
    changed_s = max(held.changed_s, approval.ended_s)
    return HeldTask(held.task, approval.id, stage, words, held.asked_s, changed_s, held.ttl_s, answer, held.context_id)
