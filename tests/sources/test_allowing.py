"""What an agent is shown is what AllowList would let it call."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.sources.allowing import may_call
from tests.proxy.harness import Mesh, until

POLICY = """
agent: ann
upstreams:
  files: {url: "http://127.0.0.1:1", dialect: mcp, discover: false}
  search: {url: "http://127.0.0.1:1", kind: tool, description: Searches.}
  billing: {url: "http://127.0.0.1:1", kind: tool, tools: {refund: Refund., charge: Charge.}}
  bob: {url: "http://127.0.0.1:1", kind: agent, description: Helps.}
  llm: {url: "http://127.0.0.1:1", kind: llm, dialect: openai, models: [small, large]}
rules:
"""


def entry(owner: str, name: str, sort: Sort = Sort.TOOL, origin: Origin = Origin.MCP, title: str = "") -> Entry:
    return Entry(sort, owner, name, title=title, origin=origin)


READ, WRITE = entry("files", "read_file"), entry("files", "write_file")
REFUND = entry("billing", "refund", origin=Origin.POLICY)
BOB = entry("bob", "bob", Sort.AGENT)
SMALL, LARGE = entry("llm", "small", Sort.MODEL), entry("llm", "large", Sort.MODEL)
ALL = {"read": READ, "write": WRITE, "refund": REFUND, "bob": BOB, "small": SMALL, "large": LARGE}


@pytest.mark.parametrize(
    ("rule", "denied"),
    [
        ("{match: {}, budget: {tokens: 100}}", set()),
        ("{match: {tool: write_*}, deny: not here}", {"write"}),
        ("{match: {target: billing}, deny: not here}", {"refund"}),
        ("{match: {kind: agent}, deny: not here}", {"bob"}),
        ("{match: {agent: someone}, deny: not here}", set()),
        ("{match: {}, allow: {tools: [read_file]}}", {"write", "refund"}),
        ("{match: {}, allow: {tools: [billing, read_file]}}", {"write"}),
        ("{match: {}, allow: {targets: [files, llm]}}", {"refund", "bob"}),
        ("{match: {}, allow: {models: [small]}}", {"large"}),
        ("{match: {model: large}, deny: not here}", {"large"}),
        ("{match: {}, allow: {tools: []}, shadow: true}", set()),
    ],
)
def test_what_is_denied_is_not_shown(tmp_path: Any, rule: str, denied: set[str]) -> None:
    policy = Mesh(tmp_path).load(f"{POLICY}  - {rule}\n")
    assert {name for name, one in ALL.items() if not may_call(policy, "ann", one)} == denied


def test_what_nobody_here_can_call_is_not_shown(tmp_path: Any) -> None:
    policy = Mesh(tmp_path).load(POLICY.replace("rules:\n", ""))
    assert not may_call(policy, "ann", entry("elsewhere", "tool"))


async def test_the_allowed_view_of_the_catalogue(house: Any) -> None:
    one = await house(POLICY + "  - {match: {target: billing}, deny: not here}\n")
    await until(lambda: len(one.catalogue.owners()) == 4)
    assert [found.name for found in one.discovering.allowed("ann", Sort.TOOL)] == ["search"]
    assert {found.owner for found in one.discovering.allowed("ann")} == {"search", "bob", "llm"}
