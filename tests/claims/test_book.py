"""Who waits for a claim whose end cannot be written down, or whose answer cannot be read."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from meshd.call import Call, Wait
from meshd.claims.tape import MEMORY_BYTES
from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreError
from meshd.filters.forwarding import Forwarding
from meshd.filters.idempotency import Idempotency
from meshd.ledger import Ledger
from meshd.outcome import Fault, Outcome
from meshd.refusal import Reason, Refused
from tests.filters.calls import WALL_S, call, outcome, policy


class Spoilt:
    """A file that takes everything and gives nothing back."""

    def write(self, data: bytes) -> int:
        return len(data)

    def seek(self, at: int) -> int:
        return at

    def read(self, size: int) -> bytes:
        raise OSError("a bad block")

    def close(self) -> None:
        pass


class House:
    """The filters over a store in memory, and one call whose forwarding is written down."""

    def __init__(self, settings: str = "") -> None:
        self.of = policy(f"rules: [{{idempotency: {{{settings}}}}}]\n")
        self.store = MemoryStore()
        self.ledger = Ledger.in_memory(store=self.store)
        numbers = itertools.count()
        self.filter = Idempotency(
            self.ledger, wall_clock=lambda: WALL_S, nonce=lambda: str(next(numbers)), spill=Spoilt
        )

    def order(self) -> Call:
        one = call("billing", path="/orders", body=b"{}", headers=[(b"idempotency-key", b"k")], of=self.of)
        one.agent = "researcher"
        one.plan = self.of.plan(one.target, one.agent, "POST /orders")
        return one

    async def admit(self, one: Call) -> Any:
        decision = self.filter.admit(one)
        return await decision.coroutine if isinstance(decision, Wait) else decision

    async def begin(self) -> tuple[Any, Any]:
        first = self.order()
        claim = await self.admit(first)
        return claim, await Forwarding().admit(first).coroutine

    @staticmethod
    def end(tickets: tuple[Any, Any], ended: Outcome) -> None:
        tickets[1].settle(ended)
        tickets[0].settle(ended)

    async def close(self) -> None:
        self.store.fault = None
        await self.filter.book.close()
        await self.ledger.close()


@pytest.mark.parametrize("in_flight", ["join", "refuse"])
@pytest.mark.parametrize("on_error", ["refuse", "pass"])
async def test_nobody_hangs_where_a_release_cannot_be_written(in_flight: str, on_error: str) -> None:
    house = House(f"in_flight: {in_flight}, on_store_error: {on_error}")
    tickets = await house.begin()
    house.store.fault = StoreError("away")
    house.end(tickets, outcome(0, Fault.CONNECT))
    again = house.order()
    async with asyncio.timeout(20):
        if on_error == "refuse":
            with pytest.raises(Refused) as caught:
                await house.admit(again)
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
        else:
            assert await house.admit(again) is None
            assert again.claim is None
    await house.close()


async def test_an_answer_that_cannot_be_read_is_told_and_nobody_spins() -> None:
    house = House()
    tickets = await house.begin()
    tape = tickets[0].tape
    tape.head(200, [])
    tape.data(bytes(MEMORY_BYTES + 1))
    tape.end([])
    house.end(tickets, outcome(200, is_forwarded=True))
    # At once: what was answered is not written down yet.
    with pytest.raises(Refused) as caught:
        await house.admit(house.order())
    assert caught.value.reason is Reason.KEY_UNKNOWN
    await house.close()
