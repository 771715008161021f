"""Shared state while the server beneath it is killed and started again: two sidecars, their agents, and both faces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent
from meshd_sdk.errors import LeaseHeld, LeaseLost, Overloaded, StateConflict
from meshd_sdk.link import new_id
from tests.end_to_end.sidecar import fetch
from tests.engines.servers import Line, PostgresServer, Server, line_to, nats_server, redis_server, running
from tests.sdk.conftest import POLICY, Own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from meshd_sdk import Ctx
    from meshd_sdk.state import SharedState
    from meshd_sdk.state_values import State

KEPT = POLICY + "state: {history: 64}\n"
"""What was asked for is known again for as long as its version is kept: here, for all that a test writes."""
SERVERS: dict[str, Callable[[Path], Server]] = {
    "redis": lambda path: redis_server(path / "data", "--appendonly", "yes", "--appendfsync", "always"),
    "nats": lambda path: nats_server(path / "data"),
    "postgres": PostgresServer,
}
HANG_S = 60.0
"""A guard against a hang."""


class World:
    """A server of the test's own, and two sidecars on it."""

    def __init__(self, server: Server, url: str, homes: Path) -> None:
        self.server = server
        self.url = url
        self.sidecars = [Own(homes / name) for name in ("one", "other")]

    def up(self, number: int, url: str = "") -> None:
        """Start a sidecar, on the server or by another way to it."""
        one = self.sidecars[number]
        one.start(KEPT, "--store", url or self.url, MESHD_API=one.api)

    def agent(self, name: str, sidecar: int) -> Agent:
        return Agent(name, api=self.sidecars[sidecar].api, environ={})


@pytest.fixture(params=SERVERS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    # Not `tmp_path`: what root makes there PostgreSQL's user may not enter.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        async with running(SERVERS[request.param](path)) as server:
            user, database = ("me@", "/postgres") if request.param == "postgres" else ("", "")
            made = World(server, f"{request.param}://{user}{server.address}{database}?timeout=1", tmp_path)
            try:
                for number in range(2):
                    await asyncio.to_thread(made.up, number)
                yield made
            finally:
                for one in made.sidecars:
                    one.kill()


async def refused(ask: Callable[[], Awaitable[object]]) -> Overloaded:
    """Ask until it is seen that the store is away; return what is said of it."""
    while True:
        try:
            await ask()
        except Overloaded as error:
            return error


async def again(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask the same until the store is back. Whatever else is said is raised."""
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                return await ask()
            except Overloaded as error:
                if (error.reason, error.is_retryable) != ("store_unavailable", True):
                    raise
                await asyncio.sleep(0.01)


async def test_increments_count_once_whatever_the_server_does(world: World) -> None:
    key, increments = "mesh/n", 15
    made: list[int] = []
    """Every version that was acknowledged."""
    seen: list[int] = []

    async def add(ctx: Ctx) -> None:
        for _ in range(increments):
            while True:
                id, newest = new_id(), max(made)
                found: State = await again(lambda: ctx.state.get(key))
                assert found.version >= newest, "a version that was acknowledged is gone"
                with contextlib.suppress(StateConflict):
                    done = await again(
                        lambda id=id, found=found: ctx.state.commit(key, found.value + 1, found, commit_id=id)
                    )
                    assert done.version == found.version + 1
                    made.append(done.version)
                    break

    async def watch(ctx: Ctx) -> None:
        async for one in ctx.state.watch(key):
            seen.append(one.version)
            if one.value == 4 * increments:
                return

    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(world.agent(f"adder-{n}", n % 2)) for n in range(5)]
        ctxs = [await stack.enter_async_context(agent.workflow("w")) for agent in agents]
        made.append((await ctxs[0].state.put(key, 0)).version)
        watching = asyncio.create_task(watch(ctxs[4]))
        adding = [asyncio.create_task(add(ctx)) for ctx in ctxs[:4]]
        for kill in range(1, 4):
            while len(made) < kill * increments:
                _ = [one.result() for one in adding if one.done()]  # raises what went wrong
                await asyncio.sleep(0.001)
            world.server.kill()
            error = await refused(lambda ctx=ctxs[kill]: ctx.state.history(key))
            assert (error.reason, error.is_retryable, error.code) == ("store_unavailable", True, "UNAVAILABLE")
            await world.server.start()
        await asyncio.gather(*adding)
        async with asyncio.timeout(HANG_S):
            await watching
        found = await ctxs[1].state.get(key)
        assert found is not None
        assert (found.value, found.version) == (4 * increments, 4 * increments + 1)
    assert sorted(made) == list(range(1, 4 * increments + 2)), "each was acknowledged once"
    assert seen == sorted(set(seen)), "no watch goes back, or tells one twice"
    for one in world.sidecars:
        assert "Traceback" not in one.log


async def test_a_lease_outlives_the_server_and_its_commit_is_made_once(world: World) -> None:
    async with (
        world.agent("holder", 0) as one,
        world.agent("other", 1) as other,
        one.workflow("w") as ctx,
        other.workflow("w") as theirs,
    ):
        await ctx.state.put("plan", "before")
        watched = theirs.state.watch("plan")
        assert (await anext(watched)).value == "before"
        async with ctx.state.checkout("plan", lease=600) as held:
            world.server.kill()
            await refused(lambda: held.commit("after"))
            await world.server.start()

            async def take() -> None:
                async with theirs.state.checkout("plan"):
                    raise AssertionError("two have it")

            with pytest.raises(LeaseHeld, match="holder"):
                await again(take)
            assert (await again(lambda: held.commit("after"))).version == 2
        async with asyncio.timeout(HANG_S):
            assert (await anext(watched)).value == "after"  # nothing was read of it while the server was away
        await watched.aclose()  # type: ignore[attr-defined]
        async with theirs.state.checkout("plan") as held:
            assert held.value == "after"
            assert held.state is not None
            assert held.state.writer == "holder"


async def test_what_was_not_answered_may_be_asked_for_again(world: World) -> None:
    """The server writes, and its answer is lost: nobody knows, and what is asked again with its id is done once."""
    async with line_to(world.server.address) as line:
        world.sidecars[0].kill()
        await asyncio.to_thread(world.up, 0, world.url.replace(world.server.address, line.address))
        async with world.agent("doubter", 0) as agent, agent.workflow("w") as ctx:
            await _doubted(ctx.state, line)


async def _doubted(state: SharedState, line: Line) -> None:
    async def twice(mark: str, ask: Callable[[], Awaitable[State]]) -> State:
        """Ask, have the answer lost, and ask the same again."""
        line.lose_reply(mark.encode(), mark.encode().hex().encode())  # PostgreSQL's driver sends bytes as digits
        with pytest.raises(Overloaded, match="may have been done or not"):
            await ask()
        assert line.is_reply_lost
        line.hear()
        made: State = await again(ask)
        return made

    key = "mesh/doubt"
    first = await twice("id-put", lambda: state.put(key, "one", commit_id="id-put"))
    second = await twice("id-commit", lambda: state.commit(key, "two", first, commit_id="id-commit"))
    with pytest.raises(StateConflict):
        await state.commit(key, "two", first)
    draft = await twice("id-shadow", lambda: state.shadow(key, "three?", second, commit_id="id-shadow"))
    assert draft.version == 1
    assert (await twice("id-promote", lambda: state.promote(key, commit_id="id-promote"))).version == 3

    line.lose_reply(b"id-lease", b"id-lease".hex().encode())
    with pytest.raises(Overloaded):
        async with state.checkout(key, lease_id="id-lease"):
            raise AssertionError("it was not answered")
    line.hear()

    async def take() -> State:
        async with state.checkout(key, lease_id="id-lease") as held:
            made = await twice("fourth", lambda: held.commit("the fourth"))
            with pytest.raises(LeaseLost):
                await held.commit("five")
            return made

    fourth = await again(take)
    found = await state.get(key)
    assert found is not None
    assert (found.value, found.version, fourth.version) == ("the fourth", 4, 4)
    gone = await twice("id-delete", lambda: state.delete(key, fourth, commit_id="id-delete"))
    assert (gone.version, gone.is_deleted) == (5, True)


async def test_as_json_it_is_503_and_a_daemon_that_found_no_store_heals(world: World) -> None:
    one = world.sidecars[0]

    def ask(method: str, **body: Any) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        head = {"content-type": "application/json"}
        status, text = fetch(f"http://{one.api}/meshd.v1.{method}", "POST", head, data)
        return status, json.loads(text)

    token = ask("ContextService/Open", workflow="w")[1]["context"]["token"]
    assert ask("StateService/Commit", token=token, key="mesh/j", value="MQ==")[0] == 200
    one.kill()
    world.server.kill()
    await asyncio.to_thread(world.up, 0)
    token = ask("ContextService/Open", workflow="w")[1]["context"]["token"]
    for method, body in (
        ("GetState", {}),
        ("History", {}),
        ("Commit", {"baseVersion": "1"}),
        ("Checkout", {"leaseId": "l"}),
        ("Release", {"leaseId": "l"}),
        ("DeleteState", {"baseVersion": "1"}),
        ("WriteShadow", {"baseVersion": "1"}),
        ("Promote", {}),
        ("DropShadow", {}),
    ):
        status, said = await asyncio.to_thread(ask, f"StateService/{method}", token=token, key="mesh/j", **body)
        assert (status, said["code"], said["details"][0]["debug"]["reason"]) == (
            503,
            "unavailable",
            "STORE_UNAVAILABLE",
        ), method
        assert said["details"][0]["debug"]["metadata"]["is_retryable"] == "true"
    async with world.agent("early", 0) as agent, agent.workflow("w") as ctx:
        watched = ctx.state.watch("mesh/j")
        first = asyncio.ensure_future(anext(watched))
        await refused(lambda: ctx.state.get("mesh/j"))
        await world.server.start()
        assert (await asyncio.wait_for(first, HANG_S)).version == 1
        found = await again(lambda: ctx.state.get("mesh/j"))
        async with world.agent("late", 1) as other, other.workflow("w") as theirs:
            await again(lambda: theirs.state.commit("mesh/j", 2, found, commit_id="c"))
        assert (await anext(watched)).value == 2
        await watched.aclose()  # type: ignore[attr-defined]
