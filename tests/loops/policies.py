"""The policy of a scenario's sidecars, and what its refusals say."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from meshd.dialects.table import DIALECTS
from tests.loops.playing import Refusal
from tests.loops.reading import LEAD, LLM, TOOL

if TYPE_CHECKING:
    from tests.loops.reading import Scenario

_DETECTOR: Final = re.compile(r"\((?:workflow [^;)]*|no workflow); (\w+)\)")


def document(scenario: Scenario, at: int, ports: dict[str, int], inbound: list[int]) -> str:
    """Return the policy of sidecar number `at`; the model and the tools are at the port of no name."""
    agents = scenario.agents
    provider = f"http://127.0.0.1:{ports['']}"
    lines = [f"agent: {agents[at] if scenario.sidecars > 1 and at < len(agents) else LEAD}", "upstreams:"]
    lines.append(f'  {LLM}: {{url: "{provider}", kind: llm, dialect: openai}}')
    lines += [
        f'  {tool}: {{url: "{provider}", kind: tool{_dialect(scenario, TOOL + tool)}}}' for tool in scenario.tools
    ]
    for number, name in enumerate(agents):
        spoken = _dialect(scenario, name)
        if scenario.sidecars == 1:
            lines.append(f'  {name}: {{url: "http://127.0.0.1:{ports[name]}", kind: agent{spoken}}}')
        elif number != at:
            lines.append(f'  {name}: {{url: "http://127.0.0.1:{inbound[number]}", kind: agent, peer: true{spoken}}}')
    lines.append(f"limits: {{unattributed_tokens: {scenario.budget}}}")
    lines.append(f"rules:\n  - {{name: purse, match: {{kind: llm}}, budget: {{tokens: {scenario.budget}}}}}")
    return "\n".join(lines) + "\n"


def _dialect(scenario: Scenario, target: str) -> str:
    spoken = scenario.spoken_by(target)
    # What stands here answers the calls of the scenario, and no question of the catalogue.
    return f", dialect: {spoken}, discover: false" if spoken in DIALECTS else ""


def shown(text: str) -> str:
    """Return what an MCP client shows its model of an answer: its words, without the ids around them."""
    try:
        answer = json.loads(text)
        if "result" in answer:
            return "".join(one.get("text", "") for one in answer["result"]["content"])
        return str(answer["error"]["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return text


def refusal(reason: str, message: str) -> Refusal:
    """Return what a refusal says."""
    found = _DETECTOR.search(message)
    return Refusal(reason, found[1] if found else "", message[:600])
