"""Loops through real sidecars: circles, an orchestrator that goes round, a restart, two sidecars on one store."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from meshd.turns.record import merge
from meshd.turns.workflow import Workflow
from tests.end_to_end.agents import Agent, call, innermost
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.engines.places import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMITS = "limits: {hops: 100}\n"


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    every = [Agent() for _ in range(3)]
    yield every
    for agent in every:
        agent.close()


def document(agents: list[Agent], more: str = "", names: tuple[str, ...] = ("writer", "critic", "editor")) -> str:
    lines = [f'  {name}: {{url: "{agent.url}", kind: agent}}\n' for name, agent in zip(names, agents, strict=True)]
    return f"agent: lead\n{LIMITS}upstreams:\n{''.join(lines)}{more}"


def post(sidecar: Sidecar, name: str, body: Any, workflow: str = "wf-1", path: str = "/run") -> tuple[int, str]:
    headers = {"content-type": "application/json", **({"x-meshd-workflow": workflow} if workflow else {})}
    status, text = fetch(f"{sidecar.url}/{name}{path}", "POST", headers, json.dumps(body).encode())
    return status, text


def test_an_orchestrator_that_goes_round_is_stopped(sidecar: Sidecar, agents: list[Agent]) -> None:
    sidecar.start(document(agents))
    statuses, text = [], ""
    for number in range(6):
        for name in ("writer", "critic"):
            status, text = post(sidecar, name, {"task": f"Review the draft of the report (attempt {number})"})
            statuses.append(status)
    assert statuses == [200] * 6 + [403] * 6
    assert "lead has asked critic the same 3 times" in text
    assert sum(len(agent.seen) for agent in agents) == 6
    assert sidecar.metric("meshd_loops_total", detector="repetition") == 6
    assert sidecar.metric("meshd_turns_total", decision="refused") == 6
    assert sidecar.metric("meshd_refusals_total", reason="loop") == 6
    # What is new passes on the same edges, and another workflow knows nothing of it.
    assert post(sidecar, "writer", {"task": "Which sources did you use for the second part?"})[0] == 200
    assert post(sidecar, "writer", {"task": "Review the draft of the report (attempt 9)"}, "wf-2")[0] == 200


def test_a_circle_of_agents_is_stopped_by_its_path(sidecar: Sidecar, agents: list[Agent]) -> None:
    sidecar.start(document(agents))
    ring = [f"{sidecar.url}/{name}/run" for name in ("critic", "editor", "writer")]
    status, text = call(f"{sidecar.url}/writer/run", {"x-meshd-workflow": "wf-1"}, {"round": ring})
    assert status == 200
    status, text = innermost(text)
    assert (status, [len(agent.seen) for agent in agents]) == (403, [3, 3, 3])
    assert "called again 3 times by agents that it had called itself" in text
    assert sidecar.metric("meshd_loops_total", detector="reentry") == 1


def test_headers_that_are_dropped_or_forged_reset_nothing(sidecar: Sidecar, agents: list[Agent]) -> None:
    sidecar.start(document(agents))
    found = []
    for number in range(6):
        headers = {"content-type": "application/json", "x-meshd-hops": "0", "x-meshd-anything": str(number)}
        body = json.dumps({"task": "Review the draft of the report"}).encode()
        found.append(fetch(f"{sidecar.url}/writer/run", "POST", headers, body)[0])
    assert found == [200] * 3 + [403] * 3


def test_a_loop_goes_on_after_kill_9(sidecar: Sidecar, agents: list[Agent]) -> None:
    text = document(agents)
    sidecar.start(text)
    for _ in range(3):
        assert post(sidecar, "writer", {"task": "Review the draft of the report"})[0] == 200
    until(lambda: _flushed(sidecar), "written")
    sidecar.kill()
    sidecar.start(text)
    # Another edge first: with it the workflow is read, behind the call.
    assert post(sidecar, "critic", {"task": "Is anything new?"})[0] == 200

    def is_stopped() -> bool:
        return post(sidecar, "writer", {"task": "Review the draft of the report"})[0] == 403

    until(is_stopped, "read")
    assert len(agents[0].seen) <= 4, "three before, and at most one while the store was read"


def _flushed(sidecar: Sidecar) -> bool:
    """Say whether the store knows of three rounds."""
    with sqlite3.connect(f"file:{sidecar.home}/ledger.db?mode=ro", uri=True) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if "space" in [row[1] for row in db.execute(f"PRAGMA table_info({table})")]:
                for (value,) in db.execute(f"SELECT value FROM {table} WHERE space = 'turns'"):
                    workflow = Workflow()
                    merge(workflow, value, 0)
                    if any(one.rounds == 3 for edge in workflow.edges.values() for one in edge.questions):
                        return True
    return False


async def test_two_sidecars_on_one_store_count_together(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], tmp_path: Path
) -> None:
    async with place_of("redis", tmp_path) as place:
        text = document(agents).replace(LIMITS, "limits: {turns: {edge: 1}}\n")
        one, two = (sidecars(name).start(text, "--store", place.url) for name in ("one", "two"))
        passed = 0
        for number in range(100):
            status, _ = post(one if number % 2 else two, "writer", {"task": f"Describe item {number} of the list"})
            if status == 403:
                break
            passed += 1
        assert 28 <= passed <= 55, "each alone would let 28 pass; together they have a lag and no more"
