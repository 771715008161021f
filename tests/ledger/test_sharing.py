"""Several sidecars on one store: their own directories and names, one budget."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Ability, Change, StoreCorrupt, StoreError, StoreLocked
from meshd.engines.watchers import Watchers
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.desk import FREED, RECALL, Desk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.both_loops


class Shared(MemoryStore):
    """A store that several sidecars use, each through a connection of its own."""

    def __init__(self, other: Shared | None = None) -> None:
        super().__init__()
        self.abilities = frozenset({Ability.SHARED, Ability.DURABLE})
        if other is not None:
            self._spaces, self._watchers = other._spaces, other._watchers
        self.is_deaf = False
        """Words of what others do are lost."""
        self.writes = 0

    async def write(self, changes):  # type: ignore[no-untyped-def]
        self.writes += 1
        # Versions are the server's, not the connection's.
        self._version = max((r.version for s in self._spaces.values() for r in s.values()), default=0)
        return await super().write(changes)

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        return await super().watch(space, lambda key: None if self.is_deaf else changed(key))


class Mesh:
    """Sidecars on one server, by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = Shared()
        self.stores: dict[int, Shared] = {}
        self.ledgers: dict[int, Ledger] = {}

    async def start(self, number: int) -> Ledger:
        store = self.stores[number] = Shared(self.server)
        ledger = self.ledgers[number] = await Ledger.open(self.path / str(number), store=store)
        return ledger

    async def kill(self, number: int) -> None:
        """End as `kill -9` does: nothing is given back, and the lock goes."""
        ledger = self.ledgers.pop(number)
        assert ledger._directory is not None
        assert ledger._upkeep is not None
        for end in ledger._leases._ends:
            end()
        await ledger._upkeep.close()
        ledger._directory.close()

    async def books(self, account: str = "a") -> tuple[int, int, int]:
        """Return total, available and settled."""
        owner = await Desk(self.server).owner(account)
        assert owner.is_balanced
        return owner.total, owner.available, owner.settled


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    one = Mesh(tmp_path)
    yield one
    for ledger in one.ledgers.values():
        await ledger.close()


async def take(ledger: Ledger, bound: int, limit: int = 1000, *, least: int = 0, queue_s: float = 5) -> Reservation:
    got = await ledger.wait("a", limit, bound, least or bound, queue_s=queue_s)
    assert isinstance(got, Reservation), got
    return got


async def refused(ledger: Ledger, bound: int, limit: int = 1000, queue_s: float = 5) -> Shortfall:
    got = await ledger.wait("a", limit, bound, bound, queue_s=queue_s)
    assert isinstance(got, Shortfall), got
    return got


async def test_the_idle_lease_of_another_is_asked_back(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 100)).settle(100)
    # The first holds half of what is left, and uses none of it.
    (await take(two, 900)).settle(900)
    assert (await mesh.books())[1] == 0
    assert (await refused(one, 1)).is_busy is False
    assert (await refused(two, 1)).is_busy is False


async def test_every_token_can_be_spent_by_whoever_needs_it(mesh: Mesh) -> None:
    ledgers = [await mesh.start(number) for number in range(16)]
    chance = random.Random(1)
    spent = 0
    while spent < 100_000:
        bound = min(chance.randint(1, 3000), 100_000 - spent)
        (await take(chance.choice(ledgers), bound, 100_000)).settle(bound)
        spent += bound
    for ledger in ledgers:
        assert (await refused(ledger, 1, 100_000)).is_busy is False


async def test_sixteen_at_once_never_overspend_and_leave_little(mesh: Mesh) -> None:
    ledgers = [await mesh.start(number) for number in range(16)]
    chance = random.Random(2)
    spent = 0

    async def agent(ledger: Ledger) -> None:
        nonlocal spent
        while True:
            got = await ledger.wait("a", 200_000, 1500, 100, queue_s=5)
            if isinstance(got, Shortfall):
                assert not got.is_busy
                return
            for _ in range(chance.randint(0, 5)):
                await asyncio.sleep(0)
            actual = chance.randint(1, got.bound)
            spent += actual
            got.settle(actual)

    await asyncio.gather(*(agent(ledger) for ledger in ledgers for _ in range(8)))
    assert 200_000 * 0.95 < spent <= 200_000


async def test_in_steady_state_few_calls_need_the_store(mesh: Mesh) -> None:
    ledgers = [await mesh.start(number) for number in range(4)]
    for ledger in ledgers:
        (await take(ledger, 10, 10_000_000)).settle(10)
    before = sum(store.writes for store in mesh.stores.values())
    for _ in range(2000):
        for ledger in ledgers:
            got = ledger.reserve("a", 10_000_000, 100, 100) or await take(ledger, 100, 10_000_000)
            assert isinstance(got, Reservation)
            got.settle(100)
    assert (sum(store.writes for store in mesh.stores.values()) - before) / 8000 <= 0.05


async def test_a_call_waits_for_calls_in_flight_at_another(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 800)
    waiting = asyncio.ensure_future(take(two, 700))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    held.settle(100)
    (await waiting).settle(700)
    assert (await refused(two, 201)).is_busy is False


async def test_what_stays_in_flight_elsewhere_makes_a_call_busy_not_exhausted(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 800)
    short = await refused(two, 700, queue_s=0)
    assert short.is_busy
    assert short.reserved >= 800
    held.settle(800)
    assert (await refused(two, 700)).is_busy is False
    (await take(two, 200)).settle(200)


async def test_when_the_words_of_others_are_lost_the_owner_is_asked_again(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 100)).settle(100)
    for store in mesh.stores.values():
        store.is_deaf = True
    waiting = asyncio.ensure_future(take(two, 900))
    for _ in range(50):
        await asyncio.sleep(0)
    # The first hears of it with its own next word to the owner, and the second asks by itself.
    entry = one._entries["a"]
    one._leases.tell(entry)
    while not waiting.done():
        await asyncio.sleep(0.01)
    (await waiting).settle(900)


async def test_whoever_gives_up_waiting_lets_others_keep_theirs(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 800)
    await refused(two, 700, queue_s=0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (await Desk(mesh.server).owner("a")).wants == {}
    held.settle(100)
    assert one.reserve("a", 1000, 50, 50) is not None


async def test_a_sidecar_that_was_killed_comes_back_with_its_books(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 100)).settle(40)
    await take(one, 60)
    await mesh.kill(1)
    assert (await refused(two, 950, queue_s=0)).is_busy
    one = await mesh.start(1)
    assert one.started.stranded_tokens == 0
    (await take(two, 900)).settle(900)
    assert await mesh.books() == (1000, 0, 100), "what the second has spent is under its lease yet"


async def test_a_sidecar_that_never_comes_back_strands_its_lease_and_no_more(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 100)).settle(40)
    await mesh.kill(1)
    spent = 0
    while not isinstance(got := await two.wait("a", 1000, 50, 1, queue_s=0), Shortfall):
        got.settle(got.bound)
        spent += got.bound
    assert spent <= 960
    assert spent >= 400


async def test_a_copied_directory_resumes_nothing(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 100)).settle(40)
    shutil.copytree(mesh.path / "1", mesh.path / "2")
    (await take(one, 400)).settle(400)
    copy = await mesh.start(2)
    assert copy.started.stranded_tokens > 0
    # What the first had leased already was counted as spent, so whatever both do now is no token too many.
    spent = 440
    for _ in range(10):
        for ledger in (one, copy):
            got = await ledger.wait("a", 1000, 20, 20, queue_s=0)
            if isinstance(got, Reservation):
                got.settle(20)
                spent += 20
    with pytest.raises(StoreLocked):
        await one._leases.report()
    with pytest.raises(StoreLocked, match="another meshd has started as holder"):
        one.reserve("a", 1000, 1, 1)
    while not isinstance(got := await copy.wait("a", 1000, 20, 20, queue_s=0), Shortfall):
        got.settle(20)
        spent += 20
    assert spent <= 1000


async def test_a_directory_put_back_from_a_copy_resumes_nothing(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 100)).settle(40)
    shutil.copytree(mesh.path / "1", mesh.path / "backup")
    (await take(one, 500)).settle(500)
    await mesh.kill(1)
    shutil.rmtree(mesh.path / "1")
    shutil.copytree(mesh.path / "backup", mesh.path / "1")
    one = await mesh.start(1)
    assert one.started.stranded_tokens > 0
    short = await refused(one, 500)
    assert short.used >= 540


async def test_a_store_that_lost_what_it_had_acknowledged_freezes_the_account(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 10)).settle(10)
    before = mesh.server._spaces["account"]["a"]
    while one._entries["a"].holder.room < 400:  # type: ignore[union-attr]
        await take(one, 300)
    await take(two, 100)
    mesh.server._spaces["account"]["a"] = before
    # The leases of before are still good; beyond them nothing is granted by books that forgot some.
    with pytest.raises(StoreCorrupt, match="account a is frozen: the store has lost writes"):
        await two.wait("a", 1000, 600, 600, queue_s=5)
    with pytest.raises(StoreCorrupt, match="frozen"):
        await one.wait("a", 1000, 600, 600, queue_s=5)
    three = await mesh.start(3)
    with pytest.raises(StoreCorrupt, match="frozen"):
        await three.wait("a", 1000, 10, 10, queue_s=5)
    (await three.wait("b", 1000, 10, 10, queue_s=0)).settle(10)  # type: ignore[union-attr]


async def test_a_store_that_was_emptied_grants_nothing_more(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 10)).settle(10)
    mesh.server._spaces.clear()
    mesh.server._watchers.tell_all_missed()
    while one.state == "ok":
        await asyncio.sleep(0)
    with pytest.raises(StoreCorrupt, match="emptied while it was in use"):
        await one.wait("b", 1000, 10, 10, queue_s=0)
    await mesh.kill(1)
    with pytest.raises(StoreCorrupt, match=r"is not the one that .* another state directory \(MESHD_HOME\)"):
        await mesh.start(1)


async def test_a_store_of_something_else(mesh: Mesh) -> None:
    await mesh.server.write([Change("mesh", "identity", b"\xff\x00")])
    with pytest.raises(StoreCorrupt, match="something else"):
        await mesh.start(1)


@pytest.mark.parametrize("file", ["holder", "store"])
async def test_a_damaged_name_is_said(mesh: Mesh, file: str) -> None:
    await mesh.start(1)
    await mesh.kill(1)
    (mesh.path / "1" / file).write_text("../../x\n")
    with pytest.raises(StoreCorrupt, match=f"{file} is damaged"):
        await mesh.start(1)


async def test_while_the_store_is_away_leases_are_used_up_and_then_it_is_refused(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 10, 100_000)).settle(10)
    (await take(two, 10, 100_000)).settle(10)
    for store in mesh.stores.values():
        store.fault = StoreError("the store is away")
    spent = 20
    for ledger in (one, two):
        while (got := ledger.reserve("a", 100_000, 500, 500)) is not None:
            assert isinstance(got, Reservation)
            got.settle(500)
            spent += 500
        with pytest.raises(StoreError, match="away"):
            await ledger.wait("a", 100_000, 500, 500, queue_s=0)
    assert spent <= 100_000
    for store in mesh.stores.values():
        store.fault = None
    mesh.server._watchers.tell_all_missed()
    while spent + 500 <= 100_000:
        (await take(one, 500, 100_000)).settle(500)
        spent += 500
    assert one.state == "ok"
    assert (await refused(two, 500, 100_000)).is_busy is False


async def test_a_notice_of_an_account_that_nobody_here_knows(mesh: Mesh) -> None:
    one = await mesh.start(1)
    await mesh.server.write([Change(RECALL, "nobody", b""), Change(FREED, "", b""), Change(RECALL, "a\n", b"\xff")])
    (await take(one, 10)).settle(0)


async def test_two_limits_on_one_account_each_hold(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 300, 1000)).settle(300)
    (await take(two, 100, 500)).settle(100)
    assert (await refused(two, 200, 500)).limit == 500
    (await take(one, 600, 1000)).settle(600)
    assert (await refused(one, 1, 1000)).used == 1000


def test_watchers_outlive_a_closed_loop() -> None:
    watchers = Watchers()

    async def add() -> None:
        watchers.add("space", lambda key: None)

    asyncio.run(add())
    watchers.tell("space", ("a",))
    watchers.tell_all_missed()
