"""One call that waits for people, for whoever keeps its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from meshd.approvals.hands import Hand
    from meshd.approvals.record import Approval
    from meshd.approvals.shelf import Found


class Holding:
    """One call that is held: whoever holds its connection says `leave` when its caller has gone."""

    __slots__ = ("_future", "approval", "hands", "held_s", "is_gone", "over", "task")

    def __init__(self, hands: Sequence[Hand] = ()) -> None:
        """`hands`: the events that it may follow from."""
        self.hands = hands
        self.is_gone = False
        self.held_s = 0.0
        self.approval: Approval | None = None
        """What it waits for, once that is there."""
        self.task: Any = None
        """The task that its caller may be shown while it is held, as `meshd.dialects.held_task.HeldTask`."""
        self.over: Callable[[bytes, str], None] | None = None
        """Told of the answer once the call was carried out, where its caller was shown a task."""
        self._future: asyncio.Future[Found | None] | None = None

    def found(self, approval: Approval, *, is_decided: bool = False) -> None:
        """It waits for an approval; or, with `is_decided`, is told what became of that."""
        for hand in self.hands:
            if self.approval is not None and self.approval.id != approval.id:
                hand.note(self.approval, is_decided=True)
            hand.note(approval, is_decided=is_decided)
        self.approval = approval

    def leave(self) -> None:
        """Nobody waits for the call any more. What it asked for stays."""
        self.is_gone = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def on(self, future: asyncio.Future[Found | None]) -> None:
        """It waits for this now."""
        self._future = future
