"""Memory and tentative versions over two sidecars on one store, one of another tenant: who is handed and shown what."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event
from meshd_sdk.errors import NotAllowed, StateConflict, UnknownTarget
from tests.end_to_end.sidecar import fetch
from tests.engines.places import place_of
from tests.ports import free_port
from tests.sdk.conftest import Own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Pair:
    """The sidecar of the boss, of the tenant acme, and that of a clerk, of a tenant that is given."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        self.boss, self.clerk = Own(home / "boss"), Own(home / "clerk")

    def up(self, tenant: str, state: str = "{}") -> None:
        """`state` is what the clerk's policy says of shared state."""
        port = free_port()
        shared = ("--store", self.url, "--bus", self.url)
        there = f"{{url: 'http://127.0.0.1:{port}', kind: agent, peer: true}}"
        self.boss.start(
            f"agent: boss\ntenant: acme\nupstreams: {{clerk: {there}}}\n",
            *shared,
            MESHD_API=self.boss.api,
        )
        self.clerk.home.mkdir(exist_ok=True)
        shutil.copy(self.boss.home / "mesh.key", self.clerk.home / "mesh.key")
        self.clerk.start(
            f"agent: clerk\ntenant: {tenant}\nupstreams: {{clerk: {{kind: agent, session: true}}}}\nstate: {state}\n",
            *shared,
            MESHD_API=self.clerk.api,
            MESHD_INBOUND=f"127.0.0.1:{port}",
            MESHD_APP="session",
        )

    def agents(self) -> tuple[Agent, Agent]:
        return Agent("boss", api=self.boss.api, environ={}), Agent("clerk", api=self.clerk.api, environ={})


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with place_of("redis", tmp_path) as place:
        made = Pair(tmp_path, place.url)
        yield made
        made.boss.kill()
        made.clerk.kill()


async def tried(ctx: Ctx, key: str, *, shadow: bool = False) -> Any:
    """Read; return the value, or the kind of what is raised."""
    try:
        found = await ctx.state.get(key, shadow=shadow)
    except NotAllowed:
        return "NotAllowed"
    return None if found is None else found.value


async def test_a_callee_who_may_not_read_the_mesh_is_not_told_what_is_in_it(pair: Pair) -> None:
    await asyncio.to_thread(pair.up, "acme", '{mesh_readers: ["boss"]}')
    boss, clerk = pair.agents()
    told: asyncio.Queue[list[str]] = asyncio.Queue()

    @clerk.tool
    async def look(ctx: Ctx, name: str) -> Any:
        return {"memory": list(ctx.memory), "read": await tried(ctx, name)}

    @clerk.on("orders")
    async def heard(ctx: Ctx, event: Event) -> None:
        told.put_nowait(list(ctx.memory))

    async with boss, clerk, boss.workflow("deal") as ctx:
        plan = await ctx.state.put("plan", "the plan")
        merger = await ctx.state.put("merger-with-acme", "hush", scope="mesh")
        async with ctx.remembering(plan.reference, merger.reference) as part:
            assert len(part.memory) == 2
            assert await ctx.call("clerk/look", {"name": merger.reference}) == {
                "memory": [plan.reference],
                "read": "NotAllowed",
            }
            await ctx.publish("orders", {})
        async with asyncio.timeout(30):
            assert await told.get() == [plan.reference]


@pytest.mark.parametrize("tenant", ["acme", "rival"])
async def test_a_callee_beside_another_sidecar_is_handed_what_is_within_its_scope(pair: Pair, tenant: str) -> None:
    await asyncio.to_thread(pair.up, tenant)
    boss, clerk = pair.agents()
    told: asyncio.Queue[list[str]] = asyncio.Queue()

    @clerk.tool
    async def look(ctx: Ctx, names: list[str]) -> Any:
        return {"memory": list(ctx.memory), "read": [await tried(ctx, one) for one in names]}

    @clerk.on("orders")
    async def heard(ctx: Ctx, event: Event) -> None:
        told.put_nowait(list(ctx.memory))

    async with boss, clerk, boss.workflow("deal") as ctx, boss.workflow("other") as other:
        plan = await ctx.state.put("plan", "the plan")
        habits = await ctx.state.put("habits", "the boss's", scope="agent")
        quotes = await ctx.state.put("tenant/acme/quotes", "acme's")
        rates = await ctx.state.put("rates", "everybody's", scope="mesh")
        secret = await other.state.put("secret", "another workflow's")
        names = [one.reference for one in (plan, habits, quotes, rates, secret)]
        within = [plan.reference, *([quotes.reference] if tenant == "acme" else []), rates.reference]
        async with ctx.remembering(*names[:4]) as part:
            assert list(part.memory) == names[:4]
            found = await ctx.call("clerk/look", {"names": names})
            await ctx.publish("orders", {})
        assert found["memory"] == within
        theirs = "acme's" if tenant == "acme" else "NotAllowed"
        assert found["read"] == ["the plan", "NotAllowed", theirs, "everybody's", "NotAllowed"]
        async with asyncio.timeout(30):
            assert await told.get() == within
        # Outside of the block nothing is handed on.
        assert (await ctx.call("clerk/look", {"names": []}))["memory"] == []
        # What is another workflow's cannot be put into a context, whoever knows its name.
        with pytest.raises(NotAllowed):
            async with ctx.remembering(secret.reference):
                pass


async def test_a_tentative_version_is_shown_to_its_workflow_and_ends_as_it_is_told(pair: Pair) -> None:
    await asyncio.to_thread(pair.up, "acme")
    boss, clerk = pair.agents()
    key = "tenant/acme/view"

    @clerk.tool
    async def look(ctx: Ctx) -> Any:
        return [await tried(ctx, key), await tried(ctx, key, shadow=True)]

    @clerk.tool
    async def improve(ctx: Ctx) -> int:
        found = await ctx.state.get(key, shadow=True)
        assert found is not None
        return (await ctx.state.shadow(key, "draft, improved", found.base_version, found)).version

    async with boss, clerk, boss.workflow("deal") as ctx, boss.workflow("other") as other:
        first = await ctx.state.put(key, "public")
        await ctx.state.shadow(key, "draft", first)
        assert await ctx.call("clerk/look") == ["public", "draft"]
        assert await other.call("clerk/look") == ["public", "public"]
        with pytest.raises(UnknownTarget):
            await other.state.promote(key)
        assert not await other.state.drop(key)
        assert await ctx.call("clerk/improve") == 2
        # Two workflows each have a draft of one version; the first to promote wins, the other's stays to be looked at.
        await other.state.shadow(key, "the other draft", first)
        async with ctx.state.checkout(key):
            with pytest.raises(StateConflict, match="boss has checked it out"):
                await other.state.promote(key)
        assert (await ctx.state.promote(key)).version == 2
        with pytest.raises(StateConflict) as refused:
            await other.state.promote(key)
        assert refused.value.current is not None
        assert refused.value.current.version == 2
        assert await other.call("clerk/look") == ["draft, improved", "the other draft"]
        assert await ctx.call("clerk/look") == ["draft, improved", "draft, improved"]
        assert await other.state.drop(key)
        assert await other.call("clerk/look") == ["draft, improved", "draft, improved"]
        # One that is left over when the workflow is done is shown to nobody else.
        await ctx.state.shadow(key, "left over", 2)
    async with pair.agents()[0] as later, later.workflow("later") as ctx:
        found = await ctx.state.get(key, shadow=True)
        assert found is not None
        assert (found.value, found.is_shadow) == ("draft, improved", False)


async def test_a_context_that_is_forged_or_of_another_audience_reads_nothing(pair: Pair) -> None:
    await asyncio.to_thread(pair.up, "acme")
    boss, _ = pair.agents()
    async with boss, boss.workflow("deal") as ctx, boss.workflow("other") as other:
        await ctx.state.put("plan", "the plan")
        await ctx.state.shadow("plan", "draft", 1)
        token = ctx.token
        half = len(token) // 2
        spliced = other.token[:half] + token[half:]
        flipped = token[:half] + ("A" if token[half] != "A" else "B") + token[half + 1 :]

        def ask(api: str, text: str) -> tuple[int, Any]:
            body = json.dumps({"token": text, "key": "workflow/deal/plan", "readsShadow": True}).encode()
            head = {"content-type": "application/json"}
            status, answer = fetch(f"http://{api}/meshd.v1.StateService/GetState", "POST", head, body)
            return status, json.loads(answer)

        for forged in (spliced, flipped, token[:-1], token + "A", "", "null"):
            status, said = await asyncio.to_thread(ask, pair.boss.api, forged)
            assert (status, said["code"]) == (401, "unauthenticated"), forged
        status, said = await asyncio.to_thread(ask, pair.boss.api, other.token)
        assert (status, said["code"]) == (403, "permission_denied")
        # Issued to the boss for the boss's own sidecar: beside the clerk it is nobody's.
        status, said = await asyncio.to_thread(ask, pair.clerk.api, token)
        assert status in (401, 403), said
        assert (await asyncio.to_thread(ask, pair.boss.api, token))[0] == 200
