"""Many at once, in tasks and in threads: no call is ever tied to another's workflow."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections import Counter
from typing import Any

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests

from meshd_sdk import CarryingExecutor, carrying
from tests.sdk.instrument.world import CHAT, World

pytestmark = pytest.mark.usefixtures("instrumented")
AT_ONCE = 200


async def ask(world: World, session: aiohttp.ClientSession, workflow: str, name: str) -> tuple[int, str]:
    headers = {"x-meshd-workflow": workflow}
    async with session.post(f"{world.url}/writer/run", json={"act": name, "mark": workflow}, headers=headers) as reply:
        return reply.status, await reply.text()


def marked(world: World, prefix: str) -> list[tuple[str, str]]:
    """(what the call said of itself, the workflow of the context that came with it), of each call to the critic."""
    ours = [seen for seen in world.critic.seen if seen.get("x-mark", "").startswith(prefix)]
    return [(seen["x-mark"], world.read(seen["x-meshd-context"]).workflow) for seen in ours]


async def test_two_hundred_interleaved_answers_never_mix(world: World) -> None:
    prefix = f"many-{uuid.uuid4().hex[:8]}-"
    chance = random.Random(prefix)
    # Shared by all answers, as a server's clients are.
    shared = httpx.AsyncClient(trust_env=False, timeout=60, limits=httpx.Limits(max_connections=40))
    shared2 = httpx2.AsyncClient(trust_env=False, timeout=60, limits=httpx2.Limits(max_connections=40))
    model = openai.AsyncOpenAI(base_url=f"{world.url}/llm/v1", api_key="sk-many", timeout=60, max_retries=0)
    everyone = asyncio.Event()
    arrived = Counter[str]()

    async def act(request: Any) -> list[int]:
        mark = {"x-mark": (await request.json())["mark"]}
        arrived["all"] += 1
        if arrived["all"] == AT_ONCE:
            everyone.set()
        await everyone.wait()  # all of them are under way before the first goes on
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            one = group.create_task(shared.post(f"{world.url}/critic/run", json={}, headers=mark))
            two = group.create_task(shared2.post(f"{world.url}/critic/run", json={}, headers=mark))
        await model.chat.completions.create(**CHAT)
        three = await asyncio.to_thread(requests.post, f"{world.url}/critic/run", json={}, headers=mark, timeout=60)
        return [one.result().status_code, two.result().status_code, three.status_code]

    name = uuid.uuid4().hex
    world.acts[name] = act
    workflows = [f"{prefix}{number}" for number in range(AT_ONCE)]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)
    ) as session:
        statuses = await asyncio.gather(*(ask(world, session, workflow, name) for workflow in workflows))
    assert Counter(statuses) == {(200, "[200,200,200]"): AT_ONCE}
    pairs = marked(world, prefix)
    assert Counter(said for said, _ in pairs) == dict.fromkeys(workflows, 3)
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    paid = {id: used for id, (_, used, _) in world.sidecar.accounts().items() if id.startswith(f"workflow/{prefix}")}
    assert len(paid) == AT_ONCE
    assert len(set(paid.values())) == 1, "each for its own call, and for no other"


def test_tasks_and_threads_of_an_answer_belong_to_it(world: World) -> None:
    critic = f"{world.url}/critic/run"

    async def act(_: Any) -> list[int]:
        loop = asyncio.get_running_loop()
        statuses: list[int] = []

        def post() -> int:
            return requests.post(critic, json={}, timeout=30).status_code

        async with aiohttp.ClientSession() as session:

            async def post_in_a_task() -> int:
                async with session.post(critic, json={}) as reply:
                    return reply.status

            statuses += await asyncio.gather(post_in_a_task(), post_in_a_task())
            async with asyncio.TaskGroup() as group:
                task = group.create_task(post_in_a_task())
            statuses.append(task.result())
        statuses.append(await asyncio.to_thread(post))
        statuses.append(await loop.run_in_executor(None, carrying(post)))
        with CarryingExecutor(2) as executor:
            statuses.append(await loop.run_in_executor(executor, post))
            statuses += [one.result() for one in [executor.submit(post), executor.submit(post)]]
        thread = threading.Thread(target=carrying(lambda: statuses.append(post())))
        thread.start()
        await asyncio.to_thread(thread.join)
        return statuses

    workflow, answer = world.tell(act)
    assert answer == [200] * 9
    world.is_charged(workflow, "critic", 9)
