"""A sidecar whose policy asks people, before servers of the official SDKs: what tests of held tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.approvals.keys import hash_of, new_key
from meshd.approvals.state import State

if TYPE_CHECKING:
    from meshd.approvals.record import Approval
    from tests.proxy.harness import Mesh

ANA = new_key()
WORKFLOW = {"x-meshd-workflow": "w1"}


def document(name: str, port: int, kind: str, dialect: str, rule: str = "", agent: str = "researcher") -> str:
    return (
        f"agent: {agent}\n"
        f'approvers: {{ana: {{key: "sha256:{hash_of(ANA)}"}}}}\n'
        f'upstreams: {{{name}: {{url: "http://127.0.0.1:{port}", kind: {kind}, '
        f"dialect: {dialect}, discover: false}}}}\n"
        f"rules: [{{name: careful, match: {{kind: {kind}}}, approval: {{{rule}}}}}]\n"
    )


async def pending(mesh: Mesh) -> list[Approval]:
    assert mesh.desk is not None
    return await mesh.desk.list(State.PENDING, 100)


async def decide(mesh: Mesh, *, is_allowed: bool = True, reason: str = "not on a Friday") -> Approval:
    """Decide on the one approval that is pending."""
    assert mesh.desk is not None
    (asked,) = await pending(mesh)
    return await mesh.desk.decide(asked.id, ANA, approver="", is_allowed=is_allowed, reason=reason)


def state_of(task: Any) -> str:
    """The state of an A2A task, as the SDK names it."""
    from a2a.types import TaskState

    return TaskState.Name(task.status.state).removeprefix("TASK_STATE_")
