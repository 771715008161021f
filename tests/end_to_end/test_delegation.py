"""A part of a workflow's tokens goes to a called agent, over one sidecar, and what is left comes back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.agents import Agent, call, innermost
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.end_to_end.provider import Provider

ACCOUNT = "workflow/task-1"
TOKENS = 2000


@pytest.fixture
def agent() -> Iterator[Agent]:
    one = Agent()
    yield one
    one.close()


def document(agent: Agent, provider: Provider, rule: str = "") -> str:
    return (
        f"agent: researcher\nupstreams:\n"
        f'  llm: {{url: "{provider.url}", kind: llm, dialect: openai}}\n'
        f'  writer: {{url: "{agent.url}", kind: agent}}\n'
        f"rules:\n  - {{name: purse, match: {{kind: llm}}, budget: {{tokens: {TOKENS}}}}}\n{rule}"
    )


def run(base: str, times: int, **headers: str) -> list[int]:
    """Let the agent call the LLM so often, within one call to it; return the status of the last, and of all before."""
    chain = {"then": [f"{base}/llm/v1/chat/completions"]}
    found = []
    for _ in range(times):
        status, text = call(f"{base}/writer/run", {"x-meshd-workflow": "task-1", **headers}, chain)
        assert status == 200, text
        found.append(innermost(text)[0])
    return found


def left(sidecar: Sidecar) -> int:
    total, spent, reserved = sidecar.accounts()[ACCOUNT]
    return total - spent - reserved


def test_an_agent_is_held_to_its_part_and_the_rest_comes_back(
    sidecar: Sidecar, agent: Agent, provider: Provider
) -> None:
    base = sidecar.start(
        document(agent, provider, "  - {name: part, match: {target: writer}, delegate: {tokens: 20, floor: 1}}\n")
    ).url
    # A part of 20 tokens covers no call of this agent: its input alone is bounded by more.
    chain = {"then": [f"{base}/llm/v1/chat/completions"]}
    status, refusal = innermost(call(f"{base}/writer/run", {"x-meshd-workflow": "task-1"}, chain)[1])
    assert status == 402
    # The part's own account, which may be gone by now: it ends with the call that it was given for.
    assert re.search(rf"account delegated/\w+/{ACCOUNT} .* of its 20 tokens", refusal), refusal
    body = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"go"}]}'
    # All of the workflow is there again for the caller itself.
    until(lambda: fetch(f"{base}/llm/v1/chat/completions", "POST", {"x-meshd-workflow": "task-1"}, body)[0] == 200)
    assert left(sidecar) > TOKENS - 100


def test_a_caller_says_itself_how_much(sidecar: Sidecar, agent: Agent, provider: Provider) -> None:
    base = sidecar.start(document(agent, provider)).url
    assert run(base, 2) == [200, 200]
    assert run(base, 1, **{"x-meshd-delegate": "1"}) == [402]
    assert run(base, 1, **{"x-meshd-delegate": "1500"}) == [200]
    status, text = call(f"{base}/writer/run", {"x-meshd-delegate": "many"}, {"then": []})
    assert (status, "x-meshd-delegate must be one whole number" in text) == (400, True)
    assert all("x-meshd-delegate" not in seen for seen in agent.seen), "it is meshd's to read"
