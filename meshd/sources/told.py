"""What is known without asking: the policy's own words, and what an agent says of itself by the SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import Kind
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.sources.asking import json_of

if TYPE_CHECKING:
    from meshd.discovery.told import Told
    from meshd.upstream import Upstream


def told_entries(upstream: Upstream, told: Told) -> list[Entry]:
    """Return what the policy says of an upstream."""
    name = upstream.name
    found = [
        Entry(Sort.TOOL, name, tool, description, origin=Origin.POLICY, version=told.version)
        for tool, description in told.tools
    ]
    found += [Entry(Sort.MODEL, name, model, told.description, origin=Origin.POLICY) for model in told.models]
    is_described = bool(told.description or told.intents)
    if upstream.kind is Kind.AGENT and (is_described or told.version):
        sort = Sort.AGENT
    elif upstream.kind is Kind.TOOL and is_described and not told.tools and upstream.dialect == "plain":
        sort = Sort.TOOL
    else:
        return found
    own = Entry(sort, name, name, told.description, origin=Origin.POLICY, version=told.version, intents=told.intents)
    return [own, *found]


def agent_entries(agent: Any) -> list[Entry]:
    """Return what an agent says of itself: a `meshd.v1.Agent`."""
    name = agent.name
    found = [
        Entry(
            Sort.AGENT,
            name,
            name,
            agent.description,
            origin=Origin.SESSION,
            version=agent.version,
            intents=tuple(agent.intents),
        )
    ]
    found += [
        Entry(
            Sort.TOOL,
            name,
            tool.name,
            tool.description,
            origin=Origin.SESSION,
            version=tool.version or agent.version,
            input_schema=tool.input_schema.encode(),
            output_schema=tool.output_schema.encode(),
            annotations=json_of({"readOnlyHint": tool.is_read_only, "idempotentHint": tool.is_idempotent}),
        )
        for tool in agent.tools
    ]
    return found
