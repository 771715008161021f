"""`ctx.state` through a real sidecar: nothing is overwritten, over kills too, and references go where they may."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event, NoSidecar, Refused, Reply
from meshd_sdk.errors import LeaseHeld, LeaseLost, Malformed, NotAllowed, StateConflict
from meshd_sdk.state_values import State, key_of, number_of
from meshd_sdk.sync import Agent as SyncAgent

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sdk.conftest import Own

    Make = Callable[..., Agent]


async def test_versions_conflicts_and_history(make: Make) -> None:
    async with make("state-a") as agent, agent.workflow("state-1") as ctx, agent.workflow("state-2") as other:
        key = "mesh/state-1/risk"
        assert await ctx.state.get(key) is None
        first = await ctx.state.put(key, {"level": 1})
        assert (first.version, first.writer, first.workflow, first.payload) == (1, "state-a", "state-1", b"")
        with pytest.raises(StateConflict):
            await ctx.state.put(key, {})
        found = await other.state.get(key)
        assert found is not None
        assert found.value == {"level": 1}
        second = await other.state.commit(key, {"level": 2}, found)
        with pytest.raises(StateConflict) as stale:
            await ctx.state.commit(key, {"level": 9}, first)
        there = stale.value.current
        assert there is not None
        assert (there.version, there.writer, there.workflow) == (second.version, "state-a", "state-2")
        assert (stale.value.order, stale.value.code, stale.value.lease) == ("", "ABORTED", None)
        assert "version 2 is there, which state-a wrote in workflow state-2" in str(stale.value)
        older = await ctx.state.get(first.reference)
        assert older is not None
        assert older.value == {"level": 1}
        assert [one.version for one in await ctx.state.history(key)] == [2, 1]
        gone = await ctx.state.delete(key, second)
        assert (gone.version, gone.is_deleted) == (3, True)
        assert await ctx.state.get(key) is None
        raw = await ctx.state.put(key, b"\x00\xff", content_type="application/octet-stream")
        found = await ctx.state.get(key)
        assert found is not None
        assert found.value == Reply(b"\x00\xff")
        assert raw.version == 4


async def test_scopes(make: Make) -> None:
    async with make("state-b") as agent, agent.workflow("state-3") as ctx:
        assert (await ctx.state.put("plan", 1)).key == "workflow/state-3/plan"
        assert (await ctx.state.put("plan", 1, scope="agent")).key == "agent/state-b/plan"
        assert (await ctx.state.put("state-3/plan", 1, scope="mesh")).key == "mesh/state-3/plan"
        with pytest.raises(Malformed, match="no tenant of its own"):
            await ctx.state.put("plan", 1, scope="tenant")
        with pytest.raises(NotAllowed, match="belongs to the agent other"):
            await ctx.state.get("agent/other/plan")
        with pytest.raises(Malformed):
            await ctx.state.get("../../x")
        with pytest.raises(Malformed, match=r"value_max"):
            await ctx.state.put("long", b"x" * (2**20 + 1))
        for wrong in ({"scope": "planet"}, {"scope": "mesh", "key": "mesh/x"}):
            with pytest.raises(ValueError, match="scope"):
                await ctx.state.get(wrong.pop("key", "plan"), **wrong)  # type: ignore[arg-type]
        for version in (-1, True, "1"):
            with pytest.raises(ValueError, match="version"):
                await ctx.state.get("plan", version)  # type: ignore[arg-type]


async def test_a_check_out_is_held_and_given_back(make: Make) -> None:
    async with (
        make("state-c") as one,
        make("state-d") as other,
        one.workflow("state-4") as ctx,
        other.workflow("state-4") as theirs,
    ):
        async with ctx.state.checkout("plan") as held:
            assert (held.state, held.value) == (None, None)
            with pytest.raises(LeaseHeld, match="state-c has checked it out in state-4") as refused:
                async with theirs.state.checkout("plan"):
                    raise AssertionError("two have it")
            assert refused.value.lease is not None
            assert refused.value.lease.agent == "state-c"
            with pytest.raises(LeaseHeld):
                await theirs.state.put("plan", 0)
            await held.renew()
            assert (await held.commit([1])).version == 1
            assert held.is_committed
        async with theirs.state.checkout("plan") as held:
            assert held.value == [1]
        with pytest.raises(RuntimeError, match="on the way"):
            async with theirs.state.checkout("plan"):
                raise RuntimeError("on the way")
        async with ctx.state.checkout("plan") as held:  # both gave it back
            await held.commit([1, 2])


async def test_who_was_paused_past_its_lease_overwrites_nothing(make: Make) -> None:
    async with (
        make("state-e") as one,
        make("state-f") as other,
        one.workflow("state-5") as ctx,
        other.workflow("state-5") as theirs,
    ):
        await ctx.state.put("plan", "before")
        async with ctx.state.checkout("plan", lease=1) as held:
            while True:  # until the lease has run out
                with contextlib.suppress(LeaseHeld):
                    async with theirs.state.checkout("plan") as quick:
                        await quick.commit("theirs")
                        break
            with pytest.raises(LeaseLost) as lost:
                await held.commit("paused")
            assert lost.value.current is not None
            assert (lost.value.current.version, lost.value.current.writer) == (2, "state-f")
            with pytest.raises(LeaseLost):
                async with theirs.state.checkout("plan"):
                    await held.renew()
        found = await ctx.state.get("plan")
        assert found is not None
        assert found.value == "theirs"


async def test_tentative_versions(make: Make) -> None:
    async with make("state-g") as agent, agent.workflow("state-6") as ctx, agent.workflow("state-7") as other:
        key = "mesh/state-6/view"
        first = await ctx.state.put(key, "one")
        draft = await ctx.state.shadow(key, "two?", first)
        draft = await ctx.state.shadow(key, "two!", first, draft)
        assert (draft.version, draft.is_shadow) == (2, True)
        seen, theirs = await ctx.state.get(key, shadow=True), await other.state.get(key, shadow=True)
        assert seen is not None
        assert theirs is not None
        assert (seen.value, seen.base_version, theirs.value) == ("two!", 1, "one")
        assert (await ctx.state.promote(key)).version == 2
        with pytest.raises(Refused, match="no tentative version"):
            await ctx.state.promote(key)
        await ctx.state.shadow(key, "three", 1)
        with pytest.raises(StateConflict):
            await ctx.state.promote(key)
        assert await ctx.state.drop(key)
        assert not await ctx.state.drop(key)


async def test_a_callee_is_handed_references_within_its_scope(make: Make) -> None:
    boss, clerk = make("state-boss"), make("state-clerk")

    @clerk.tool
    async def look(ctx: Ctx) -> Any:
        found = await ctx.state.get(ctx.memory[0])
        assert found is not None
        return {"memory": list(ctx.memory), "value": found.value, "workflow": ctx.workflow}

    async with boss, clerk, boss.workflow("state-8") as ctx:
        plan = await ctx.state.put("plan", ["buy", "sell"])
        habits = await ctx.state.put("state-8/habits", "mine", scope="agent")
        async with ctx.remembering(plan.reference, habits.reference) as part:
            assert part.memory == (plan.reference, habits.reference)
            found = await ctx.call("state-clerk/look")
        assert found == {"memory": [plan.reference], "value": ["buy", "sell"], "workflow": "state-8"}
        with pytest.raises(NotAllowed):
            async with ctx.remembering("mesh://state/agent/state-clerk/habits@1"):
                pass


async def test_a_program_without_async(api: str) -> None:
    def run() -> None:
        with SyncAgent("state-h", api=api, environ={}) as agent, agent.workflow("state-9") as ctx:
            first = ctx.state.put("plan", 1)
            with ctx.state.checkout("plan") as held:
                assert held.value == 1
                held.commit(2)
            watched = ctx.state.watch("plan", first)
            assert next(watched).value == 2
            watched.close()  # type: ignore[attr-defined]
            assert [one.version for one in ctx.state.history("plan")] == [2, 1]

    await asyncio.to_thread(run)


async def test_without_a_sidecar_nothing_is_shared() -> None:
    async with Agent("state-i", without="run", api="127.0.0.1:1", environ={}) as agent, agent.workflow("w") as ctx:
        state = ctx.state
        for way in (state.get("x"), state.put("x"), state.history("x"), state.drop("x"), state.promote("x")):
            with pytest.raises(NoSidecar):
                await way
        for block in (state.checkout("x"), ctx.remembering("mesh://state/mesh/x@1")):
            with pytest.raises(NoSidecar):
                async with block:
                    pass
        with pytest.raises(NoSidecar):
            await anext(state.watch("x"))


# ------------------------------------------------------------------ kill -9


async def test_what_was_checked_out_stays_so_when_the_sidecar_is_killed(own: Own, make: Make) -> None:
    async with (
        make("state-j", api=own.api) as one,
        make("state-k", api=own.api) as other,
        one.workflow("w") as ctx,
        other.workflow("w") as theirs,
    ):
        await ctx.state.put("plan", "before")
        async with ctx.state.checkout("plan") as held:
            own.kill()
            own.up()
            with pytest.raises(LeaseHeld, match="state-j"):
                async with theirs.state.checkout("plan"):
                    pass
            assert (await held.commit("after")).version == 2
        found = await theirs.state.get("plan")
        assert found is not None
        assert found.value == "after"


async def test_increments_count_once_whatever_is_killed(own: Own, make: Make) -> None:
    writers, increments = 4, 25
    done = 0

    async def add(agent: Agent) -> None:
        nonlocal done
        async with agent.workflow("w") as ctx:
            for _ in range(increments):
                while True:
                    found = await ctx.state.get("n")
                    assert found is not None
                    with contextlib.suppress(StateConflict):
                        # Asked again under one id where the connection breaks.
                        await ctx.state.commit("n", found.value + 1, found)
                        break
                done += 1

    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(make(f"state-w{n}", api=own.api)) for n in range(writers)]
        async with agents[0].workflow("w") as ctx:
            await ctx.state.put("n", 0)
        adding = [asyncio.create_task(add(agent)) for agent in agents]
        for kill in range(1, 4):
            while done < kill * writers * increments / 4:
                await asyncio.sleep(0.001)
            own.kill()
            await asyncio.to_thread(own.up)
        await asyncio.gather(*adding)
        async with agents[0].workflow("w") as ctx:
            found = await ctx.state.get("n")
            assert found is not None
            assert (found.value, found.version) == (writers * increments, writers * increments + 1)


async def test_a_watch_goes_on_when_the_sidecar_is_killed(own: Own, make: Make) -> None:
    async with make("state-l", api=own.api) as agent, agent.workflow("w") as ctx:
        first = await ctx.state.put("plan", 1)
        watched = ctx.state.watch("plan")
        assert (await anext(watched)).version == 1
        own.kill()
        await asyncio.to_thread(own.up)
        second = await ctx.state.commit("plan", 2, first)
        assert (await anext(watched)).value == 2
        await ctx.state.commit("plan", 3, second)
        assert (await anext(watched)).value == 3
        await watched.aclose()  # type: ignore[attr-defined]


def test_keys_and_versions() -> None:
    assert key_of("plan", "") == "workflow/./plan"
    assert key_of("plan", "mesh") == "mesh/plan"
    assert key_of("mesh://state/mesh/x@1", "") == "mesh://state/mesh/x@1"
    assert [number_of(one) for one in (None, 0, 7, State("k", 3))] == [0, 0, 7, 3]


async def test_an_event_carries_a_reference_in_the_place_of_its_data(make: Make) -> None:
    desk, trader = make("state-desk"), make("state-trader")
    handled: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    @trader.on("state.signals")
    async def act(ctx: Ctx, event: Event) -> None:
        found = await ctx.state.get(event.data_ref)
        handled.put_nowait((event.data_ref, None if found is None else found.value))

    async with desk, trader, desk.workflow("state-10") as ctx:
        signal = await ctx.state.put("signal", {"buy": 100})
        await ctx.publish("state.signals", data_ref=signal.reference)
        async with asyncio.timeout(30):
            assert await handled.get() == (signal.reference, {"buy": 100})
