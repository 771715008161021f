"""Words that cross on a slow store, and everything that may come between two of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd.engines.port import Change, StoreError
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.desk import ACCOUNTS, FREED, RECALL, Desk
from tests.ledger.test_sharing import Mesh, Shared, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Slow(Shared):
    """A store whose every word takes a few turns of the loop, as one over a network does."""

    turns = 3

    def __init__(self, other: Shared | None = None) -> None:
        super().__init__(other)
        self.fails: Any = None
        """Called with the changes of a write: "before" or "after" raises StoreError at that point."""
        self.reads = 0

    async def _turn(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    async def read(self, space, keys):  # type: ignore[no-untyped-def]
        await self._turn()
        self.reads += 1
        found = await super().read(space, keys)
        await self._turn()
        return found

    async def write(self, changes):  # type: ignore[no-untyped-def]
        await self._turn()
        how = self.fails(changes) if self.fails is not None else None
        if how == "before":
            raise StoreError("away")
        made = await super().write(changes)
        if how == "after":
            raise StoreError("away; it may have been done or not")
        await self._turn()
        return made

    async def watch(self, space, changed):  # type: ignore[no-untyped-def]
        await self._turn()
        return await super().watch(space, changed)


class SlowMesh(Mesh):
    async def start(self, number: int, **more: Any) -> Ledger:
        store = self.stores[number] = Slow(self.server)
        ledger = self.ledgers[number] = await Ledger.open(self.path / str(number), store=store, **more)
        return ledger


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SlowMesh]:
    one = SlowMesh(tmp_path)
    yield one
    for store in one.stores.values():
        store.fails = None  # type: ignore[attr-defined]
    for ledger in one.ledgers.values():
        await ledger.close()


async def turns(count: int = 300) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def spend(ledger: Ledger, account: str, bound: int, limit: int = 10**6, queue_s: float = 1) -> int:
    got = await ledger.wait(account, limit, bound, bound, queue_s=queue_s)
    if isinstance(got, Shortfall):
        return 0
    got.settle(bound)
    return bound


async def drained(ledger: Ledger, limit: int) -> int:
    """Spend a lease, and no refill of it."""
    spent = 0
    ledger._entries["a"].refill_below = -1
    while isinstance(got := ledger.reserve("a", limit, 100, 100), Reservation):
        got.settle(100)
        spent += 100
    return spent


# 1. Overspent.


async def test_delegating_from_an_account_that_was_just_closed_makes_no_tokens(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 600)
    await two.orders.close("a")
    try:
        await one.orders.delegate(held, "delegated/1/a")
    except StoreError:
        pass
    await two.orders.reopen("a")
    await turns()
    spent = await spend(two, "delegated/1/a", 600) + await spend(two, "a", 1000, 1000)
    assert spent <= 1000, spent


async def test_delegating_when_less_is_available_than_was_reserved_makes_no_tokens(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    held, other = await take(one, 600), await take(one, 400)
    other.settle(700)  # a bound that did not hold
    try:
        await one.orders.delegate(held, "delegated/1/a")
    except StoreError:
        pass
    books = await Desk(mesh.server).owner("a")
    child = await Desk(mesh.server).owner("delegated/1/a")
    assert child.total <= books.delegated, (child.total, books)


async def test_an_ended_child_that_is_reopened_has_nothing(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await one.delegate("a", 1000, "delegated/1/a", 600, 600, queue_s=1) == 600
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    await two.orders.reopen("delegated/1/a")
    spent = await spend(two, "delegated/1/a", 600) + await spend(one, "a", 1000, 1000)
    assert spent <= 1000, spent


async def test_a_superseded_run_does_not_write_the_holder_back(mesh: SlowMesh) -> None:
    import shutil

    one = await mesh.start(1, segment_bytes=256)
    (await take(one, 10)).settle(10)
    shutil.copytree(mesh.path / "1", mesh.path / "2")
    copy = await mesh.start(2)
    (await take(copy, 10)).settle(10)
    # The first run goes on, and its journal comes to the end of a segment.
    for _ in range(20):
        try:
            got = one.reserve("a", 1000, 1, 1)
        except StoreError:
            break
        if isinstance(got, Reservation):
            got.settle(1)
        await turns(20)
    await turns()
    _, record = await Desk(mesh.server).holder(copy._leases._holder)
    assert record is not None
    assert record.epoch == copy.started.epoch, (record.epoch, copy.started.epoch)


async def test_and_so_two_runs_of_one_epoch_never_share_a_lease(mesh: SlowMesh) -> None:
    import shutil

    limit = 100_000
    one = await mesh.start(1, segment_bytes=256)
    spent = await spend(one, "a", 10, limit)
    shutil.copytree(mesh.path / "1", mesh.path / "2")
    copy = await mesh.start(2)
    spent += await spend(copy, "a", 10, limit)
    while isinstance(got := one.reserve("a", limit, 4000, 4000), Reservation):
        got.settle(4000)
        spent += 4000
    for _ in range(20):
        try:
            got = one.reserve("a", limit, 1, 1)
        except StoreError:
            break
        if isinstance(got, Reservation):
            got.settle(1)
            spent += 1
        await turns(20)
    await turns()
    spent += await drained(copy, limit)
    await mesh.kill(1)
    one = await mesh.start(1)
    idle = 0
    while idle < 4:
        idle += 1
        for ledger in (one, copy):
            try:
                got = ledger.reserve("a", limit, 200, 200) or await ledger.wait("a", limit, 200, 200, queue_s=0)
            except StoreError:
                continue
            if isinstance(got, Reservation):
                got.settle(200)
                spent += 200
                idle = 0
    assert (one.started.epoch, one.state) != (copy.started.epoch, "ok"), (one.started, copy.started, spent)
    assert spent <= limit, spent


async def test_a_rollback_that_later_steps_have_covered_is_found(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await spend(two, "a", 1, 1000)
    before = mesh.server._spaces["account"]["a"]
    held = await take(one, 400)
    await turns()
    mesh.server._spaces["account"]["a"] = before
    # The books have forgotten the lease, and more steps come after than were lost.
    for _ in range(10):
        two._leases.tell(two._entries["a"])
        await turns(40)
    spent, idle = 1, 0
    while more := await spend(two, "a", 50, 1000, 0.1):
        spent += more
    held.settle(400)
    spent += 400
    while idle < 3:
        idle += 1
        for ledger in (two, one):
            try:
                got = await ledger.wait("a", 1000, 50, 50, queue_s=0.1)
            except StoreError:
                continue
            if isinstance(got, Reservation):
                got.settle(50)
                spent, idle = spent + 50, 0
    books = await Desk(mesh.server).owner("a")
    assert books.frozen, (spent, books)


async def test_the_lower_of_two_limits_on_one_account_holds(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    spent = await spend(one, "a", 300, 10_000)
    for _ in range(12):
        spent += await spend(two, "a", 100, 10_000)
    await two._leases.report()
    await turns()
    under = await spend(one, "a", 600, 1000)
    assert under == 0, f"{spent} were spent, and a call under 1000 took {under}"


# 2. Lost.


async def test_what_a_childs_child_has_left_flows_back_whichever_ends_first(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    await one.delegate("a", 1000, "delegated/b/a", 600, 600, queue_s=1)
    await two.delegate("delegated/b/a", 10**6, "delegated/c/a", 300, 300, queue_s=1)
    one.orders.end("a", "delegated/b/a")
    await one.orders.finish()
    await turns()
    two.orders.end("delegated/b/a", "delegated/c/a")
    await two.orders.finish()
    await turns()
    assert await mesh.books("a") == (1000, 1000, 0) or await spend(one, "a", 1000, 1000) == 1000, await Desk(
        mesh.server
    ).owner("a")


async def test_both_ends_at_once(mesh: SlowMesh) -> None:
    one, two, three = await mesh.start(1), await mesh.start(2), await mesh.start(3)
    await one.delegate("a", 1000, "delegated/b/a", 600, 600, queue_s=1)
    await two.delegate("delegated/b/a", 10**6, "delegated/c/a", 300, 300, queue_s=1)
    await spend(three, "delegated/c/a", 10)
    # The callee's sidecar ends its part, then answers; the caller's ends its own when the answer is there.
    two.orders.end("delegated/b/a", "delegated/c/a")
    one.orders.end("a", "delegated/b/a")
    await one.orders.finish()
    await two.orders.finish()
    await turns(1000)
    books = await Desk(mesh.server).owner("a")
    assert books.settled + books.outstanding <= 510, books
    assert not books.children, books
    assert await spend(one, "a", 990, 1000) == 990, books


async def test_a_delegation_that_ends_while_the_store_is_away_for_a_moment(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    await one.delegate("a", 1000, "delegated/1/a", 600, 600, queue_s=1)
    mesh.stores[1].fault = StoreError("away")
    one.orders.end("a", "delegated/1/a")
    await turns()
    mesh.stores[1].fault = None
    mesh.server._watchers.tell_all_missed()
    await turns()
    assert await spend(one, "a", 1000, 1000) == 1000, await Desk(mesh.server).owner("a")


async def test_the_last_lease_comes_back_and_the_parent_cannot_be_written(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    await one.delegate("a", 1000, "delegated/1/a", 600, 600, queue_s=1)
    held = await two.wait("delegated/1/a", 10**6, 100, 100, queue_s=1)
    assert isinstance(held, Reservation)
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    await turns()
    mesh.stores[2].fails = lambda changes: "before" if any(one.key == "a" for one in changes) else None  # type: ignore[attr-defined]
    held.settle(0)
    await turns()
    mesh.stores[2].fails = None  # type: ignore[attr-defined]
    await turns()
    await two._leases.report()
    await turns()
    assert (await Desk(mesh.server).owner("delegated/1/a")).outstanding == 0
    assert await spend(one, "a", 1000, 1000) == 1000, await Desk(mesh.server).owner("a")


async def test_a_sidecar_that_was_killed_with_a_delegation_out_ends_it_when_it_is_back(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    await one.delegate("a", 1000, "delegated/1/a", 600, 600, queue_s=1)
    await mesh.kill(1)
    one = await mesh.start(1)
    await turns()
    assert await spend(one, "a", 1000, 1000) == 1000, await Desk(mesh.server).owner("a")


async def test_a_holder_whose_closed_stake_was_swept_is_not_charged_again(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    assert await spend(one, "a", 500, 1000)
    holder = one._leases._holder
    await one.orders.write_off("a", holder)
    for number in range(64):

        def visit(owner: Any, name: str = f"h{number}") -> None:
            from meshd.ledger.account import Report, Request

            owner.step(Request(name, 1, 1, 1, 1000, 0, 0, 0, 0, False))
            owner.step(Report(name, 1, 1, 0, 0, is_closed=True))

        await Desk(mesh.server).order("a", visit)
    before = (await mesh.books())[2]
    await one.wait("a", 1000, 501, 501, queue_s=0.1)
    assert (await mesh.books())[2] == before


# 3. Refused falsely, or for ever.


async def test_whoever_has_given_up_still_hears_of_others_that_wait(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await spend(two, "a", 10, 1000)
    held = await take(one, 450)
    for _ in range(2):
        assert await spend(two, "a", 700, 1000, 0) == 0
        await turns()
    held.settle(450)
    await turns()
    # The second has idle tokens and nobody who waits.
    assert not two._entries["a"].waiting
    room = two._entries["a"].holder.room  # type: ignore[union-attr]
    assert await spend(one, "a", 540, 1000, 1.5) == 540, (
        room,
        two._entries["a"].is_wanting,
        await Desk(mesh.server).owner("a"),
    )


async def test_a_close_while_a_holder_asks_is_heard(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await one.delegate("a", 1000, "delegated/1/a", 600, 600, queue_s=1) == 600
    assert await spend(two, "delegated/1/a", 10) == 10
    await two._leases.report()
    real, late = mesh.stores[2].write, asyncio.Event()

    async def slow(changes: Any) -> Any:
        made = await real(changes)
        await late.wait()
        return made

    mesh.stores[2].write = slow  # type: ignore[method-assign]
    two._leases.ask(two._entries["delegated/1/a"], 10**6, 0, is_volatile=True)  # a refill, as any call may cause
    await turns()
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    await turns()
    late.set()
    mesh.stores[2].write = real  # type: ignore[method-assign]
    await turns()
    await two._leases.report()
    await turns()
    assert await spend(one, "a", 990, 1000, 1) == 990, await Desk(mesh.server).owner("delegated/1/a")


async def test_tokens_lent_are_not_granted_to_somebody_else_first(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 600)
    await turns()
    real, gate, is_first = mesh.stores[1].read, asyncio.Event(), [True]

    async def slow(space: str, keys: Any) -> Any:
        if is_first:
            is_first.clear()
            await gate.wait()
        return await real(space, keys)

    mesh.stores[1].read = slow  # type: ignore[method-assign]
    delegating = asyncio.ensure_future(one.orders.delegate(held, "delegated/1/a"))
    await asyncio.sleep(0)
    # Any other word of the first: a call that ends while somebody waits, a refill, the report of every ten seconds.
    one._leases.tell(one._entries["a"])
    await turns()
    got = await two.wait("a", 1000, 1000, 1, queue_s=0.1)
    spent = 0
    if isinstance(got, Reservation):
        spent = got.bound
        got.settle(spent)
    gate.set()
    try:
        await delegating
    except StoreError:
        pass
    spent += await spend(two, "delegated/1/a", 600) + await spend(two, "a", 400, 1000)
    assert spent <= 1000, (spent, await Desk(mesh.server).owner("delegated/1/a"), await Desk(mesh.server).owner("a"))


async def test_a_word_that_was_not_answered_is_said_again(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await spend(one, "a", 100, 1000)
    await one._leases.report()
    failed = []

    def fails(changes: Any) -> str | None:
        if not failed and any(change.space == ACCOUNTS for change in changes):
            failed.append(1)
            return "before"
        return None

    mesh.stores[1].fails = fails  # type: ignore[attr-defined]
    assert await spend(two, "a", 900, 1000, 1.5) == 900, await Desk(mesh.server).owner("a")


async def test_a_top_up_while_the_owner_is_asked_is_not_missed(mesh: SlowMesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await spend(one, "a", 1000, 1000)
    assert await spend(two, "a", 10, 1000) == 0
    await turns()
    # An answer that was on its way when the word of the top-up came in.
    entry = two._entries["a"]
    two._leases.ask(entry, 1000, 10, is_volatile=True)
    real, late = mesh.stores[2].write, asyncio.Event()

    async def slow(changes: Any) -> Any:
        made = await real(changes)
        await late.wait()
        return made

    mesh.stores[2].write = slow  # type: ignore[method-assign]
    await turns()
    await one.orders.top_up("a", 500)
    await turns()
    late.set()
    mesh.stores[2].write = real  # type: ignore[method-assign]
    await turns()
    assert await spend(two, "a", 400, 1000, 1) == 400, (entry.is_fresh, await Desk(mesh.server).owner("a"))


async def test_a_top_up_whose_word_cannot_be_written_is_told_as_made(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    await spend(one, "a", 10, 1000)
    mesh.stores[1].fails = lambda changes: "before" if any(one.space == FREED for one in changes) else None  # type: ignore[attr-defined]
    raised = False
    try:
        await one.orders.top_up("a", 500)
    except StoreError:
        raised = True
    total = (await mesh.books())[0]
    assert not (raised and total == 1500), "told as failed, and made: whoever tries again adds twice"


# 4. Too much, or all at once.


async def test_many_first_calls_at_once_watch_once(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    await asyncio.gather(*(one.wait(f"w{number}", 1000, 10, 10, queue_s=1) for number in range(50)))
    assert len(mesh.server._watchers._by_space[RECALL]) == 1, len(mesh.server._watchers._by_space[RECALL])


async def test_one_damaged_account_stops_no_other(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    for account in ("a", "b"):
        assert await spend(one, account, 100, 1000)
    await mesh.server.write([Change(ACCOUNTS, "b", b"{")])
    try:
        await one._leases.report()
    except StoreError:
        pass
    assert (await mesh.books("a"))[2] == 100, "the spending of the sound account is not in the store"


async def test_a_damaged_account_does_not_stop_a_start(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    for account in ("a", "b"):
        assert await spend(one, account, 100, 1000)
    await mesh.kill(1)
    await mesh.server.write([Change(ACCOUNTS, "b", b"{")])
    one = await mesh.start(1)
    assert await spend(one, "a", 100, 1000) == 100


async def test_a_damaged_parent_keeps_nothing_else_from_flowing_back_or_being_reported(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=1)
    await one.delegate("b", 1000, "delegated/2/b", 300, 300, queue_s=1)
    assert await spend(one, "c", 100, 1000)
    await mesh.server.write([Change(ACCOUNTS, "a", b"{")])
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    one.orders.end("b", "delegated/2/b")
    await one.orders.finish()
    await one._leases.report()
    assert (await mesh.books("c"))[2] == 100
    assert await spend(one, "b", 1000, 1000) == 1000
    assert await one.orders.left_over() == {"delegated/1/a": "a"}, "the next start tries again"


async def test_how_many_words_the_end_game_takes(mesh: SlowMesh) -> None:
    ledgers = [await mesh.start(number) for number in range(16)]
    spender = ledgers[0]
    held = [await take(spender, 100, 10_000) for _ in range(100)]
    waiting = [asyncio.ensure_future(ledger.wait("a", 10_000, 100, 100, queue_s=5)) for ledger in ledgers[1:]]
    await turns(2000)
    before = sum(store.writes + store.reads for store in mesh.stores.values())  # type: ignore[attr-defined]
    for one in held[:50]:
        one.settle(100)
        await turns(200)
    made = sum(store.writes + store.reads for store in mesh.stores.values()) - before  # type: ignore[attr-defined]
    for one in held[50:]:
        one.settle(100)
    await asyncio.gather(*waiting)
    print(f"{made / 50:.1f} requests to the store for each call that is settled")
    assert made / 50 < 20


async def test_an_account_outlives_a_fault_of_an_engine(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    assert await spend(one, "a", 10, 1000)
    real = mesh.stores[1].read
    broken = [True]

    async def read(space: str, keys: Any) -> Any:
        if space == ACCOUNTS and broken:
            broken.clear()
            raise RuntimeError("a fault that is no StoreError")
        return await real(space, keys)

    mesh.stores[1].read = read  # type: ignore[method-assign]
    try:
        await one.wait("a", 1000, 900, 900, queue_s=0)
    except Exception:  # noqa: BLE001
        pass
    assert not one._entries["a"].is_asking, "no message to this owner will ever be sent again"


async def test_a_grant_that_lands_late_keeps_its_slot(mesh: SlowMesh) -> None:
    one = await mesh.start(1)
    real: Any = mesh.stores[1].write
    late: list[Any] = []

    async def write(changes: Any) -> Any:
        if not late and any(change.space == ACCOUNTS for change in changes):
            late.append(changes)
            raise StoreError("timed out; what was asked may have been done or not")
        return await real(changes)

    mesh.stores[1].write = write  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await one.wait("a", 1000, 100, 100, queue_s=0)
    read = mesh.stores[1].read
    reads = [0]

    async def slow(space: str, keys: Any) -> Any:
        found = await read(space, keys)
        if space == ACCOUNTS:
            reads[0] += 1
            if reads[0] == 1:
                await real(late[0])  # it arrives between the first look at the books and the step
        return found

    mesh.stores[1].read = slow  # type: ignore[method-assign]
    got = await one.wait("a", 1000, 100, 100, queue_s=1)
    assert isinstance(got, Reservation)
    holder = one._entries["a"].holder
    stake = (await Desk(mesh.server).owner("a")).stakes[one._leases._holder]
    assert holder is not None
    assert holder.slot == stake.slot, (holder.slot, stake.slot)
