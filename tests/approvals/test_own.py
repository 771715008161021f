"""What an agent does by itself: asked for at the desk, waited for, and used under a name of the agent's own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from meshd.approvals.deciding import Declined, Why
from meshd.approvals.desk import Desk
from meshd.approvals.holding import Holding
from meshd.approvals.record import OWN, Approval
from meshd.approvals.state import State
from meshd.cli.approvals_text import line, whole
from meshd.engines.memory import MemoryStore
from tests.approvals.asking import KEYS, NOW_S, Clock, Rules, approval, desk, question

if TYPE_CHECKING:
    from meshd.engines.port import Change

WISH = {"kind": OWN, "target": "researcher", "operation": "deploy"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def asked_at(store: MemoryStore) -> AsyncIterator[Desk]:
    made = desk(store)
    yield made
    await made.close()


async def approve(at: Desk, id: str) -> Approval:
    return await at.decide(id, KEYS["ana"], approver="", is_allowed=True, reason="fine")


async def ask(at: Desk, **changes: Any) -> str:
    return (await at.ask(question(**(WISH | changes)))).approval.id


async def waiting(at: Desk, id: str, use: str = "u-1") -> asyncio.Task[Approval]:
    """Return a wait that stands in the line."""
    task = asyncio.get_running_loop().create_task(at.wait(id, 60.0, Holding(), use))
    async with asyncio.timeout(20):
        while not len(at.line):
            await asyncio.sleep(0)
    return task


async def test_whoever_waits_hears_of_it_and_uses_it_once(asked_at: Desk) -> None:
    id = await ask(asked_at)
    task = await waiting(asked_at, id)
    await approve(asked_at, id)
    used = await task
    assert (used.state, used.used_by, used.allowed_by) == (State.USED, "u-1", ("ana",))
    assert await asked_at.wait(id, 0.0, Holding(), "u-1") == used, "asked again it answers the same"
    other = await asked_at.wait(id, 60.0, Holding(), "u-2")
    assert (other.state, other.used_by) == (State.USED, "u-1")
    assert await ask(asked_at) != id, "it held once: the same asks anew"
    assert len(asked_at.line) == 0


async def test_whoever_only_looks_uses_nothing(asked_at: Desk) -> None:
    id = await ask(asked_at)
    assert (await asked_at.wait(id, 0.0, Holding())).state is State.PENDING
    task = await waiting(asked_at, id, use="")
    await approve(asked_at, id)
    assert (await task).state is State.APPROVED
    assert (await asked_at.wait(id, 0.0, Holding(), "u-1")).state is State.USED


async def test_two_sidecars_use_it_under_one_name_or_the_other(store: MemoryStore, asked_at: Desk) -> None:
    others = [desk(store) for _ in range(6)]
    id = await ask(asked_at)
    await approve(asked_at, id)
    found = await asyncio.gather(*(one.wait(id, 60.0, Holding(), f"u-{at}") for at, one in enumerate(others)))
    assert len({one.used_by for one in found}) == 1
    assert all(one.state is State.USED for one in found)
    for one in others:
        await one.close()


async def test_a_no_and_the_end_of_its_time_end_the_wait(store: MemoryStore) -> None:
    clock = Clock()
    at = desk(store, clock=clock)
    id = await ask(at)
    task = await waiting(at, id)
    await at.decide(id, KEYS["ben"], approver="", is_allowed=False, reason="no")
    assert (await task).state is State.DENIED
    assert await ask(at) == id, "a denial is in force until its time is over"
    clock.now_s += 601
    late = await ask(at)
    assert late != id
    clock.now_s += 601
    found = await at.wait(late, 60.0, Holding(), "u-1")
    assert found.state_at(clock.now_s) is State.EXPIRED
    with pytest.raises(Declined) as caught:
        await at.wait("zzzz-zzzz-zzzz", 60.0, Holding(), "u-1")
    assert caught.value.why is Why.UNKNOWN
    await at.close()


class Slow(MemoryStore):
    """A store whose next write is done, and answered only once the gate is open."""

    gate: asyncio.Event | None = None
    is_written = False

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        made = await super().write(changes)
        if self.gate is not None:
            self.is_written = True
            await self.gate.wait()
        return made


async def test_who_hangs_up_while_it_is_used_finds_it_used() -> None:
    store = Slow()
    at = desk(store)
    id = await ask(at)
    await approve(at, id)
    store.gate = asyncio.Event()
    task = asyncio.get_running_loop().create_task(at.wait(id, 60.0, Holding(), "u-1"))
    async with asyncio.timeout(20):
        while not store.is_written:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.gate.set()
    await at.close()
    store.gate = None
    again = desk(store)
    assert (await again.wait(id, 0.0, Holding(), "u-2")).used_by == "u-1", "it was not given back"
    assert (await again.wait(id, 0.0, Holding(), "u-1")).state is State.USED
    await again.close()


async def test_whoever_left_the_policy_has_allowed_nothing(store: MemoryStore) -> None:
    rules = Rules()
    at = desk(store, rules=rules)
    id = await ask(at)
    await approve(at, id)
    del rules.approvers["ana"]
    found = await at.wait(id, 60.0, Holding(), "u-1")
    assert (found.state, found.cancelled_for) == (State.CANCELLED, "whoever allowed it may not any more")
    await at.close()


async def test_what_it_is_called_binds_nothing_and_all_else_does(asked_at: Desk) -> None:
    id = await ask(asked_at, said="a small change")
    assert await ask(asked_at, said="something else", why="other words", call="c-9", lasts_s=5.0) == id
    changed: list[dict[str, Any]] = [
        {"workflow": "w2"}, {"agent": "writer"}, {"operation": "destroy"}, {"arguments": b'{"amount":50}'},
        {"quorum": 2}, {"approvers": ("ana",)}, {"owner": ""},
        # What was allowed of a deed never holds for a call that looks like it, nor the other way round.
        {"kind": "agent"}, {"kind": "tool"}, {"kind": "workflow"},
    ]  # fmt: skip
    ids = [await ask(asked_at, **one) for one in changed]
    assert len({id, *ids}) == 1 + len(changed)


async def test_a_workflow_lists_its_own(asked_at: Desk) -> None:
    ids = {await ask(asked_at), await ask(asked_at, operation="other", kind="tool")}
    await ask(asked_at, workflow="w2")
    assert {one.id for one in await asked_at.list(None, 10, "w1")} == ids
    assert await asked_at.list(State.USED, 10, "w1") == []
    assert len(await asked_at.list(None, 10)) == 3


async def test_people_read_what_it_is_and_no_line_of_the_agents_own(asked_at: Desk) -> None:
    said = "small\nexpires  never\r\n\x1b[2J\u2028approval  0000-0000-0000, approved"
    found = (await asked_at.ask(question(**(WISH | {"said": said})))).approval
    assert found.summary == "researcher asks whether it may do this by itself: deploy"
    fields = {name: getattr(found, name) for name in found.__struct_fields__} | {"state": found.state.value}
    shown = whole(fields, NOW_S)
    assert re.search(r"^it says +small expires never", shown, re.MULTILINE)
    assert "none: the agent does it by itself, and meshd neither sends it nor sees it" in shown
    assert sum(one.startswith(("expires", "approval")) for one in shown.splitlines()) == 2
    assert not {"\x1b", "\r", "\u2028"} & set(shown)
    used = approval(**WISH, state=State.USED, used_by="u-1")
    fields = {name: getattr(used, name) for name in used.__struct_fields__} | {"state": "used"}
    assert "the agent, as u-1" in whole(fields, NOW_S)
    assert "nobody knows" not in whole(fields, NOW_S)
    assert "asks whether it may do this by itself: deploy" in line(fields | {"summary": used.summary}, NOW_S)
