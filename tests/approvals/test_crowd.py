"""What one agent or workflow may ask of people: a loop that asks and takes back, or lets expire, is stopped."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.approvals.crowd import OPEN_BYTES_MAX, OPEN_MAX, TAKEN_BACK_MAX, WINDOW_S, Crowd
from meshd.approvals.desk import Desk, Flooded
from meshd.approvals.notices import KEEP_ABANDONED_S, KEEP_S, Notices
from meshd.approvals.record import SPACE, Decision
from meshd.approvals.state import State
from meshd.engines.memory import MemoryStore
from tests.approvals.asking import KEYS, NOW_S, Clock, approval, desk, question

BIG = b'{"text":"' + b"x" * 120_000 + b'"}'


def big(number: int, **changes: Any) -> Any:
    return question(arguments=BIG[:-2] + b'%d"}' % number, **changes)


async def stored(store: MemoryStore) -> int:
    """Return how many bytes of approvals are kept."""
    keys = await store.keys(SPACE, "", 10_000)
    return sum(len(record.value) for record in (await store.read(SPACE, keys)).values())


async def test_who_asks_and_takes_back_in_a_loop_is_stopped_and_leaves_little() -> None:
    store, clock = MemoryStore(), Clock()
    at = desk(store, clock=clock)
    for number in range(TAKEN_BACK_MAX):
        found = await at.ask(big(number))
        cancelled = await at.cancel(found.approval.id, "not wanted any more")
        assert (cancelled.arguments, cancelled.is_emptied, cancelled.digest) == ("", True, big(number).digest)
        assert cancelled.arguments_bytes > 120_000
    for number in range(1000):
        with pytest.raises(Flooded, match="100 questions were taken back within the last hour of the agent researcher"):
            await at.ask(big(TAKEN_BACK_MAX + number, workflow=f"w{number}"))
    assert await stored(store) < 100_000
    # Another agent and workflow may ask; the first may again when the hour is over.
    assert (await at.ask(big(0, agent="writer", workflow="w-other"))).approval.state is State.PENDING
    clock.now_s += WINDOW_S + 1
    assert (await at.ask(big(0))).approval.state is State.PENDING
    await at.close()


async def test_it_is_known_after_a_restart_and_at_another_sidecar() -> None:
    store = MemoryStore()
    at = desk(store)
    for number in range(TAKEN_BACK_MAX):
        await at.cancel((await at.ask(question(arguments=b"%d" % number))).approval.id, "")
    other = desk(store)
    assert (await other.ask(question(arguments=b"once"))).approval.state is State.PENDING
    await swept(other)
    with pytest.raises(Flooded):
        await other.ask(question(arguments=b"twice"))
    # What waits already is still found.
    assert (await other.ask(question(arguments=b"once"))).approval.state is State.PENDING
    await at.close()
    await other.close()


async def test_who_asks_for_a_moment_only_is_stopped_too() -> None:
    store, clock = MemoryStore(), Clock()
    at = desk(store, clock=clock)
    for number in range(OPEN_MAX):
        await at.ask(question(arguments=b"%d" % number, lasts_s=0.5))
        clock.now_s += 1.0
    with pytest.raises(Flooded, match=f"{OPEN_MAX} questions"):
        await at.ask(question(arguments=b"more"))
    await at.close()


async def test_what_waits_has_a_bound_in_bytes() -> None:
    store = MemoryStore()
    at = desk(store)
    for number in range(OPEN_BYTES_MAX // 120_000 + 1):
        await at.ask(big(number))
    with pytest.raises(Flooded, match="64 MB of arguments"):
        await at.ask(question(arguments=b"more"))
    assert await stored(store) < 1.1 * OPEN_BYTES_MAX
    await at.close()


async def test_what_people_decide_counts_for_nothing() -> None:
    store = MemoryStore()
    at = desk(store)
    for number in range(TAKEN_BACK_MAX + 20):
        found = await at.ask(question(arguments=b"%d" % number))
        is_allowed = number % 2 == 0
        await at.decide(found.approval.id, KEYS["ana"], approver="", is_allowed=is_allowed, reason="so")
        if is_allowed:
            assert (await at.cancel(found.approval.id, "after all not")).arguments
    assert (await at.ask(question(arguments=b"more"))).approval.state is State.PENDING
    await at.close()


@pytest.mark.parametrize("state", list(State))
def test_every_state_counts_or_does_not(state: State) -> None:
    crowd = Crowd()
    decided = (Decision("ana", is_allowed=True, reason="", at_s=NOW_S),)
    counts = state in (State.PENDING, State.CANCELLED, State.EXPIRED)
    for number in range(OPEN_MAX):
        crowd.note(approval(id=f"{number}", state=state, ended_s=NOW_S), NOW_S)
    assert bool(crowd.full("researcher", "w1", NOW_S)) is counts
    assert not crowd.full("researcher", "", NOW_S + 2 * WINDOW_S + 600)
    for number in range(OPEN_MAX):
        # Allowed meanwhile: it counts no more.
        crowd.note(approval(id=f"{number}", state=State.USED, decisions=decided, ended_s=NOW_S), NOW_S)
    assert not crowd.full("researcher", "w1", NOW_S)


async def swept(at: Desk) -> None:
    class Settings:
        webhook, topic = "", ""

    async def post(*_: object) -> None:
        raise AssertionError

    await Notices(at, Settings, None, post).sweep()


async def test_what_nobody_decided_is_kept_for_a_day_and_what_was_decided_for_a_week() -> None:
    store, clock = MemoryStore(), Clock()
    at = desk(store, clock=clock)
    cancelled = (await at.cancel((await at.ask(question(arguments=b"1"))).approval.id, "")).id
    expired = (await at.ask(big(2))).approval.id
    denied = (await at.ask(question(arguments=b"3"))).approval.id
    await at.decide(denied, KEYS["ana"], approver="", is_allowed=False, reason="no")
    clock.now_s += 601.0
    await swept(at)
    assert (await at.show(expired)).is_emptied
    clock.now_s = NOW_S + KEEP_ABANDONED_S + 1
    await swept(at)
    assert {one.id for one in await at.list(None, 10)} == {expired, denied}
    clock.now_s += 601.0
    await swept(at)
    assert {one.id for one in await at.list(None, 10)} == {denied}
    clock.now_s = NOW_S + KEEP_S + 601
    await swept(at)
    assert await at.list(None, 10) == []
    assert cancelled
    await at.close()
