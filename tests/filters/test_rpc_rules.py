"""What rules see of an MCP or A2A call: the tool and the method, where the policy says that the upstream speaks so."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import Call, Rpc
from meshd.filters.allow_list import AllowList
from meshd.filters.routing import Routing
from meshd.policy.compiled import Policy
from meshd.refusal import Refused
from tests.filters.calls import call, policy

UPSTREAMS = """
upstreams:
  openai: {url: "https://api.openai.com", kind: llm, dialect: openai}
  tools: {url: "http://127.0.0.1:9001", kind: tool, dialect: mcp}
  helper: {url: "http://127.0.0.1:9002", kind: agent, dialect: mcp}
  writer: {url: "http://127.0.0.1:9003", dialect: a2a}
  billing: {url: "http://127.0.0.1:9004", kind: tool}
  other: {url: "http://127.0.0.1:9005", kind: tool}
"""


def of(text: str) -> Policy:
    return policy(text, UPSTREAMS)


def asked(of: Policy, target: str, rpc: Rpc | None = None, **fields: Any) -> Call:
    made = call(target, of=of, path="/mcp", **fields)
    made.rpc = rpc
    return made


def tool(name: str) -> Rpc:
    return Rpc("mcp", "tools/call", b"1", tool=name, arguments=b"{}")


def rules_of(routing: Routing, made: Call) -> tuple[str, ...]:
    routing.admit(made)
    return tuple(made.plan.rules)


def test_which_rules_fit() -> None:
    document = of(
        """rules:
  - {name: deleting, match: {tool: "delete_*"}, deny: x}
  - {name: any-tool, match: {tool: "*"}, breaker: {consecutive: 3}}
  - {name: calls, match: {operation: tools/call}, retry: {attempts: 0}}
  - {name: bills, match: {tool: billing}, approval: {required: false}}
  - {name: sends, match: {operation: "message/*"}, deny: y}
"""
    )
    routing = Routing()
    # Twice, since the second is answered from what was remembered.
    for _ in range(2):
        assert rules_of(routing, asked(document, "tools", tool("delete_all"))) == ("deleting", "any-tool", "calls")
        assert rules_of(routing, asked(document, "tools", tool("list_all"))) == ("any-tool", "calls")
        assert rules_of(routing, asked(document, "helper", tool("delete_all"))) == ("deleting", "any-tool", "calls")
        assert rules_of(routing, asked(document, "tools", Rpc("mcp", "tools/list", b"1"))) == ()
        assert rules_of(routing, asked(document, "tools", None, method="GET")) == ()
        assert rules_of(routing, asked(document, "billing")) == ("any-tool", "bills")
        assert rules_of(routing, asked(document, "other")) == ("any-tool",)
        assert rules_of(routing, asked(document, "writer", Rpc("a2a", "message/send", b"1"))) == ("sends",)
        assert rules_of(routing, asked(document, "writer", Rpc("a2a", "tasks/get", b"1"))) == ()
        assert rules_of(routing, asked(document, "openai")) == ()


def test_what_only_the_caller_says_decides_nothing() -> None:
    document = of(
        """rules:
  - {name: lifted, match: {tool: harmless}, approval: {required: false}}
  - {name: closed, match: {tool: billing}, deny: x}
  - {name: posts, match: {target: [billing], operation: "POST /mcp"}, retry: {attempts: 0}}
"""
    )
    # As `billing` has no dialect in the policy, its calls stay POSTs to billing, whatever their bodies say.
    assert rules_of(Routing(), asked(document, "billing", tool("harmless"))) == ("closed", "posts")


TOOLS = of('governance: {allowed_tools: ["add", "other"]}')


@pytest.mark.parametrize(
    ("target", "rpc", "method", "is_allowed"),
    [
        ("tools", tool("add"), "POST", True),
        ("tools", tool("delete"), "POST", False),
        ("tools", Rpc("mcp", "tools/list", b"1"), "POST", True),
        ("tools", Rpc("mcp", "notifications/initialized"), "POST", True),
        ("tools", None, "GET", True),
        ("tools", None, "DELETE", True),
        ("tools", None, "PUT", False),
        ("helper", tool("add"), "POST", True),
        ("helper", tool("delete"), "POST", False),
        ("writer", Rpc("a2a", "message/send", b"1"), "POST", True),
        ("billing", tool("add"), "POST", False),
        ("billing", Rpc("mcp", "ping", b"1"), "POST", False),
        ("billing", None, "POST", False),
        ("other", tool("delete"), "POST", True),
        ("other", None, "POST", True),
    ],
)
def test_the_allowed_tools(target: str, rpc: Rpc | None, method: str, is_allowed: bool) -> None:
    routing, allow_list = Routing(), AllowList()
    # Before and after calls to the same target that are allowed: nothing that was found for one holds for the other.
    for first in (Rpc("mcp", "tools/list", b"1"), None):
        if first is not None or target in ("tools", "helper"):
            before = asked(TOOLS, target, first, method="GET" if first is None else "POST")
            routing.admit(before)
            try:
                allow_list.admit(before)
            except Refused:
                assert target == "billing"
        made = asked(TOOLS, target, rpc, method=method)
        routing.admit(made)
        if is_allowed:
            allow_list.admit(made)
        else:
            with pytest.raises(Refused, match="is not allowed"):
                allow_list.admit(made)
