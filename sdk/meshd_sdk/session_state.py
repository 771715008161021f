"""The agent's side of a session, without input or output: what to send, what was received, what is lost.

    offer(body)      something is to be sent; work waits for credit, all else does not
    take()           the next frame to write, with its `seq` and `ack`
    received()       a frame came: is it new?
    broken()         the stream ended: what was not acknowledged is kept
    resumed(), begun()  what Welcome said of the session that was asked for

The rules are the comments of proto/meshd/v1/session.proto. Bodies are opaque, and there is no clock. Neither side is
special, so two of these, back to back, are a whole session.

Credit after a resume. Credit frames are not kept, so one may be lost with its stream. What Welcome (or Hello) says is
what the other side has room for now, counted from what it has received: work that it has not received takes of that.
Whatever is done later gives its credit back, whenever it was received.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

from meshd_sdk.errors import ProtocolBroken

FRAMES_MAX: Final = 1024
"""Frames that are kept until they are acknowledged; more wait where they are made."""
BYTES_MAX: Final = 32 * 2**20
ACK_EVERY: Final = 32
"""Frames received after which an acknowledgement goes out even where nothing else does."""


class Frame(NamedTuple):
    """One frame to write."""

    seq: int
    ack: int
    body: Any
    """None for a frame that acknowledges alone."""


class Kept(NamedTuple):
    """What was offered: `bytes` is about its size on the wire."""

    body: Any
    bytes: int
    is_work: bool


class SessionState:
    """See the module. Not for two threads at once."""

    __slots__ = (
        "_at", "_bytes", "_is_open", "_queue", "_unacked", "_under_way", "_work", "acked", "credit", "is_held",
        "received_seq", "sent_seq", "session", "window",
    )  # fmt: skip

    def __init__(self) -> None:
        self.session = ""
        """Names the session; empty before the first Welcome."""
        self.received_seq = 0
        """The highest `seq` that was received, all before it included."""
        self.sent_seq = 0
        """The highest `seq` that was given to a frame."""
        self.acked = 0
        """The `ack` that was sent last."""
        self.credit = 0
        """Frames of work that may still be sent."""
        self.window = 0
        """Work that may be under way at once: what a new session began with."""
        self.is_held = False
        """Set where the other side is about to end: no more work goes out on this stream."""
        self._is_open = False
        self._unacked: deque[tuple[int, Kept]] = deque()
        self._at = 0
        """How many of the unacknowledged were written to this stream."""
        self._queue: deque[Kept] = deque()
        self._work: deque[Kept] = deque()
        self._bytes = 0
        self._under_way: set[int] = set()
        """Work that was sent and has no answer, by the id of its body."""

    @property
    def is_full(self) -> bool:
        """Whether whoever wants to offer more should wait: it is not refused."""
        kept = len(self._unacked) + len(self._queue) + len(self._work)
        return kept >= FRAMES_MAX or self._bytes >= BYTES_MAX

    @property
    def is_idle(self) -> bool:
        """Whether the other side has all that was offered, but for work that is held."""
        return not (self._unacked or self._queue or (self._work and not self.is_held))

    @property
    def under_way(self) -> int:
        """Frames of work that were sent and have no answer."""
        return len(self._under_way)

    def offer(self, body: Any, bytes: int = 0, *, is_work: bool = False) -> None:
        """Give something to be sent."""
        (self._work if is_work else self._queue).append(Kept(body, bytes, is_work))
        self._bytes += bytes

    def withdraw(self, body: Any) -> bool:
        """Take work back that still waits for credit; False where it has been sent."""
        for at, kept in enumerate(self._work):
            if kept.body is body:
                del self._work[at]
                self._bytes -= kept.bytes
                return True
        return False

    def take(self) -> Frame | None:
        """Return the next frame to write to the stream that is open, or None."""
        if not self._is_open:
            return None
        if self._at < len(self._unacked):
            seq, kept = self._unacked[self._at]
        else:
            if self._queue:
                kept = self._queue.popleft()
            elif self._work and not self.is_held and self.credit > 0:
                kept = self._work.popleft()
                self.credit -= 1
                self._under_way.add(id(kept.body))
            else:
                return None
            self.sent_seq += 1
            seq = self.sent_seq
            self._unacked.append((seq, kept))
        self._at += 1
        self.acked = self.received_seq
        return Frame(seq, self.acked, kept.body)

    def take_ack(self, *, is_due: bool = False) -> Frame | None:
        """Return a frame that acknowledges alone, where enough was received, or anything and `is_due` says so."""
        behind = self.received_seq - self.acked
        if not self._is_open or behind < (1 if is_due else ACK_EVERY):
            return None
        self.acked = self.received_seq
        return Frame(0, self.acked, None)

    def received(self, seq: int, ack: int) -> bool:
        """Note a frame; return whether it is to be handled. Raises ProtocolBroken for what cannot be."""
        if ack > self.sent_seq:
            raise ProtocolBroken(f"frame {ack} was acknowledged, and {self.sent_seq} was the last that was sent")
        self._forget(ack)
        if seq == 0:
            return True
        if seq > self.received_seq + 1:
            raise ProtocolBroken(f"frame {seq} came after frame {self.received_seq}")
        if seq <= self.received_seq:
            return False
        self.received_seq = seq
        return True

    def given(self, frames: int) -> None:
        """Note a Credit frame; more than the window is not believed."""
        self.credit = min(self.credit + frames, self.window)

    def answered(self, body: Any) -> None:
        """Note that a piece of work has its (last) answer."""
        self._under_way.discard(id(body))

    def broken(self) -> None:
        """Note that the stream has ended."""
        self._is_open = self.is_held = False
        self._at = 0

    def resumed(self, received: int, credit: int) -> None:
        """Go on with the session: send again what the other side has not received. Raises ProtocolBroken."""
        if received > self.sent_seq or (self._unacked and received < self._unacked[0][0] - 1):
            raise ProtocolBroken(f"frame {received} was received last, says the sidecar, and that cannot be")
        self._forget(received)
        self._at = 0
        self.window = max(self.window, credit)
        self.credit = credit - sum(kept.is_work for _, kept in self._unacked)
        self._is_open = True

    def begun(self, session: str, credit: int) -> None:
        """Begin a new session: all that an earlier one has sent is forgotten, what waited still waits."""
        self.session = session
        self.received_seq = self.sent_seq = self.acked = self._at = 0
        self._bytes -= sum(kept.bytes for _, kept in self._unacked)
        self._unacked.clear()
        self._under_way.clear()
        self.window = self.credit = credit
        self._is_open = True

    def clear(self) -> None:
        """Forget what waits too: whoever offered it will offer it again."""
        self._bytes -= sum(kept.bytes for kept in (*self._queue, *self._work))
        self._queue.clear()
        self._work.clear()

    def _forget(self, ack: int) -> None:
        while self._unacked and self._unacked[0][0] <= ack:
            self._bytes -= self._unacked.popleft()[1].bytes
            self._at = max(0, self._at - 1)
