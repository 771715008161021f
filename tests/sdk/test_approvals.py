"""`ctx.ask_approval` through a real sidecar: allowed, denied, expired, over kills and drains, and without one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd.approvals.keys import hash_of, new_key
from meshd_sdk import Agent, NoSidecar
from meshd_sdk.errors import (
    ApprovalDenied,
    ApprovalExpired,
    ApprovalPending,
    DeadlineExceeded,
    Malformed,
    Refused,
)
from meshd_sdk.sync import Agent as SyncAgent
from tests.end_to_end.sidecar import Sidecar
from tests.end_to_end.test_approvals import decide, listed
from tests.ports import free_port
from tests.sdk.conftest import soon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANA = new_key()
POLICY = f'agent: boss\nowner: ola\napprovers:\n  ana: {{key: "sha256:{hash_of(ANA)}"}}\n'


class Asked(Sidecar):
    """A sidecar with an approver, always on one port."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.api = f"127.0.0.1:{free_port()}"

    def up(self) -> None:
        self.start(POLICY, MESHD_API=self.api)

    def pending(self) -> list[dict[str, Any]]:
        return listed(self, "pending")

    async def one(self, workflow: str) -> dict[str, Any]:
        """Wait until something of a workflow waits for people."""
        found: list[dict[str, Any]] = await soon(
            lambda: [one for one in self.pending() if one["workflow"] == workflow], "a question"
        )
        return found[0]

    async def decided(self, id: str, what: str = "approve") -> None:
        assert (await asyncio.to_thread(decide, self, id, what, ANA, {"reason": "so it is"}))[0] == 200


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    made = Asked(tmp_path_factory.mktemp("asked") / "home")
    made.up()
    yield made
    made.kill()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Asked]:
    made = Asked(tmp_path / "home")
    made.up()
    yield made
    made.kill()


def agent_of(one: Asked, name: str) -> Agent:
    return Agent(name, api=one.api, environ={})


async def test_what_people_allow_is_returned_and_holds_once(asked: Asked) -> None:
    async with agent_of(asked, "one") as agent, agent.workflow("sdk-1") as ctx:
        task = asyncio.create_task(ctx.ask_approval("deploy", {"to": "prod"}, summary="the release"))
        waits = await asked.one("sdk-1")
        seen = asked.admin(f"/v1/approvals/{waits['id']}")
        assert (seen["agent"], seen["operation"], seen["said"]) == ("one", "deploy", "the release")
        assert json.loads(seen["arguments"]) == {"to": "prod"}
        assert [found.id for found in await ctx.approvals("pending")] == [waits["id"]]
        await asked.decided(waits["id"])
        found = await task
        assert (found.id, found.state, found.approved_by) == (waits["id"], "used", ("ana",))
        assert (found.decisions[0].reason, found.operation, found.workflow) == ("so it is", "deploy", "sdk-1")
        with pytest.raises(ApprovalPending, match=r"nobody has decided yet") as caught:
            await ctx.ask_approval("deploy", {"to": "prod"}, timeout=0.01)
        assert caught.value.metadata["approval"] != found.id
        assert caught.value.reason == "approval_pending"
        assert [one.state for one in await ctx.approvals()] == ["used", "pending"]


async def test_a_no_and_no_answer_have_types(asked: Asked) -> None:
    async with agent_of(asked, "two") as agent, agent.workflow("sdk-2") as ctx:
        task = asyncio.create_task(ctx.ask_approval("deploy", b"\x00\x01"))
        waits = await asked.one("sdk-2")
        await asked.decided(waits["id"], "deny")
        with pytest.raises(ApprovalDenied, match=r"deploy was denied by ana .*: so it is") as caught:
            await task
        assert not isinstance(caught.value, ApprovalExpired)
        assert caught.value.metadata == {"approval": waits["id"], "approver": "ana", "why": "so it is"}
        with pytest.raises(ApprovalDenied):
            await ctx.ask_approval("deploy", b"\x00\x01")
        with pytest.raises(ApprovalExpired, match="nobody decided"):
            await ctx.ask_approval("other", expires=0.2)
        with pytest.raises(Malformed, match="expires must be no longer"):
            await ctx.ask_approval("other", expires=7200)
        with pytest.raises(Malformed, match="operation must be"):
            await ctx.ask_approval("two words")
        with pytest.raises(TypeError):
            await ctx.ask_approval("other", object())
        with pytest.raises(ValueError, match="APPROVAL_STATE_NONE"):
            await ctx.approvals("none")
    async with agent_of(asked, "three") as agent, agent.workflow("sdk-3", timeout=1) as ctx:
        with pytest.raises(DeadlineExceeded):
            await ctx.ask_approval("deploy")


async def test_two_who_ask_for_the_same_at_once_are_allowed_one_each(asked: Asked) -> None:
    async with agent_of(asked, "four") as agent, agent.workflow("sdk-4") as ctx:
        tasks = [asyncio.create_task(ctx.ask_approval("deploy", {"n": 1})) for _ in range(2)]
        first = await asked.one("sdk-4")
        await asked.decided(first["id"])
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        second = await asked.one("sdk-4")
        assert second["id"] != first["id"]
        assert sum(task.done() for task in tasks) == 1
        await asked.decided(second["id"])
        assert {(await task).id for task in tasks} == {first["id"], second["id"]}


async def test_it_waits_over_a_kill_and_a_drain_of_the_sidecar(own: Asked) -> None:
    async with agent_of(own, "five") as agent, agent.workflow("sdk-5") as ctx:
        task = asyncio.create_task(ctx.ask_approval("deploy", {"n": 1}))
        waits = await own.one("sdk-5")
        for end in (own.kill, own.stop):
            await asyncio.to_thread(end)
            await asyncio.to_thread(own.up)
            assert not task.done()
            assert [one["id"] for one in own.pending()] == [waits["id"]]
        await own.decided(waits["id"])
        async with asyncio.timeout(60):
            assert (await task).id == waits["id"]
        assert len(listed(own, "used")) == 1
        assert own.pending() == []


async def test_who_leaves_waits_no_longer(asked: Asked) -> None:
    agent = agent_of(asked, "six")
    async with agent, agent.workflow("sdk-6") as ctx:
        task = asyncio.create_task(ctx.ask_approval("deploy"))
        await asked.one("sdk-6")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises((NoSidecar, Refused)):
        await ctx.ask_approval("deploy")


def test_a_program_without_async_asks_too(asked: Asked) -> None:
    with SyncAgent("seven", api=asked.api, environ={}) as agent, agent.workflow("sdk-7") as ctx:
        with pytest.raises(ApprovalPending) as caught:
            ctx.ask_approval("deploy", {"n": 1}, timeout=0.01)
        id = caught.value.metadata["approval"]
        assert [one.id for one in ctx.approvals()] == [id]
        assert decide(asked, id, "approve", ANA)[0] == 200
        assert ctx.ask_approval("deploy", {"n": 1}).id == id


async def test_without_a_sidecar_nothing_passes_unasked() -> None:
    agent = Agent("eight", api=f"127.0.0.1:{free_port()}", without="run", environ={})
    async with agent, agent.workflow("sdk-8") as ctx:
        with pytest.raises(NoSidecar, match="nobody can be asked"):
            await ctx.ask_approval("deploy")
        assert await ctx.approvals() == []
