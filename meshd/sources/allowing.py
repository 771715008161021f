"""What an agent may be shown of the catalogue: what the policy would let it call, and nothing that nobody here can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind, Target
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.filters.globs import names

if TYPE_CHECKING:
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

_METHODS: Final = {Sort.TOOL: "tools/call", Sort.PROMPT: "prompts/get", Sort.RESOURCE: "resources/read"}


def may_call(policy: Policy, agent: str, entry: Entry) -> bool:
    """Say whether AllowList would let `agent` call an entry, by all that is known before a call is there.

    A rule for operations that only a call has (a path, a model's endpoint) judges that call, not this.
    """
    upstream = policy.upstreams.get(entry.owner)
    if upstream is None:
        return False
    tool = entry.name if entry.sort is Sort.TOOL and upstream.dialect == "mcp" else ""
    operation = _METHODS.get(entry.sort, "") if upstream.dialect == "mcp" else _operation(entry)
    model = entry.name if entry.sort is Sort.MODEL else ""
    if not tool and upstream.kind is Kind.TOOL:
        tool = upstream.name
    plan = policy.plan(Target(upstream.kind, upstream.name, model), agent, operation, tool)
    allow: AllowSettings | None = plan.allow
    return allow is None or allow.is_shadow or _is_allowed(allow, upstream, entry)


def _operation(entry: Entry) -> str:
    if entry.origin is Origin.REFLECTION:
        return entry.name
    return entry.title if entry.origin is Origin.OPENAPI else ""


def _is_allowed(allow: AllowSettings, upstream: Upstream, entry: Entry) -> bool:
    if allow.denied is not None:
        return False
    if allow.targets is not None and not names(allow.targets).admits(upstream.name):
        return False
    if upstream.kind is Kind.LLM:
        return entry.sort is not Sort.MODEL or allow.models is None or names(allow.models).admits(entry.name)
    if upstream.kind is Kind.HOST:
        return allow.hosts is None or names(allow.hosts).admits(upstream.host)
    if allow.tools is None:
        return True
    if upstream.dialect == "mcp":
        return entry.sort is not Sort.TOOL or names(allow.tools).admits(entry.name)
    return upstream.kind is not Kind.TOOL or names(allow.tools).admits(upstream.name)
