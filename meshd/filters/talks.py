"""Talks: an A2A message that goes on with a context or a task belongs to the workflow in which that began.

Where no token, no run and no name says otherwise: then this is evidence as good as an id that a model made and that was
relayed. It is inferred, so it restricts and is charged, and nothing is granted for it. A talk that was seen in two
workflows says nothing any more. Who calls from outside goes on only with what it began itself.

Everything here is bounded and lives in memory.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction
from meshd.claims.keys import caller_of
from meshd.dialects.a2a_answers import AnswerIds
from meshd.dialects.a2a_tasks import SENDS

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.outcome import Outcome
    from meshd_sdk.context import Context

TALKS_MAX: Final = 16_384
"""Contexts and tasks that are remembered, some 300 bytes each."""
KEPT_S: Final = 86_400.0
"""For which one is remembered after its last message: people answer slowly."""
HEARD_BYTES_MAX: Final = 65_536
"""Of an answer in which the ids of its context and task are looked for."""

_INBOUND: Final = Direction.INBOUND
Key = tuple[str, str, str]
"""With whom, of what sort (`context` or `task`), and its id."""


class Talk:
    """One context or task."""

    __slots__ = ("context", "last_s")

    def __init__(self, context: Context | None, last_s: float) -> None:
        self.context = context
        """In which it was seen; None once there was more than one workflow."""
        self.last_s = last_s


class Talks:
    """What one sidecar knows of them."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[Key, Talk] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, call: Call) -> Context | None:
        """Return the context of the workflow in which a call goes on; None where that is not known."""
        rpc: Any = call.rpc
        found: Context | None = None
        for key in _keys(_whom(call), rpc.context_id, rpc.task_id):
            talk = self._by_key.get(key)
            if talk is None or call.now_s - talk.last_s > KEPT_S:
                continue
            context = talk.context
            if context is None or (context.deadline_s is not None and context.deadline_s <= call.wall_s):
                return None
            if found is not None and found.workflow != context.workflow:
                return None
            found = context
        return found

    def begin(self, call: Call, context: Context) -> Hearing | None:
        """A call belongs to this workflow: note what it names; return what hears the rest, None where nobody has to."""
        rpc: Any = call.rpc
        whom = _whom(call)
        self.note(whom, rpc.context_id, rpc.task_id, context, call.now_s)
        if rpc.method not in SENDS or (rpc.context_id and rpc.task_id):
            return None
        return Hearing(self, whom, context, call.now_s, is_stream=rpc.is_stream, is_grpc=rpc.binding == "grpc")

    def note(self, whom: str, context_id: str, task_id: str, context: Context, now_s: float) -> None:
        """Remember that these ids were said in a workflow."""
        by_key = self._by_key
        for key in _keys(whom, context_id, task_id):
            talk = by_key.pop(key, None)
            if talk is None or now_s - talk.last_s > KEPT_S:
                if len(by_key) >= TALKS_MAX:
                    del by_key[next(iter(by_key))]
                talk = Talk(context, now_s)
            elif talk.context is not None and talk.context.workflow != context.workflow:
                talk.context = None
            talk.last_s = now_s
            by_key[key] = talk


class Hearing:
    """Hears in an answer which context and task its agent made. Also the ticket by which its end is learned."""

    __slots__ = ("_context", "_ids", "_now_s", "_size", "_talks", "_whom")

    def __init__(
        self, talks: Talks, whom: str, context: Context, now_s: float, *, is_stream: bool, is_grpc: bool
    ) -> None:
        self._talks: Talks | None = talks
        self._whom = whom
        self._context = context
        self._now_s = now_s
        self._ids: AnswerIds | None = AnswerIds(HEARD_BYTES_MAX, is_stream=is_stream, is_grpc=is_grpc)
        self._size = 0

    def hear(self, data: bytes) -> None:
        """Take a piece of the answer. Of a stream the first event is read at once: its client may go on before its
        end."""
        if self._ids is None:
            return
        self._size += len(data)
        if self._size > HEARD_BYTES_MAX:
            self._ids = None
        else:
            self._note(self._ids.feed(data))

    def settle(self, outcome: Outcome) -> None:
        """The answer is over, or will never come."""
        if self._ids is not None and self._size:
            self._note(self._ids.end())
        self._ids = self._talks = None

    def _note(self, found: tuple[str, str] | None) -> None:
        if found is not None and self._talks is not None:
            self._talks.note(self._whom, *found, self._context, self._now_s)
            self._ids = None


def _whom(call: Call) -> str:
    if call.direction is _INBOUND:
        return f"<{caller_of(call)}"
    if not call.credentials:
        return call.target.name
    # Several may call through one sidecar: who has other credentials with an agent is another to it, and here.
    secret = sha256(b"\n".join([value for _, value in call.credentials])).hexdigest()
    return f"{call.target.name}?{secret}"


def _keys(whom: str, context_id: str, task_id: str) -> list[Key]:
    found: list[Key] = [(whom, "task", task_id)] if task_id else []
    if context_id:
        found.append((whom, "context", context_id))
    return found
