"""Hearsay: what an A2A agent's answer says that it has spent, heard as it passes.

What is said of a task is the sum so far, whoever asks for it: so each task is remembered with what was charged for it,
and only what is more is charged again. An agent cannot give tokens back so: what is less says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction, Usage
from meshd.dialects.a2a_frames import Frames
from meshd.dialects.a2a_frames import is_read as is_frame_read
from meshd.dialects.a2a_tasks import METHODS, SENDS
from meshd.dialects.a2a_usage import READ_BYTES_MAX, Events, Reports

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call, ReplyHead
    from meshd.dialects.a2a_usage import Tokens

TASKS_MAX: Final = 16_384
"""That are remembered, some 200 bytes each."""
COUNTED: Final = b"x-meshd-usage"
"""Reply field: the sidecar that sent it counts what the answer reports, so that whoever comes after it does not."""

_GRPC: Final = "grpc"
_INBOUND: Final = Direction.INBOUND
_HEARD: Final = SENDS | METHODS
_PLAIN: Final = frozenset({b"", b"identity"})
_NOTHING: Final = (0, 0)


class Tasks:
    """What tasks have reported so far."""

    __slots__ = ("_known", "_malformed")

    def __init__(self, malformed: Callable[[Call, bytes], None] | None = None) -> None:
        """`malformed` is told of a call whose answer reports what is no number of tokens."""
        self._known: dict[tuple[str, str], Tokens] = {}
        self._malformed = malformed

    def __len__(self) -> int:
        return len(self._known)

    def may_report(self, call: Call) -> bool:
        """Say whether an answer to a call is one that reports, and is to be believed."""
        rpc = call.rpc
        if rpc is None or rpc.protocol != "a2a" or rpc.method not in _HEARD:
            return False
        if rpc.binding == _GRPC and not is_frame_read(rpc.method):
            return False
        return call.upstream is None or call.upstream.charges_usage is not False

    def listen(self, call: Call) -> Hearsay:
        """Hear the answer to a call, beside whoever hears it already."""
        call.reply_heard_by = hearsay = Hearsay(self, call)
        return hearsay

    def more(self, call: Call, reports: Reports) -> Usage | None:
        """Return what an answer reports beyond what is known of its task; None where that is nothing."""
        rpc: Any = call.rpc
        if reports.bad and self._malformed is not None:
            self._malformed(call, reports.bad)
        id = reports.task_id or rpc.task_id
        key = (call.target.name, id)
        known = self._known.pop(key, _NOTHING) if id else _NOTHING
        more = reports.more_than(known, is_new=rpc.method in SENDS)
        now = known[0] + more[0], known[1] + more[1]
        if id and now != _NOTHING:
            if len(self._known) >= TASKS_MAX:
                del self._known[next(iter(self._known))]
            self._known[key] = now
        return Usage(*more) if more != _NOTHING else None


class Hearsay:
    """Hears one answer."""

    __slots__ = ("_before", "_body", "_call", "_events", "_frames", "_reports", "_size", "_tasks")

    def __init__(self, tasks: Tasks, call: Call) -> None:
        self._tasks = tasks
        self._call = call
        self._before = call.reply_heard_by
        """Who hears it besides."""
        self._reports: Reports | None = None
        """None where nothing is read: there is no answer yet, or it is none that could be charged."""
        self._events: Events | None = None
        self._frames: Frames | None = None
        self._body: list[bytes] = []
        self._size = 0

    def begin(self, head: ReplyHead) -> None:
        """The answer begins: say whether it can be read, and claim what it reports."""
        kind = encoding = b""
        for name, value in head.headers:
            if name == COUNTED:
                return
            if name == b"content-type":
                kind = value
            elif name == b"content-encoding":
                encoding = value.strip().lower()
        if not 200 <= head.status < 300 or encoding not in _PLAIN:
            return
        call = self._call
        upstream = call.upstream
        charges = None if upstream is None else upstream.charges_usage
        # Whoever stands behind a sidecar calls its models through that, where they are charged already.
        is_behind = call.direction is _INBOUND or (upstream is not None and upstream.is_peer)
        self._reports = Reports(is_any=not is_behind if charges is None else charges)
        rpc: Any = call.rpc
        if rpc.binding == _GRPC:
            self._frames = Frames(rpc.method)
        elif kind[:17].lower() == b"text/event-stream":
            self._events = Events()
        call.reply_headers.append((COUNTED, b"counted"))

    def hear(self, data: bytes) -> None:
        """Take a piece of the answer."""
        if self._before is not None:
            self._before.hear(data)
        reports = self._reports
        if reports is None:
            return
        if self._frames is not None:
            self._frames.feed(data, reports)
            return
        if self._events is not None:
            for raw in self._events.feed(data):
                reports.take_event(raw)
            return
        self._size += len(data)
        if self._size <= READ_BYTES_MAX:
            self._body.append(bytes(data))
        else:
            self._body.clear()

    def end(self) -> Usage | None:
        """The answer is over, or will never come: return what is to be charged for it."""
        call = self._call
        call.reply_heard_by = self._before
        reports, self._reports = self._reports, None
        if reports is None:
            return None
        if self._events is not None:
            reports.take_event(self._events.rest())
        elif self._body:
            reports.take_body(b"".join(self._body))
            self._body.clear()
        return self._tasks.more(call, reports)
