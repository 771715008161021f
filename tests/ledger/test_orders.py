"""What operators and delegating callers ask of accounts, on one sidecar and on several."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd.engines.port import StoreCorrupt, StoreError
from meshd.ledger import Reservation, Shortfall
from meshd.ledger.desk import Desk
from tests.ledger.test_sharing import Mesh, refused, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshd.ledger import Ledger

pytestmark = pytest.mark.both_loops


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    one = Mesh(tmp_path)
    yield one
    for ledger in one.ledgers.values():
        await ledger.close()


async def until(is_so: Any) -> None:
    while not await is_so():
        await asyncio.sleep(0)


async def test_a_top_up_reaches_those_who_were_refused(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 1000)).settle(1000)
    await refused(two, 1)
    await refused(one, 1)
    await one.orders.top_up("a", 300)
    await asyncio.sleep(0)  # the word of it is on its way
    (await take(two, 200)).settle(200)
    (await take(one, 100)).settle(100)
    assert (await refused(two, 1)).used == 1300
    assert await mesh.books() == (1300, 0, 1300)


async def test_a_top_up_before_the_first_call_adds_to_what_the_policy_says(mesh: Mesh) -> None:
    one = await mesh.start(1)
    await one.orders.top_up("a", 300)
    (await take(one, 1300)).settle(1300)
    await refused(one, 1)


async def test_a_closed_account_grants_nothing_and_takes_back_what_is_idle(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    held = await take(one, 100)
    await two.orders.close("a")
    await until(lambda: _is_back(mesh))
    assert (await refused(one, 1)).is_closed
    assert (await refused(two, 1)).is_closed
    held.settle(60)
    await two.orders.reopen("a")
    await asyncio.sleep(0)
    (await take(two, 900)).settle(900)


async def _is_back(mesh: Mesh) -> bool:
    return (await Desk(mesh.server).owner("a")).outstanding == 100


async def test_a_lease_is_written_off_as_spent(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    (await take(one, 100)).settle(40)
    holder = one._leases._holder
    await mesh.kill(1)
    assert (await refused(two, 950, queue_s=0)).is_busy
    owner = await two.orders.write_off("a", holder)
    assert owner.is_balanced
    assert owner.settled == 500
    assert (await two.orders.write_off("a", holder)).settled == 500
    assert (await two.orders.write_off("a", "nobody")).settled == 500
    assert (await refused(two, 501)).is_busy is False
    (await take(two, 500)).settle(500)
    # Whoever comes back all the same finds its lease closed, and strands nothing more.
    again = await mesh.start(1)
    assert again.started.stranded_tokens == 0


async def test_a_frozen_account_is_opened_again_by_an_operator(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 10)).settle(10)
    await Desk(mesh.server).order("a", lambda owner: owner.freeze(99))
    with pytest.raises(StoreCorrupt, match="frozen"):
        await one.wait("a", 1000, 900, 900, queue_s=5)
    await one.orders.reopen("a")
    await asyncio.sleep(0)
    (await take(one, 900)).settle(900)


async def test_accounts_are_listed_by_name(mesh: Mesh) -> None:
    one = await mesh.start(1)
    for name in ("b", "a", "c"):
        (await one.wait(name, 100, 10, 10, queue_s=5)).settle(5)  # type: ignore[union-attr]
    assert await one.orders.names() == ["a", "b", "c"]
    assert await one.orders.names("a", 1) == ["b"]
    assert list(await one.orders.sound(["c", "a"])) == ["c", "a"]
    assert (await one.orders.books("nobody")).total == 0


async def _spend(ledger: Ledger, account: str, bound: int, actual: int) -> None:
    got = await ledger.wait(account, 10**6, bound, bound, queue_s=5)
    assert isinstance(got, Reservation), got
    got.settle(actual)


async def test_a_child_has_what_it_was_given_and_no_more(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    assert await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5) == 300
    await _spend(two, "delegated/1/a", 200, 200)
    short = await two.wait("delegated/1/a", 10**6, 101, 101, queue_s=5)
    assert isinstance(short, Shortfall)
    assert short.used == 200
    clamped = await two.wait("delegated/1/a", 10**6, 5000, 50, queue_s=5)
    assert isinstance(clamped, Reservation)
    assert clamped.bound == 100
    clamped.settle(0)
    assert (await refused(one, 701, queue_s=0)).is_busy, "the part may come back"


async def test_what_a_child_has_left_flows_back(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5)
    await _spend(two, "delegated/1/a", 200, 120)
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    (await take(one, 880)).settle(880)
    assert (await refused(one, 1)).used == 1000
    assert isinstance(await two.wait("delegated/1/a", 10**6, 1, 1, queue_s=5), Shortfall)


async def test_it_flows_back_when_the_last_call_of_the_child_has_ended(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5)
    held = await two.wait("delegated/1/a", 10**6, 250, 250, queue_s=5)
    assert isinstance(held, Reservation)
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    assert (await mesh.books())[0] == 1000
    waiting = asyncio.ensure_future(take(one, 900))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    held.settle(100)
    (await waiting).settle(900)


async def test_a_delegation_that_was_cut_off_half_way_comes_back(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 10)).settle(10)
    writes = 0
    real = mesh.stores[1].write

    async def failing(changes: Any) -> Any:
        nonlocal writes
        if any((change.space, change.key) == ("account", "delegated/1/a") for change in changes):
            writes += 1
            raise StoreError("away")
        return await real(changes)

    mesh.stores[1].write = failing  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5)
    assert writes == 3
    mesh.stores[1].write = real  # type: ignore[method-assign]
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    (await take(one, 990)).settle(990)


async def test_more_than_there_is_cannot_be_delegated(mesh: Mesh) -> None:
    one = await mesh.start(1)
    (await take(one, 800)).settle(800)
    short = await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5)
    assert isinstance(short, Shortfall)
    assert await one.delegate("a", 1000, "delegated/2/a", 300, 100, queue_s=5) == 200


async def test_a_killed_sidecar_loses_no_delegation(mesh: Mesh) -> None:
    one, two = await mesh.start(1), await mesh.start(2)
    await one.delegate("a", 1000, "delegated/1/a", 300, 300, queue_s=5)
    await _spend(two, "delegated/1/a", 200, 120)
    await mesh.kill(2)
    one.orders.end("a", "delegated/1/a")
    await one.orders.finish()
    two = await mesh.start(2)
    (await take(two, 880)).settle(880)
    owner = await Desk(mesh.server).owner("a")
    assert owner.children == {}
