"""The caller of an A2A stream that is held is shown a task: that a person must allow it, and then what the agent says.

A stream is of one task. The one that its caller was shown first is ours, so what the agent says later (a message, a
task of its own, events of that) is said as events of ours; what was said in all is kept for whoever asks for the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.approvals.state import State
from meshd.dialects import a2a_tasks
from meshd.dialects.held_task import HeldTask, Stage, decoded, rpc_answer
from meshd.dialects.jsonrpc import event
from meshd.proxy.holding import HeldCaller
from meshd.proxy.recording import Nobody
from meshd.refusal import Reason, Refused
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.proxy.caller import Caller

KEPT_BYTES_MAX: Final = 1 << 20
"""Of what is said in a stream, for whoever asks for its task later; and of a plain answer, which must be read whole."""
_TOO_LONG: Final = "The answer was longer than is kept."


class HeldTaskCaller(HeldCaller):
    """A `HeldCaller` whose caller is shown a task."""

    __slots__ = ("_exchange", "_folded", "_folded_bytes", "_is_old", "_splitter", "_task")

    def __init__(self, call: Call, caller: Caller, now_s: float, *, is_begun: bool = False) -> None:
        super().__init__(call, caller, now_s, is_begun=is_begun)
        self._task: HeldTask = call.holding.task
        rpc: Any = call.rpc
        self._is_old = a2a_tasks.is_old(rpc.method)
        self._splitter: Splitter | None = None
        self._folded: dict[str, Any] = {}
        self._folded_bytes = 0
        self._exchange: Any = None
        """The call, once its caller has hung up: it goes on for whoever asks for the task."""
        self._say(a2a_tasks.event_of(self._task, is_old=self._is_old, is_first=True))

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        """See `Caller`: whatever the agent answers is said in events of our task."""
        self._begin(status, headers, has_body=has_body)
        self._splitter = Splitter()
        self._stand(Stage.RUNNING, "It was allowed.")

    def leave(self, exchange: Any) -> None:
        """The caller has hung up; what is said is still kept."""
        self._caller = Nobody(self.peer)
        self._exchange = exchange

    def send_data(self, data: bytes) -> None:
        if self.is_over:
            return
        if not self.is_streaming:
            if self._body_bytes <= KEPT_BYTES_MAX:
                self._collect(data)
            return
        assert self._splitter is not None
        try:
            for raw in self._splitter.feed(data):
                self._said(data_of(raw))
        except EventTooLarge:
            self.abort()

    def send_end(self, trailers: Headers) -> None:
        if self.is_over:
            return
        if self.is_failing:
            self._stand(Stage.FAILED, self._failure())
        elif not self.is_streaming:
            if self._body_bytes > KEPT_BYTES_MAX:
                self._stand(Stage.FAILED, _TOO_LONG)
            else:
                self._said(self._collected())
        self._finish()
        self._close(trailers)

    def abort(self) -> None:
        """See `HeldCaller`: whoever asks for the task is told too."""
        if self.is_streaming:
            words = f"The reply of {self._call.target.name} broke off"
            self._folded, self._folded_bytes = {"error": {"code": -32603, "message": words}}, 0
            self._finish()
        super().abort()

    def refuse(self, refused: Refused) -> None:
        """Take a refusal as it is: it says where the task stands."""
        if self.is_over:
            return
        stage = Stage.FAILED
        if refused.reason is Reason.APPROVAL_DENIED:
            approval = self._call.holding.approval
            is_cancelled = approval is not None and approval.state is State.CANCELLED
            stage = Stage.CANCELLED if is_cancelled else Stage.DENIED
        elif refused.reason is Reason.APPROVAL_PENDING:
            stage = Stage.WAITING
        elif refused.is_retryable and not self._call.is_forwarded:
            # The task goes on: its caller can ask for it, here or at another sidecar.
            approval = self._call.holding.approval
            stage = Stage.RUNNING if approval is not None and approval.state is State.USED else Stage.WAITING
        self._stand(stage, refused.message)
        if stage is Stage.FAILED:
            self._finish()
        self._close([])

    # ------------------------------------------------------------------ within

    def _say(self, result: dict[str, Any]) -> None:
        rpc: Any = self._call.rpc
        self._caller.send_data(event(rpc_answer(rpc.id, result)))

    def _stand(self, stage: Stage, words: str) -> None:
        task = self._task._replace(stage=stage, words=words)
        self._say(a2a_tasks.event_of(task, is_old=self._is_old, is_first=False))
        if stage is Stage.FAILED:
            self._folded = {"error": {"code": -32603, "message": words}}

    def _said(self, raw: bytes) -> None:
        """Pass one message of the agent's on."""
        message = decoded(raw) if raw else None
        if not isinstance(message, dict):
            return
        result = message.get("result")
        if isinstance(result, dict):
            self._folded_bytes += len(raw)
            if self._folded_bytes <= KEPT_BYTES_MAX:
                self._folded = a2a_tasks.folded(self._folded, result)
            elif self._exchange is not None and self._exchange.attempt is not None:
                self._finish()
                self._exchange.attempt.give_up()
                return
            for one in a2a_tasks.events_of(self._task, result, is_old=self._is_old):
                self._say(one)
        elif "error" in message:
            error = message["error"]
            words = error.get("message") if isinstance(error, dict) else None
            self._stand(Stage.FAILED, words if isinstance(words, str) else "The agent answered with an error")

    def _finish(self) -> None:
        """Keep what was said for whoever asks for the task."""
        over = self._call.holding.over
        if over is None:
            return
        if self._folded_bytes > KEPT_BYTES_MAX:
            self._folded = {"error": {"code": -32603, "message": _TOO_LONG}}
        if "error" in self._folded:
            over(msgspec.json.encode(self._folded), "")
        elif self._folded:
            over(*a2a_tasks.outcome_in(self._folded))
