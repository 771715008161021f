"""The facade: exhaustion to the token, queueing, memory, faults of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreClosed, StoreCorrupt, StoreError, StoreLocked
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.desk import Desk
from tests.ledger.clock import Timers

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    one = await Ledger.open(tmp_path)
    yield one
    await one.close()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
async def timed(tmp_path: Path, timers: Timers) -> AsyncIterator[Ledger]:
    one = await Ledger.open(tmp_path, later=timers.later)
    yield one
    await one.close()


async def take(ledger: Ledger, bound: int, limit: int = 1000, least: int = 0, account: str = "a") -> Reservation:
    got = ledger.reserve(account, limit, bound, least or bound)
    if got is None:
        got = await ledger.wait(account, limit, bound, least or bound, queue_s=5)
    assert isinstance(got, Reservation), got
    return got


async def refused(ledger: Ledger, bound: int, limit: int = 1000, least: int = 0, account: str = "a") -> Shortfall:
    got = ledger.reserve(account, limit, bound, least or bound)
    if got is None:
        got = await ledger.wait(account, limit, bound, least or bound, queue_s=5)
    assert isinstance(got, Shortfall), got
    return got


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_use_waits_and_the_next_does_not(ledger: Ledger) -> None:
    assert ledger.reserve("a", 1000, 10, 10) is None
    (await take(ledger, 10)).settle(5)
    one = ledger.reserve("a", 1000, 10, 10)
    assert isinstance(one, Reservation)
    one.settle(0)


async def test_exhaustion_is_exact(ledger: Ledger) -> None:
    spent = 0
    while spent < 1000:
        one = await take(ledger, 64, least=1)
        assert one.bound == min(64, 1000 - spent)
        one.settle(one.bound)
        spent += one.bound
    short = await refused(ledger, 1)
    assert (short.used, short.limit, short.is_busy) == (1000, 1000, False)


async def test_what_is_not_used_comes_back(ledger: Ledger) -> None:
    for _ in range(181):
        (await take(ledger, 100)).settle(5)
    assert (await refused(ledger, 100)).used == 905


async def test_settling_twice_is_as_once(ledger: Ledger) -> None:
    one = await take(ledger, 100)
    one.settle(40)
    one.settle(40)
    assert ledger.snapshot() == [("a", 1000, 40, 0)]
    assert ledger.spent_tokens == 40


async def test_a_shrunk_reservation_leaves_room(ledger: Ledger) -> None:
    one = await take(ledger, 1000)
    one.shrink(400)
    two = await take(ledger, 600)
    one.settle(400)
    two.settle(600)
    assert (await refused(ledger, 1)).used == 1000


async def test_usage_above_its_bound_is_charged_in_full_and_counted(ledger: Ledger) -> None:
    (await take(ledger, 100)).settle(1100)
    assert ledger.bound_violations == 1
    assert (await refused(ledger, 1)).used == 1100


async def test_usage_beyond_all_measure_exhausts_the_account_and_nothing_else(ledger: Ledger) -> None:
    (await take(ledger, 100)).settle(10**30)
    assert (await refused(ledger, 1)).used == 2**48
    (await take(ledger, 100, account="b")).settle(5)
    assert ledger.state == "ok"


async def test_what_is_held_at_once_is_what_is_reserved(ledger: Ledger) -> None:
    assert ledger.hold("a", 1000, 100) is None, "the account is not known yet"
    (await take(ledger, 100)).settle(30)
    entry = ledger.hold("a", 1000, 100)
    assert entry is not None
    assert ledger.reserved_tokens == 100
    assert ledger.hold("a", 229, 100) is None, "the limit is its own"
    assert ledger.hold("a", 1000, 500) is None, "the lease does not cover it"
    ledger.pay(entry, 100, 70)
    assert ledger.snapshot() == [("a", 1000, 100, 0)]


async def test_who_waits_is_not_overtaken_by_what_is_held_at_once(ledger: Ledger) -> None:
    one = await take(ledger, 500)
    waiting = asyncio.ensure_future(ledger.wait("a", 1000, 600, 600, queue_s=9))
    await turns()
    assert ledger.hold("a", 1000, 1) is None
    one.settle(0)
    assert isinstance(await waiting, Reservation)


async def test_a_bound_that_can_never_fit_gets_what_is_left_or_nothing(ledger: Ledger) -> None:
    (await take(ledger, 900)).settle(900)
    assert (await refused(ledger, 500, least=101)).is_busy is False
    one = await take(ledger, 500, least=100)
    assert one.bound == 100
    one.settle(100)


async def test_each_limit_holds_on_its_own(ledger: Ledger) -> None:
    """A caller that delegated with a ceiling, and others on the same account without one."""
    (await take(ledger, 300, limit=1000)).settle(300)
    assert (await refused(ledger, 1, limit=300)).limit == 300
    (await take(ledger, 700, limit=1000)).settle(700)
    (await take(ledger, 500, limit=1500)).settle(500)
    assert (await refused(ledger, 1, limit=1500)).used == 1500


async def test_a_thousand_at_once_overspend_nothing(ledger: Ledger) -> None:
    chance = random.Random(7)
    total, spent, refusals = 30_000, 0, 0

    async def call() -> None:
        nonlocal spent, refusals
        bound = chance.randint(20, 200)
        got = ledger.reserve("a", total, bound, bound)
        if got is None:
            got = await ledger.wait("a", total, bound, bound, queue_s=60)
        if isinstance(got, Shortfall):
            refusals += 1
            return
        assert sum(view.spent + view.reserved for view in ledger.snapshot()) <= total
        await asyncio.sleep(0)
        actual = chance.randint(0, bound)
        spent += actual
        got.settle(actual)

    await asyncio.gather(*(call() for _ in range(1000)))
    assert spent <= total
    assert refusals > 0, "the budget must have been short for this to show anything"
    assert total - spent < 200, "a call was refused although it would have fitted"
    assert (await refused(ledger, total)).used == spent


async def test_calls_in_flight_are_waited_for(timed: Ledger) -> None:
    one = await take(timed, 1000)
    waiting = asyncio.ensure_future(timed.wait("a", 1000, 500, 500, queue_s=2))
    await turns()
    assert not waiting.done()
    one.settle(100)
    two = await waiting
    assert isinstance(two, Reservation)
    two.settle(500)


async def test_waiting_ends_with_its_time(timed: Ledger, timers: Timers) -> None:
    one = await take(timed, 1000)
    waiting = asyncio.ensure_future(timed.wait("a", 1000, 500, 500, queue_s=2))
    await turns()
    timers.advance(1.9)
    assert not waiting.done()
    timers.advance(0.2)
    short = await waiting
    assert isinstance(short, Shortfall)
    assert short.is_busy
    assert short.reserved == 1000
    one.settle(0)


async def test_small_calls_do_not_overtake_a_large_one(timed: Ledger) -> None:
    one, two = await take(timed, 500), await take(timed, 400)
    large = asyncio.ensure_future(timed.wait("a", 1000, 550, 550, queue_s=9))
    await turns()
    assert timed.reserve("a", 1000, 50, 50) is None, "it would fit, but somebody is before it"
    small = asyncio.ensure_future(timed.wait("a", 1000, 50, 50, queue_s=9))
    await turns()
    assert not small.done()
    one.settle(0)
    got = await asyncio.gather(large, small)
    assert [reservation.bound for reservation in got if isinstance(reservation, Reservation)] == [550, 50]
    two.settle(0)


async def test_when_the_large_one_gives_up_the_small_ones_go_on(timed: Ledger, timers: Timers) -> None:
    one = await take(timed, 500)
    large = asyncio.ensure_future(timed.wait("a", 1000, 600, 600, queue_s=1))
    small = asyncio.ensure_future(timed.wait("a", 1000, 50, 50, queue_s=9))
    await turns()
    timers.advance(1)
    assert isinstance(got := await large, Shortfall)
    assert got.is_busy
    assert isinstance(await small, Reservation)
    one.settle(0)


async def test_who_waits_for_what_can_no_longer_come_is_told(timed: Ledger) -> None:
    one = await take(timed, 1000)
    waiting = asyncio.ensure_future(timed.wait("a", 1000, 500, 500, queue_s=9))
    await turns()
    one.settle(900)
    short = await waiting
    assert isinstance(short, Shortfall)
    assert not short.is_busy


@pytest.mark.uncompiled
async def test_the_queue_is_bounded(timed: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.ledger.waiting.QUEUE_MAX", 3)
    one = await take(timed, 1000)
    waiting = [asyncio.ensure_future(timed.wait("a", 1000, 10, 10, queue_s=9)) for _ in range(4)]
    await turns()
    assert [future.done() for future in waiting] == [False, False, False, True]
    one.settle(0)
    for got in await asyncio.gather(*waiting[:3]):
        assert isinstance(got, Reservation)


async def test_a_caller_that_gives_up_leaves_nothing_reserved(timed: Ledger) -> None:
    one = await take(timed, 1000)
    waiting = asyncio.ensure_future(timed.wait("a", 1000, 500, 500, queue_s=9))
    await turns()
    one.settle(0)
    # Served and cancelled in the same turn of the loop.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert timed.reserved_tokens == 0
    first = asyncio.ensure_future(timed.wait("new", 1000, 500, 500, queue_s=9))
    await turns(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    (await take(timed, 1000, account="new")).settle(0)


async def test_a_clean_stop_gives_every_lease_back(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    (await take(ledger, 100)).settle(30)
    open_still = await take(ledger, 50)
    await ledger.close()
    open_still.settle(0)
    again = await Ledger.open(tmp_path)
    assert again.started.recovered == 0, "there was nothing left to settle"
    assert (await refused(again, 1000)).used == 80
    await again.close()


async def test_a_ledger_that_was_closed_refuses(ledger: Ledger) -> None:
    await ledger.close()
    await ledger.close()
    with pytest.raises(StoreClosed):
        ledger.reserve("a", 1000, 1, 1)
    with pytest.raises(StoreClosed):
        await ledger.wait("a", 1000, 1, 1, queue_s=0)


async def test_one_daemon_to_a_directory(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(StoreLocked, match=r"in use by another meshd \(process \d+\)"):
        await Ledger.open(tmp_path)


async def test_a_ledger_that_could_not_be_opened_refuses_in_its_words() -> None:
    ledger = Ledger.failed(StoreCorrupt("the file is damaged"))
    assert ledger.state == "the file is damaged"
    with pytest.raises(StoreCorrupt):
        ledger.reserve("a", 1000, 1, 1)
    await ledger.close()


async def test_a_store_that_fails_and_comes_back(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger = await Ledger.open(tmp_path, store=store)
    (await take(ledger, 10)).settle(10)
    store.fault = StoreError("the store is away")
    with pytest.raises(StoreError, match="away"):
        await ledger.wait("b", 1000, 10, 10, queue_s=1)
    assert ledger.state == "the store is away"
    # What is leased already needs no store.
    one = ledger.reserve("a", 1000, 10, 10)
    assert isinstance(one, Reservation)
    one.settle(10)
    with pytest.raises(StoreError):
        await ledger.wait("a", 1000, 900, 900, queue_s=1)
    store.fault = None
    (await take(ledger, 10, account="b")).settle(10)
    assert ledger.state == "ok"
    (await take(ledger, 900)).settle(900)
    assert (await refused(ledger, 100)).used == 920
    await ledger.close()


async def test_a_store_that_does_not_answer_is_given_up_on(tmp_path: Path, timers: Timers) -> None:
    class Stuck(MemoryStore):
        gate = asyncio.Event()

        async def write(self, changes):  # type: ignore[no-untyped-def]
            if any(change.space == "account" for change in changes):
                await self.gate.wait()
            return await super().write(changes)

    store = Stuck()
    store.gate = asyncio.Event()
    ledger = await Ledger.open(tmp_path, store=store, later=timers.later)
    waiting = asyncio.ensure_future(ledger.wait("a", 1000, 10, 10, queue_s=1))
    await turns()
    timers.advance(1)
    assert not waiting.done(), "it is not the account that it waits for"
    timers.advance(5)
    with pytest.raises(StoreError, match="did not answer"):
        await waiting
    store.gate.set()
    (await take(ledger, 10)).settle(0)
    assert ledger.state == "ok"
    await ledger.close()


async def test_accounts_leave_memory_and_come_back_with_their_books(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, open_max=10)
    for number in range(100):
        (await take(ledger, 100, account=f"w{number}")).settle(number)
    assert len(ledger.snapshot()) == 10
    for number in range(100):
        assert (await refused(ledger, 1000 - number + 1, account=f"w{number}")).used == number
    await ledger.close()


async def test_an_account_used_while_it_leaves_keeps_its_books(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, open_max=1)
    (await take(ledger, 100, account="a")).settle(70)
    other = asyncio.ensure_future(ledger.wait("b", 1000, 10, 10, queue_s=5))
    await turns(1)
    (await take(ledger, 930, account="a")).settle(930)
    assert (await refused(ledger, 1, account="a")).used == 1000
    assert isinstance(await other, Reservation)
    await ledger.close()


async def test_an_account_whose_leaving_fails_stays(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger = await Ledger.open(tmp_path, store=store, open_max=1)
    (await take(ledger, 100, account="a")).settle(70)
    store.fault = StoreError("away")
    with pytest.raises(StoreError):
        await ledger.wait("b", 1000, 10, 10, queue_s=5)
    store.fault = None
    assert (await refused(ledger, 931, account="a")).used == 70
    await ledger.close()


async def test_a_refill_comes_before_it_is_needed(ledger: Ledger) -> None:
    (await take(ledger, 10, limit=100_000)).settle(10)
    waits = 0
    for _ in range(4000):
        one = ledger.reserve("a", 100_000, 10, 10)
        if one is None:
            waits += 1
            one = await ledger.wait("a", 100_000, 10, 10, queue_s=5)
        assert isinstance(one, Reservation)
        one.settle(10)
        asks = ledger._leases._tasks
        if asks:
            await asyncio.gather(*asks)
    assert waits == 0


async def test_durable_reservations_share_their_syncs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    assert ledger._upkeep is not None
    sync = type(ledger._upkeep)._sync_now

    def counted(self: object, fd: int, with_directory: bool) -> None:
        nonlocal syncs
        syncs += 1
        sync(self, fd, with_directory)  # type: ignore[arg-type]

    monkeypatch.setattr(type(ledger._upkeep), "_sync_now", counted)
    got = await asyncio.gather(*(ledger.wait("a", 10**6, 10, 10, queue_s=5, is_durable=True) for _ in range(100)))
    assert all(isinstance(one, Reservation) for one in got)
    assert 1 <= syncs <= 4


async def test_a_sync_that_fails_refuses_and_is_followed_by_a_new_segment(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger._upkeep is not None
    assert ledger._journal is not None

    def broken(self: object, fd: int, with_directory: bool) -> None:
        raise OSError(5, "Input/output error")

    before = ledger._journal.segment
    with monkeypatch.context() as patch:
        patch.setattr(type(ledger._upkeep), "_sync_now", broken)
        with pytest.raises(StoreError, match="Input/output"):
            await ledger.wait("a", 1000, 10, 10, queue_s=5, is_durable=True)
    assert ledger.reserved_tokens == 0
    assert ledger.state != "ok"
    got = await ledger.wait("a", 1000, 10, 10, queue_s=5, is_durable=True)
    assert isinstance(got, Reservation)
    assert ledger._journal.segment == before + 1
    assert ledger.state == "ok"


async def test_a_name_that_is_no_text_is_the_callers_mistake(ledger: Ledger) -> None:
    with pytest.raises(UnicodeError):
        await ledger.wait("\ud800", 1000, 1, 1, queue_s=0)
    (await take(ledger, 1)).settle(0)


async def test_a_long_journal_is_checkpointed(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, segment_bytes=1024)
    held = await take(ledger, 77, limit=10**6)
    assert ledger._journal is not None
    assert ledger._upkeep is not None
    for _ in range(500):
        (await take(ledger, 100, limit=10**6)).settle(3)
        while ledger._upkeep._tasks:
            await asyncio.gather(*ledger._upkeep._tasks)
    assert ledger._journal.segment > 10
    assert len(list(tmp_path.glob("journal-*.log"))) <= 2
    held.settle(77)
    await ledger.close()


async def test_books_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    from meshd.engines.port import Change

    store = MemoryStore()
    await store.write([Change("account", "a", b'{"total":10,"available":11,"settled":0,"sequence":1,"stakes":{}}')])
    await store.write([Change("account", "b", b'{"total":"ten"}')])
    ledger = await Ledger.open(tmp_path, store=store)
    for account in ("a", "b"):
        with pytest.raises(StoreCorrupt, match=f"account {account}"):
            await ledger.wait(account, 1000, 1, 1, queue_s=0)
    (await take(ledger, 1, account="c")).settle(0)
    await ledger.close()


async def test_two_desks_on_one_store_grant_no_token_twice() -> None:
    store = MemoryStore()
    ledgers = [Ledger(Desk(store), 1, holder=f"holder{number}") for number in range(4)]
    spent = 0
    while True:
        got = [await one.wait("a", 1000, 7, 7, queue_s=0) for one in ledgers]
        taken = [one for one in got if isinstance(one, Reservation)]
        if not taken:
            break
        for one in taken:
            one.settle(7)
            spent += 7
        assert spent <= 1000
    # Recall of idle leases comes with many sidecars: until then some of the tail is held elsewhere.
    assert spent > 900
