"""The desk over a store in memory, with a clock that is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshd.approvals import desk as desk_module
from meshd.approvals.deciding import Declined, Why
from meshd.approvals.desk import Desk, Flooded, NotAllowed, SentAlready
from meshd.approvals.holding import Holding
from meshd.approvals.keys import WRONG_MAX, new_key
from meshd.approvals.record import INDEX, SENDING_S, SPACE, Approval
from meshd.approvals.state import State
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, StoreError
from meshd.telemetry import redact
from tests.approvals.asking import KEYS, QUESTION, Clock, Crash, Crashing, Rules, desk, question


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def asked_at(store: MemoryStore) -> AsyncIterator[Desk]:
    made = desk(store)
    yield made
    await made.close()


async def approve(at: Desk, id: str, who: str = "ana") -> Approval:
    return await at.decide(id, KEYS[who], approver="", is_allowed=True, reason="")


async def until(is_so: Any) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0)


async def held(at: Desk, hold_s: float = 60.0, **changes: Any) -> tuple[asyncio.Task[Approval], Holding]:
    """Hold a call, and return when it waits."""
    holding = Holding()
    task = asyncio.get_running_loop().create_task(at.obtain(question(**changes), hold_s, holding))
    await until(lambda: task.done() or (holding.approval is not None and len(at.line)))
    return task, holding


async def test_a_held_call_goes_on_when_it_is_allowed(asked_at: Desk) -> None:
    task, holding = await held(asked_at)
    assert holding.approval is not None
    await approve(asked_at, holding.approval.id)
    used = await task
    assert (used.state, used.used_by, used.allowed_by) == (State.USED, "c-1", ("ana",))
    assert len(asked_at.line) == 0


async def test_another_sidecar_decides(store: MemoryStore, asked_at: Desk) -> None:
    task, holding = await held(asked_at)
    assert holding.approval is not None
    other = desk(store)
    await approve(other, holding.approval.id)
    assert (await task).state is State.USED
    await other.close()


async def test_of_two_calls_that_are_the_same_one_goes_out_and_the_other_asks_anew(asked_at: Desk) -> None:
    first, holding = await held(asked_at)
    second = asyncio.get_running_loop().create_task(asked_at.obtain(question(call="c-2"), 60.0))
    await until(lambda: len(asked_at.line) == 2)
    assert holding.approval is not None
    assert asked_at.tally.asked == 1, "the second attached to the first one's approval"
    await approve(asked_at, holding.approval.id)
    await until(lambda: first.done() or second.done())
    await until(lambda: len(asked_at.pending) == 1)
    assert [first.done(), second.done()].count(True) == 1
    (again,) = asked_at.pending
    assert again != holding.approval.id
    await approve(asked_at, again)
    assert (await first).id != (await second).id


async def test_the_same_call_by_its_key_is_not_asked_about_again(store: MemoryStore) -> None:
    clock = Clock()
    desks = [desk(store, clock=clock) for _ in range(2)]
    first, holding = await held(desks[0], key="k1")
    second, _ = await held(desks[1], key="k1", call="c-2")
    assert holding.approval is not None
    await approve(desks[0], holding.approval.id)
    assert ((await first).used_by, (await first).used_key) == ("c-1", "k1")
    with pytest.raises(SentAlready) as caught:
        await second
    assert caught.value.approval.id == holding.approval.id
    # One that comes while it is sent is told so too; another key, or none, is another call, and asks.
    with pytest.raises(SentAlready):
        await desks[1].obtain(question(key="k1", call="c-3"), 0.0)
    for key in ("k2", ""):
        with pytest.raises(NotAllowed) as anew:
            await desks[1].obtain(question(key=key, call="c-4"), 0.0)
        assert anew.value.approval.id != holding.approval.id
    for one in desks:
        await one.close()


@pytest.mark.parametrize("end", ["sent", "died", "given back"])
async def test_what_became_of_it_decides_whether_the_same_call_asks_anew(store: MemoryStore, end: str) -> None:
    clock = Clock()
    at = desk(store, clock=clock)
    task, holding = await held(at, key="k1")
    assert holding.approval is not None
    await approve(at, holding.approval.id)
    used = await task
    if end == "died":
        clock.now_s += SENDING_S
    else:
        at.settled(used.id, "c-1", is_unsent=end == "given back", outcome="500")
        await until(lambda: not at._tasks)
    if end == "given back":
        again = await at.obtain(question(key="k1", call="c-2"), 0.0)
        assert (again.id, again.used_by, again.used_key) == (used.id, "c-2", "k1")
    else:
        with pytest.raises(NotAllowed) as caught:
            await at.obtain(question(key="k1", call="c-2"), 0.0)
        assert (caught.value.state, caught.value.approval.id == used.id) == (State.PENDING, False)
    await at.close()


async def test_two_sidecars_use_it_once(store: MemoryStore) -> None:
    desks = [desk(store) for _ in range(8)]
    found = await desks[0].ask(QUESTION)
    await approve(desks[0], found.approval.id)
    results = await asyncio.gather(
        *(one.obtain(question(call=f"c-{at}"), 0.0) for at, one in enumerate(desks)), return_exceptions=True
    )
    assert [isinstance(one, Approval) for one in results].count(True) == 1
    assert all(isinstance(one, Approval | NotAllowed) for one in results)
    for one in desks:
        await one.close()


async def test_many_who_ask_the_same_at_once_ask_once(store: MemoryStore) -> None:
    desks = [desk(store) for _ in range(8)]
    found = await asyncio.gather(*(one.ask(QUESTION) for one in desks))
    assert len({one.approval.id for one in found}) == 1
    assert len(await store.keys(SPACE)) == 1


async def test_a_denial_holds_for_the_repeat_until_it_is_forgotten(store: MemoryStore) -> None:
    clock = Clock()
    at = desk(store, clock=clock)
    found = await at.ask(QUESTION)
    await at.decide(found.approval.id, KEYS["ben"], approver="ben", is_allowed=False, reason="no")
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(QUESTION, 60.0)
    assert (caught.value.state, caught.value.approval.id) == (State.DENIED, found.approval.id)
    clock.now_s += 601
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(QUESTION, 0.0)
    assert caught.value.state is State.PENDING
    await at.close()


async def test_nobody_answers(store: MemoryStore) -> None:
    clock = Clock()
    at = desk(store, clock=clock)
    task, holding = await held(at, lasts_s=30.0)
    assert holding.approval is not None
    clock.now_s += 31
    at.line.changed("")
    with pytest.raises(NotAllowed) as caught:
        await task
    assert caught.value.state is State.EXPIRED
    assert (await at.show(holding.approval.id)).state is State.EXPIRED
    with pytest.raises(Declined) as declined:
        await approve(at, holding.approval.id)
    assert declined.value.why is Why.OVER
    await at.close()


async def test_what_was_allowed_must_be_used_in_time(store: MemoryStore) -> None:
    clock = Clock()
    at = desk(store, clock=clock)
    found = await at.ask(QUESTION)
    await approve(at, found.approval.id)
    clock.now_s += 601
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(QUESTION, 0.0)
    assert (caught.value.state, caught.value.approval.id != found.approval.id) == (State.PENDING, True)
    await at.close()


async def test_a_caller_that_hangs_up_uses_nothing(asked_at: Desk) -> None:
    task, holding = await held(asked_at)
    assert holding.approval is not None
    holding.leave()
    with pytest.raises(NotAllowed):
        await task
    await approve(asked_at, holding.approval.id)
    assert (await asked_at.show(holding.approval.id)).state is State.APPROVED
    assert (await asked_at.obtain(QUESTION, 0.0)).id == holding.approval.id


async def test_a_call_that_never_went_out_gives_back(asked_at: Desk) -> None:
    found = await asked_at.ask(QUESTION)
    await approve(asked_at, found.approval.id)
    used = await asked_at.obtain(QUESTION, 0.0)
    asked_at.settled(used.id, "another", is_unsent=True, outcome="")
    asked_at.settled(used.id, "c-1", is_unsent=True, outcome="")
    await asked_at.close()
    assert (await asked_at.show(used.id)).state is State.APPROVED
    again = await asked_at.obtain(QUESTION, 0.0)
    asked_at.settled(again.id, "c-1", is_unsent=False, outcome="200")
    await asked_at.close()
    shown = await asked_at.show(used.id)
    assert (shown.state, shown.outcome) == (State.USED, "200")


async def test_an_end_in_the_midst_of_using_leaves_no_doubt(store: MemoryStore) -> None:
    at = desk(store)
    found = await at.ask(QUESTION)
    await approve(at, found.approval.id)
    gate, writing = asyncio.Event(), asyncio.Event()
    write = store.write

    async def slow(changes: Any) -> list[bool]:
        writing.set()
        await gate.wait()
        return await write(changes)

    store.write = slow  # type: ignore[method-assign]
    task = asyncio.get_running_loop().create_task(at.obtain(QUESTION, 60.0))
    await writing.wait()
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await at.close()
    assert (await at.show(found.approval.id)).state is State.APPROVED


async def test_what_is_cancelled_is_not_sent(asked_at: Desk) -> None:
    task, holding = await held(asked_at)
    assert holding.approval is not None
    await asked_at.cancel(holding.approval.id, "not needed")
    with pytest.raises(NotAllowed) as caught:
        await task
    assert caught.value.state is State.CANCELLED
    with pytest.raises(Declined):
        await asked_at.cancel(holding.approval.id, "again")


async def test_whoever_left_the_policy_has_allowed_nothing(store: MemoryStore) -> None:
    rules = Rules()
    at = desk(store, rules=rules)
    found = await at.ask(QUESTION)
    await approve(at, found.approval.id)
    del rules.approvers["ana"]
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(QUESTION, 0.0)
    assert caught.value.state is State.PENDING
    assert (await at.show(found.approval.id)).state is State.CANCELLED
    await at.close()


async def test_wrong_people_change_nothing(asked_at: Desk) -> None:
    found = await asked_at.ask(QUESTION)
    id = found.approval.id
    for key, name, why in (
        ("nonsense", "", Why.KEY),
        (KEYS["ana"], "ben", Why.KEY),
        (KEYS["ola"], "", Why.OWN),
    ):
        with pytest.raises(Declined) as caught:
            await asked_at.decide(id, key, approver=name, is_allowed=True, reason="")
        assert caught.value.why is why
    with pytest.raises(Declined) as caught:
        await approve(asked_at, "zzzz-zzzz-zzzz")
    assert caught.value.why is Why.UNKNOWN
    assert await asked_at.show(id) == found.approval


async def test_wrong_keys_without_end_keep_nobody_from_deciding(asked_at: Desk) -> None:
    id = (await asked_at.ask(QUESTION)).approval.id
    for wrong in ("guess", new_key()):
        for _ in range(WRONG_MAX + 2):
            with pytest.raises(Declined):
                await asked_at.decide(id, wrong, approver="", is_allowed=True, reason="")
    # What somebody thought up is looked at no more; a key that nobody guesses is.
    with pytest.raises(Declined) as caught:
        await asked_at.decide(id, "guess", approver="", is_allowed=True, reason="")
    assert caught.value.why is Why.LIMITED
    assert (await asked_at.decide(id, KEYS["ana"], approver="", is_allowed=True, reason="")).state is State.APPROVED


async def test_a_secret_in_a_path_is_counted_among_what_is_not_shown(store: MemoryStore) -> None:
    at = desk(store, clean=redact.argument)
    one = (await at.ask(question(operation="POST /x?code=delete-all"))).approval
    assert (one.operation, one.hidden) == ("POST /x?code=[redacted]", 1)
    await at.close()


async def test_while_the_store_is_away_nothing_passes(store: MemoryStore) -> None:
    at = desk(store)
    found = await at.ask(QUESTION)
    await approve(at, found.approval.id)
    store.fault = StoreError("away")
    with pytest.raises(StoreError):
        await at.obtain(QUESTION, 60.0)
    store.fault = None
    assert (await at.obtain(QUESTION, 0.0)).state is State.USED
    nowhere = Desk(lambda: None, Rules)
    with pytest.raises(StoreError):
        await nowhere.obtain(QUESTION, 60.0)
    await at.close()


@pytest.mark.parametrize("damage", [b"", b"{}", b"nonsense", b'{"id":"x"}'])
async def test_a_damaged_record_lets_nothing_pass(store: MemoryStore, damage: bytes) -> None:
    at = desk(store)
    found = await at.ask(QUESTION)
    await approve(at, found.approval.id)
    await store.write([Change(SPACE, found.approval.id, damage)])
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(QUESTION, 0.0)
    assert (caught.value.state, caught.value.approval.id != found.approval.id) == (State.PENDING, True)
    with pytest.raises(Declined) as declined:
        await approve(at, found.approval.id)
    assert declined.value.why is Why.DAMAGED
    assert [one.id for one in await at.list(None, 100)] == [caught.value.approval.id]
    await at.close()


async def test_an_index_that_names_another_call_lends_it_nothing(store: MemoryStore) -> None:
    at = desk(store)
    cheap, dear = question(), question(arguments=b'{"amount":5000}')
    found = await at.ask(cheap)
    await approve(at, found.approval.id)
    await store.write([Change(INDEX, dear.digest, found.approval.id.encode())])
    with pytest.raises(NotAllowed) as caught:
        await at.obtain(dear, 0.0)
    assert caught.value.state is State.PENDING
    assert (await at.obtain(cheap, 0.0)).id == found.approval.id
    await at.close()


async def test_people_are_not_buried(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "PENDING_MAX", 3)
    at = desk(store)
    for number in range(3):
        await at.ask(question(arguments=b"%d" % number))
    with pytest.raises(Flooded):
        await at.ask(question(arguments=b"3"))
    assert (await at.ask(question(arguments=b"1"))).approval.state is State.PENDING
    await at.close()


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("at_step", range(14))
async def test_a_crash_at_any_step_loses_nothing_and_uses_nothing_twice(
    store: MemoryStore, at_step: int, is_after: bool
) -> None:
    """Ask, decide and use, and end the process at each operation of the store; then another process does it over."""
    sent = 0

    async def whole_way(at: Desk) -> None:
        nonlocal sent
        found = await at.ask(QUESTION)
        if found.approval.state is State.PENDING:
            await approve(at, found.approval.id)
        used = await at.obtain(QUESTION, 0.0)
        assert used.state is State.USED
        sent += 1

    crashing = Crashing(store, at_step, is_after=is_after)
    first = desk(crashing)
    try:
        await whole_way(first)
    except Crash:
        pass
    second = desk(store)
    before = await second.list(None, 10)
    states = {one.state for one in before}
    if State.APPROVED in states:
        # What a person has allowed still holds, and nobody is asked again.
        assert (await second.obtain(QUESTION, 0.0)).state is State.USED
        sent += 1
    else:
        await whole_way(second)
    after = await second.list(None, 10)
    used = [one for one in after if one.state is State.USED]
    assert sent <= len(used) == len(after), "each that was used is of one call, and none is left over"
    # A person is asked again only where the call before had gone out, or may have.
    assert len(after) == 1 + (State.USED in states)
    await second.close()
