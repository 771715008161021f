"""Approvals as the daemon puts them together: the desk, whom it tells, its trace and its metrics."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING, Any

from meshd.approvals.carrying import Carrying
from meshd.approvals.desk import Desk
from meshd.approvals.held_calls import HeldCalls
from meshd.approvals.notices import Notices
from meshd.approvals.state import State
from meshd.refusal import Refused
from meshd.telemetry import metrics, redact
from meshd.telemetry.series import Histogram
from meshd.telemetry.sources import ApprovalReading
from meshd_sdk.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.api.mesh import Mesh
    from meshd.approvals.record import Approval
    from meshd.ledger import Ledger
    from meshd.policy.compiled import Policy

log = logging.getLogger("meshd.approvals")


async def _post(settings: Any, body: bytes, id: str, now_s: float) -> None:
    """Send a notice to a webhook; see its module, which is imported, in a thread, with the first one: few have any."""
    webhook = await asyncio.to_thread(importlib.import_module, "meshd.approvals.webhook")
    await webhook.post(settings, body, id, now_s)


class Approving:
    """One for the process."""

    def __init__(
        self, ledger: Callable[[], Ledger], policy: Callable[[], Policy], bus: Any, *, sidecar: str = ""
    ) -> None:
        """`ledger` and `policy` return those of the moment; `bus` is a Bus, or None."""
        self.desk = Desk(lambda: ledger().store(), policy, clean=redact.argument, told=self._changed, sidecar=sidecar)
        self.carrying = Carrying(
            HeldCalls(self.desk.shelf), self.desk.clock, lambda: (ledger().holder, ledger().started.epoch)
        )
        """The calls that were answered with a task; `send` is set once there is a proxy."""
        self.notices = Notices(self.desk, lambda: policy().approvals, bus, _post)
        self.held = Histogram(metrics.SECONDS_BUCKETS)
        """For how many seconds calls were held."""
        self.mesh: Mesh | None = None
        """Where traces are kept, once that is there."""

    def start(self, mesh: Mesh) -> None:
        """Begin to tell people, and to note what expires, in the traces that `mesh` keeps."""
        self.mesh = mesh
        self.notices.start()

    def read(self) -> ApprovalReading:
        """Return what a scrape shows."""
        now_s = self.desk.clock()
        return ApprovalReading(
            pending=sum(1 for expires_s in self.desk.pending.values() if now_s < expires_s),
            held=len(self.desk.line),
            results=tuple(self.desk.tally.results.items()),
            held_seconds=self.held,
            keys_refused=self.desk.guard.refused,
            told=self.notices.sent,
            untold=self.notices.failed,
        )

    def _changed(self, approval: Approval) -> None:
        self.notices.tell(approval)
        self.carrying.closed(approval)
        fields = {"approval": approval.id, "workflow": approval.workflow, "agent": approval.agent}
        if approval.state is State.PENDING and not approval.decisions:
            log.warning("a person must decide: %s (%s)", approval.summary, approval.id, extra={"fields": fields})
        if self.mesh is not None:
            from meshd.api.traces import trace_service

            try:
                context = Context(approval.workflow, approval.agent, account=approval.workflow)
                trace_service(self.mesh).take(context, [entry_of(approval, self.desk.clock())])
            except Refused as refused:
                log.warning("the approval %s is missing in its trace: %s", approval.id, refused.message)

    async def close(self) -> None:
        """Stop; what is owed is told at the next start."""
        await self.carrying.close()
        await self.notices.close()
        await self.desk.close()


def entry_of(approval: Approval, now_s: float) -> Any:
    """Return the entry of an approval in its workflow's trace: that it is asked, or what was decided by whom."""
    # Protobuf costs megabytes: it is loaded when somebody speaks it, or when there is an entry to write.
    from google.protobuf.timestamp_pb2 import Timestamp

    from meshd_sdk.v1 import trace_pb2

    began = Timestamp()
    began.FromNanoseconds(int(now_s * 1e9))
    step = f"{approval.state.value}-{len(approval.decisions)}"
    attributes = {"approval": approval.id, "digest": approval.digest, "call": approval.call}
    if approval.used_by:
        attributes["used_by"] = approval.used_by
    decision = trace_pb2.Decision(
        question=approval.summary[:1024],
        choice=approval.state.value,
        options=[] if approval.decisions else ["approved", "denied"],
        rationale=_reasons(approval)[:4096],
    )
    return trace_pb2.TraceEntry(
        id=f"approval-{approval.id}-{step}", began=began, attributes=attributes, decision=decision
    )


def _reasons(approval: Approval) -> str:
    said = [
        f"{one.approver} {'allows' if one.is_allowed else 'denies'}{f': {one.reason}' if one.reason else ''}"
        for one in approval.decisions
    ]
    return "; ".join(said) or approval.cancelled_for or approval.why
