"""HopLimit: agents that call agents come to an end, and so does their time.

Only an edge from agent to agent is a hop; an LLM or a tool is not. It is judged twice: by the caller's sidecar
before the call goes out, and by the callee's when it comes in. What stands behind another sidecar counts as an
agent, whatever its kind: that sidecar takes it for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Direction, Kind
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.limits import Limits

PATH_SHOWN_MAX: Final = 8
"""Agents at the end of the path that a message names."""

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_INBOUND: Final = Direction.INBOUND
_AGENT: Final = Kind.AGENT


class HopLimit:
    """Refuses the hop over `limits.hops` and the call past its deadline; owes nothing.

    It leaves in `call.context.deadline_s` the nearer of the workflow's deadline and the policy's for one call.
    """

    __slots__ = ()

    name = "hop_limit"

    def admit(self, call: Call) -> None:
        """Raise Refused(HOP_LIMIT) or Refused(DEADLINE)."""
        context = call.context
        limits: Limits = call.policy.limits
        if context is None:
            raise Refused(Reason.CONTEXT_INVALID, "The call has no context, so its hops cannot be judged.")
        # Below the limit one more edge cannot pass it.
        hops = hops_here(call, context) if context.hops >= limits.hops else 0
        if hops > limits.hops and (hops > context.hops or call.direction is _INBOUND):
            raise Refused(
                Reason.HOP_LIMIT,
                f"This would be hop {hops} of {_workflow(context)}, and {limits.hops} are allowed: {_path(context)}. "
                "Answer with what you have in place of asking another agent; or raise limits.hops in the policy.",
            )
        deadline_s = context.deadline_s
        if deadline_s is None and limits.deadline_s is None:
            return
        if limits.deadline_s is not None:
            latest_s = call.wall_s + limits.deadline_s
            if deadline_s is None or deadline_s > latest_s:
                deadline_s = latest_s
                call.context = _due(context, latest_s)
        if deadline_s is not None and deadline_s <= call.wall_s:
            raise Refused(
                Reason.DEADLINE,
                f"The time of {_workflow(context)} was over {call.wall_s - deadline_s:.1f} s ago. Answer with what you "
                "have; or give it more time with limits.deadline in the policy or x-meshd-deadline in the first call.",
            )

    def explain(self, call: Call) -> str:
        """Say how many hops are left, and how much time."""
        context = call.context
        if context is None:
            return "no context yet"
        hops = hops_here(call, context)
        left = "no deadline"
        if context.deadline_s is not None:
            left = f"{context.deadline_s - call.wall_s:.1f} s left"
        return f"hop {hops} of {call.policy.limits.hops}, {left}"


def hops_here(call: Call, context: codec.Context) -> int:
    """Return the hops of the workflow with this call: one more where it goes from an agent to an agent."""
    if call.direction is _INBOUND:
        # Context has counted the edge by which it came in.
        return context.hops
    is_edge = call.target.kind is _AGENT or (call.upstream is not None and call.upstream.is_peer)
    return context.hops + 1 if is_edge else context.hops


def _due(context: codec.Context, deadline_s: float) -> codec.Context:
    return codec.Context(
        context.workflow,
        context.agent,
        context.hops,
        context.path,
        deadline_s,
        context.account,
        context.ceiling,
        context.parent,
        context.memory,
        context.ceiling_microdollars,
    )


def _workflow(context: codec.Context) -> str:
    return f"workflow {context.workflow}" if context.workflow else f"the calls charged to {context.account}"


def _path(context: codec.Context) -> str:
    path = (*context.path, context.agent)
    if len(path) > PATH_SHOWN_MAX:
        path = ("...", *path[-PATH_SHOWN_MAX:])
    return " > ".join(path)
