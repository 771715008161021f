"""Shared state before what is wrong with those who use it: processes that are paused, files that are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent
from meshd_sdk.errors import LeaseHeld, LeaseLost, Malformed, Overloaded, StateConflict
from tests.end_to_end.sidecar import environ
from tests.engines.places import place_of
from tests.sdk.conftest import POLICY, Own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from meshd_sdk import Ctx

    Make = Callable[..., Agent]

HOLDER = """
import asyncio, sys
from meshd_sdk import Agent
from meshd_sdk.errors import LeaseLost

async def main():
    async with Agent("paused", api=sys.argv[1], environ={}) as agent, agent.workflow("w") as ctx:
        async with ctx.state.checkout("plan", lease=1) as held:
            print("held", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            try:
                await held.commit("paused")
            except LeaseLost as lost:
                print("lost to", lost.current.writer, lost.current.version, flush=True)
            else:
                print("written", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def holder(api: str) -> Iterator[subprocess.Popen[str]]:
    """An agent in a process of its own, which has checked the plan out and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, api],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ(),
    )
    yield process
    process.kill()
    process.wait()


async def taken(ctx: Ctx, value: str) -> int:
    """Commit as soon as nobody else has the plan; return the version."""
    while True:
        with contextlib.suppress(LeaseHeld):
            async with ctx.state.checkout("plan") as held:
                return (await held.commit(value)).version


async def test_an_agent_that_is_paused_past_its_lease_overwrites_nothing(api: str, make: Make, request: Any) -> None:
    async with make("quick") as agent, agent.workflow("w") as ctx:
        await ctx.state.put("plan", "before")
        holder = request.getfixturevalue("holder")
        assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
        holder.send_signal(signal.SIGSTOP)
        assert await taken(ctx, "quick") == 2
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("go on\n")
        holder.stdin.flush()
        assert await asyncio.to_thread(holder.stdout.readline) == "lost to quick 2\n"
        assert [one.version for one in await ctx.state.history("plan")] == [2, 1]


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Own]]:
    """Two sidecars on one Redis."""
    async with place_of("redis", tmp_path) as place:
        made = [Own(tmp_path / name) for name in ("one", "other")]
        for one in made:
            one.start(POLICY, "--store", place.url, MESHD_API=one.api)
        yield made
        for one in made:
            one.kill()


async def test_a_sidecar_that_is_paused_past_a_lease_overwrites_nothing(two: list[Own], make: Make) -> None:
    async with (
        make("slow", api=two[0].api) as slow,
        make("quick", api=two[1].api) as quick,
        slow.workflow("w") as ctx,
        quick.workflow("w") as theirs,
    ):
        await ctx.state.put("plan", "before")
        watched = ctx.state.watch("plan")
        assert (await anext(watched)).version == 1
        async with ctx.state.checkout("plan", lease=1) as held:
            two[0].signal(signal.SIGSTOP)
            late = asyncio.create_task(held.commit("paused"))  # it is under way while the sidecar sleeps
            assert await taken(theirs, "quick") == 2
            two[0].signal(signal.SIGCONT)
            with pytest.raises(LeaseLost) as lost:
                await late
        assert lost.value.current is not None
        assert (lost.value.current.version, lost.value.current.writer) == (2, "quick")
        assert (await anext(watched)).value == "quick"
        await watched.aclose()  # type: ignore[attr-defined]
        with pytest.raises(StateConflict):
            await ctx.state.commit("plan", "paused", 1)
        assert await taken(ctx, "awake") == 3


async def test_a_key_of_ten_kilobytes(make: Make) -> None:
    async with make("wordy") as agent, agent.workflow("wordy") as ctx:
        long = "k" * 10_000
        state = ctx.state
        for way in (
            state.get(long),
            state.put(long),
            state.commit(long, 1, 1),
            state.delete(long, 1),
            state.history(long),
            state.shadow(long, 1),
            state.promote(long),
            state.drop(long),
            state.get(f"mesh://state/mesh/{long}@1"),
            anext(state.watch(long)),
        ):
            with pytest.raises(Malformed, match="255 characters"):
                await way
        for block in (state.checkout(long), ctx.remembering(f"mesh://state/mesh/{long}@1")):
            with pytest.raises(Malformed):
                async with block:
                    pass


def _spoil(home: Path, mark: bytes) -> bytes:
    """Overwrite the pages of the embedded store on which a value begins; return the file."""
    path, page = home / "ledger.db", 4096
    data = bytearray(path.read_bytes())
    assert mark in data
    while mark in data:  # there may be a page that is not used any more
        at = data.index(mark) // page * page
        data[at : at + page] = b"\xa5" * page
    path.write_bytes(data)
    return bytes(data)


async def test_a_page_of_the_embedded_store_that_is_damaged(own: Own, make: Make) -> None:
    async with make("unlucky", api=own.api) as agent, agent.workflow("w") as ctx:
        for number in range(20):
            await ctx.state.put(f"n{number}", f"value-{number:02d}-" * 150)
    assert await asyncio.to_thread(own.stop) == 0
    spoilt = _spoil(own.home, b"value-07-")
    await asyncio.to_thread(own.up)
    async with make("unlucky", api=own.api) as agent, agent.workflow("w") as ctx:
        for way in (
            lambda: ctx.state.get("n7"),
            lambda: ctx.state.get("n1"),
            lambda: ctx.state.put("new", 1),
            lambda: anext(ctx.state.watch("n7")),
        ):
            with pytest.raises(Overloaded, match=r"(?s)ledger.db is damaged .*restore it from a backup") as refused:
                await way()
            assert (refused.value.reason, refused.value.is_retryable) == ("store_unavailable", False)
    assert await asyncio.to_thread(own.stop) == 0
    assert (own.home / "ledger.db").read_bytes() == spoilt, "evidence is left as it is"
    assert "Traceback" not in own.log


async def test_a_page_that_is_damaged_while_the_sidecar_runs(own: Own, make: Make) -> None:
    """A value is told whole or as damaged, and the rest goes on. (SQLite reads neighbours where it looks for a key.)"""
    async with make("unlucky", api=own.api) as agent, agent.workflow("w") as ctx:
        for number in range(12):
            await ctx.state.put(f"n{number}", "x" * 100_000 + f"value-{number:02d}-" + "x" * 600_000)
    assert await asyncio.to_thread(own.stop) == 0
    await asyncio.to_thread(own.up)
    _spoil(own.home, b"value-07-")
    async with make("unlucky", api=own.api) as agent, agent.workflow("w") as ctx:
        whole, damaged = [], []
        for number in (*range(7), *range(8, 12), 7):  # more than is remembered of the file: the page is read anew
            try:
                found = await ctx.state.get(f"n{number}")
            except Overloaded as refused:
                damaged.append((number, refused.reason, refused.is_retryable, "damaged" in refused.message))
            else:
                assert found is not None
                assert found.value == "x" * 100_000 + f"value-{number:02d}-" + "x" * 600_000
                whole.append(number)
        assert {one[1:] for one in damaged} == {("store_unavailable", False, True)}
        assert 7 not in whole
    assert own.get("/livez")[0] == 200
    assert "Traceback" not in own.log
