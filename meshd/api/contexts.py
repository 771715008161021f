"""ContextService: open a workflow, read a token, narrow one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meshd.api.fields import AGENT, WORKFLOW, checked_amount, malformed, seconds, shown, whole_ms
from meshd.refusal import Reason, Refused
from meshd_sdk.context import HOPS_MAX, NO_CEILING, Context
from meshd_sdk.trace_context import parse_traceparent
from meshd_sdk.v1 import context_pb2

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh


class ContextService:
    """Answers for meshd.v1.ContextService."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def open(self, request: context_pb2.OpenRequest) -> context_pb2.OpenResponse:
        """Open a workflow under its account, as the header `x-meshd-workflow` does. Raises Refused."""
        mesh, policy = self._mesh, self._mesh.policy
        agent = request.agent or mesh.agent
        if AGENT.match(agent) is None:
            raise malformed("agent", "1 to 64 letters, digits, dots, dashes or underscores")
        if request.workflow and WORKFLOW.match(request.workflow) is None:
            raise malformed("workflow", "1 to 64 letters, digits, dots, dashes, underscores or colons")
        if not policy.limits.names_workflows:
            raise Refused(
                Reason.NOT_ALLOWED,
                "The policy lets no caller open workflows (limits.names_workflows: false): start the agent with "
                "`meshd exec`, or act in the context of the call that it answers.",
            )
        if not mesh.is_beside(agent):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"No agent {agent} has a place at this sidecar, which stands beside {mesh.agent}: open a session "
                "under that name first, or make it an upstream of kind agent in the policy.",
            )
        workflow = request.workflow or "wf-" + os.urandom(12).hex()
        context = Context(
            workflow,
            agent,
            deadline_s=self._deadline_s(request, policy.limits.deadline_s),
            account="workflow/" + workflow,
            parent=_parent(request.traceparent),
            **_ceilings(request),
        )
        return context_pb2.OpenResponse(context=shown(context, mesh.issue(context, agent)))

    def _deadline_s(self, request: context_pb2.OpenRequest, policy_s: float | None) -> float | None:
        asked_s = seconds("timeout", request.timeout) if request.HasField("timeout") else None
        found = [one for one in (asked_s, policy_s) if one is not None]
        return whole_ms(self._mesh.wall_clock() + min(found)) if found else None

    async def read(self, request: context_pb2.ReadRequest) -> context_pb2.ReadResponse:
        """Say what a token says. Raises Refused(CONTEXT_INVALID)."""
        return context_pb2.ReadResponse(context=shown(self._mesh.read(request.token), request.token))

    async def narrow(self, request: context_pb2.NarrowRequest) -> context_pb2.NarrowResponse:
        """Return a token that allows less. Raises Refused, MALFORMED for whatever would allow more."""
        mesh = self._mesh
        context = mesh.read(request.token)
        changes: dict[str, Any] = {}
        if request.HasField("hops"):
            if not context.hops <= request.hops <= HOPS_MAX:
                raise malformed("hops", f"from the token's own {context.hops} to {HOPS_MAX}")
            changes["hops"] = request.hops
        if request.HasField("timeout"):
            deadline_s = whole_ms(mesh.wall_clock() + seconds("timeout", request.timeout))
            if context.deadline_s is not None and deadline_s > context.deadline_s:
                raise malformed("timeout", "no longer than what the token leaves")
            changes["deadline_s"] = deadline_s
        changes |= _narrowed(request, context)
        if request.keeps_memory_listed:
            if not set(request.memory) <= set(context.memory):
                raise malformed("memory", "references that the token holds")
            changes["memory"] = tuple(request.memory)
        narrowed = replace(context, **changes)
        return context_pb2.NarrowResponse(context=shown(narrowed, mesh.issue(narrowed, "")))


def _parent(traceparent: str) -> str:
    if not traceparent:
        return ""
    found = parse_traceparent(traceparent)
    if found is None:
        raise malformed("traceparent", "a W3C traceparent")
    return str(found)


def _ceilings(request: context_pb2.OpenRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if request.HasField("ceiling_tokens"):
        found["ceiling"] = checked_amount("ceiling_tokens", request.ceiling_tokens)
    if request.HasField("ceiling_microdollars"):
        found["ceiling_microdollars"] = checked_amount("ceiling_microdollars", request.ceiling_microdollars)
        found.setdefault("ceiling", NO_CEILING)
    return found


def _narrowed(request: context_pb2.NarrowRequest, context: Context) -> dict[str, int]:
    found: dict[str, int] = {}
    if request.HasField("ceiling_tokens"):
        tokens = checked_amount("ceiling_tokens", request.ceiling_tokens)
        if context.ceiling is not None and tokens > context.ceiling:
            raise malformed("ceiling_tokens", f"at most the token's own {context.ceiling}")
        found["ceiling"] = tokens
    if request.HasField("ceiling_microdollars"):
        money = checked_amount("ceiling_microdollars", request.ceiling_microdollars)
        own = context.ceiling_microdollars
        if own is not None and money > own:
            raise malformed("ceiling_microdollars", f"at most the token's own {own}")
        found["ceiling_microdollars"] = money
        if context.ceiling is None and "ceiling" not in found:
            found["ceiling"] = NO_CEILING
    return found
