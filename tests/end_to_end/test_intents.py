"""`meshd run` leads calls by what they want: sockets, SDK, terminal, reload, labels of the pod."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx
from meshd_sdk.errors import Refused
from tests.end_to_end.agents import Agent as HttpAgent
from tests.end_to_end.sidecar import Sidecar, environ, fetch, until
from tests.engines.servers import redis_server, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JSON = {"content-type": "application/json"}
BODY = b'{"task": "x"}'


@pytest.fixture
def billing() -> Iterator[HttpAgent]:
    one = HttpAgent()
    yield one
    one.close()


def document(billing: HttpAgent, rest: str = "") -> str:
    return (
        "agent: planner\nupstreams:\n"
        f'  billing: {{url: "{billing.url}", kind: agent, intents: ["refund a customer"]}}\n'
        "  researcher: {session: true}\n" + rest
    )


def route(sidecar: Sidecar, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "meshd.cli", "route", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ(MESHD_HOME=str(sidecar.home)),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def post(sidecar: Sidecar, words: str) -> tuple[int, str]:
    return fetch(f"{sidecar.url}/intent/{words}/run", "POST", JSON, BODY)  # type: ignore[no-any-return]


def researcher(api: str) -> Agent:
    made = Agent(
        "researcher", api=api, environ={}, grace=0, description="Looks up papers.", intents=["find a paper on bees"]
    )

    @made.tool
    async def run(task: str) -> dict[str, str]:
        """Find papers and articles."""
        return {"found": task}

    return made


async def test_an_agent_of_the_sdk_is_found_by_what_it_says_and_gone_with_its_session(
    sidecar: Sidecar, billing: HttpAgent
) -> None:
    await asyncio.to_thread(sidecar.start, document(billing))
    assert (await asyncio.to_thread(post, sidecar, "refund%20the%20customer"))[0] == 200
    assert (await asyncio.to_thread(post, sidecar, "find%20a%20paper"))[0] == 404
    assert sidecar.running is not None
    api = str(sidecar.running["api"])
    async with researcher(api):
        await asyncio.to_thread(until, lambda: "researcher" in route(sidecar, "find a paper on bees", "--json")[1])
        found = await asyncio.to_thread(until, lambda: _served(post(sidecar, "find%20a%20paper%20on%20bees")))
        assert json.loads(found) == {"found": "x"}
        async with Agent("clerk", api=api, environ={}, grace=0) as clerk, clerk.workflow("task-1") as ctx:
            await _by_sdk(ctx)
    await asyncio.to_thread(until, lambda: post(sidecar, "find%20a%20paper%20on%20bees")[0] == 404)
    assert await asyncio.to_thread(sidecar.metric, "meshd_intents_total", choice="named") >= 1


async def _by_sdk(ctx: Ctx) -> None:
    assert await ctx.call("mesh://intent/find a paper on bees", {"task": "y"}, operation="run") == {"found": "y"}
    assert await ctx.call("mesh://intent/refund%20a%20customer", {"task": "y"}) == {"status": 200, "text": "done"}
    with pytest.raises(Refused) as told:
        await ctx.call("mesh://intent/sing a song", {"task": "y"})
    assert told.value.reason == "unknown_target"


def _served(answer: tuple[int, str]) -> str:
    return answer[1] if answer[0] == 200 else ""


def test_the_terminal_says_why(sidecar: Sidecar, billing: HttpAgent) -> None:
    sidecar.start(document(billing, "rules: [{match: {target: billing, agent: clerk}, deny: never}]\n"))
    code, text = route(sidecar, "refund", "the customer", "of order 7")
    assert (code, text.splitlines()[0].split()[1]) == (0, "billing")
    assert "A call of planner for 'refund the customer of order 7' goes to billing." in text
    assert "PASSED OVER, health: it has no session with this sidecar now" in text
    code, text = route(sidecar, "refund a customer", "--agent", "clerk")
    assert "is refused (403 not_allowed)" in text
    code, text = route(sidecar, " ")
    assert (code, "does not say what it wants" in text) == (1, True)
    assert sidecar.admin("/v1/catalogue/route?q=" + "a" * 2000)["http_status"] == 400
    assert sidecar.admin("/v1/catalogue/route?q=x&nonsense=1")["http_status"] == 400
    assert sidecar.admin("/v1/catalogue/route")["http_status"] == 400


def test_a_reload_changes_where_words_lead(sidecar: Sidecar, billing: HttpAgent) -> None:
    sidecar.start(document(billing))
    assert post(sidecar, "settle%20a%20dispute")[0] == 404
    sidecar.policy.write_text(document(billing, "intents: {fallback: billing}\n"))
    assert sidecar.admin("/v1/reload", "POST")["http_status"] == 200
    assert post(sidecar, "settle%20a%20dispute")[0] == 200
    sidecar.policy.write_text(document(billing).replace("refund a customer", "settle a dispute"))
    assert sidecar.admin("/v1/reload", "POST")["http_status"] == 200
    assert post(sidecar, "settle%20a%20dispute")[0] == 200
    assert post(sidecar, "refund%20a%20customer")[0] == 404


def test_a_client_behind_a_proxy_setting(sidecar: Sidecar, billing: HttpAgent) -> None:
    sidecar.start(document(billing))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": sidecar.url}))
    request = urllib.request.Request("http://intent.mesh/refund%20a%20customer/run", data=BODY, headers=JSON)
    with opener.open(request, timeout=30) as reply:
        assert reply.headers["x-meshd-intent-target"] == "billing"


async def test_labels_of_the_pod_are_told_to_other_sidecars(
    sidecars: Callable[[str], Sidecar], billing: HttpAgent, tmp_path: Path
) -> None:
    labels, annotations = tmp_path / "labels", tmp_path / "annotations"
    labels.write_text('app="x"\nai.acme.intent="market_analysis"\n')
    annotations.write_text('ai.acme.intent="technical_audit,\\"odd\\""\n')
    one, two = sidecars("one"), sidecars("two")

    def play(store: str) -> None:
        paths = f"{labels}:{annotations}:{tmp_path / 'none'}"
        one.start("agent: analyst\nupstreams: {}\n", "--store", store, MESHD_LABELS=paths)
        found: dict[str, Any] = until(lambda: _entries(one))
        assert sorted(found) == ['"odd"', "market_analysis", "technical_audit"]
        assert found["technical_audit"]["sort"] == "skill"
        assert "none cannot be read" in one.log
        # By its name alone nobody would find it there: the policy of the other sidecar says nothing of it.
        told = f'agent: planner\nupstreams:\n  analyst: {{url: "{billing.url}", kind: agent}}\n'
        two.start(told, "--store", store)
        until(lambda: post(two, "audit%20this%20technical%20plan")[0] == 200)
        text = route(two, "some", "market", "analysis")[1]
        assert "goes to analyst" in text

    async with running(redis_server(tmp_path / "redis")) as server:
        await asyncio.to_thread(play, f"redis://{server.address}/0")


def _entries(sidecar: Sidecar) -> dict[str, Any]:
    found = sidecar.admin("/v1/catalogue?owner=analyst")["entries"]
    return {entry["name"]: entry for entry in found}
