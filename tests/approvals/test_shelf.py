"""Two sidecars over one store that are asked the same, their reads and writes in every kind of order."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest

from meshd.approvals.record import SPACE
from meshd.engines.memory import MemoryStore
from tests.approvals.asking import KEYS, Clock, desk, question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.approvals.desk import Desk
    from meshd.engines.port import Change, Record

ORDERS = 300


class Apart(MemoryStore):
    """A store at some distance: each request and each answer takes some turns of the loop."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        await self._travel()
        found = await super().read(space, keys)
        await self._travel()
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        await self._travel()
        made = await super().write(changes)
        await self._travel()
        return made

    async def _travel(self) -> None:
        for _ in range(self._random.randrange(6)):
            await asyncio.sleep(0)


async def asked(desks: list[Desk]) -> set[str]:
    found = await asyncio.gather(*(one.ask(question(call=f"c-{at}")) for at, one in enumerate(desks)))
    return {one.approval.id for one in found}


@pytest.mark.parametrize("is_anew", [False, True])
async def test_sidecars_that_are_asked_the_same_at_once_ask_people_once(is_anew: bool) -> None:
    """The first time, and where what was in force before is over."""
    for seed in range(ORDERS):
        store, clock = Apart(Random(seed)), Clock()
        desks = [desk(store, clock=clock) for _ in range(3)]
        before = await asked(desks[:1]) if is_anew else set()
        for id in before:
            await desks[0].decide(id, KEYS["ana"], approver="", is_allowed=True, reason="")
            await desks[0].redeem(id, "", "c-0")
        ids = await asked(desks)
        assert len(ids) == 1, f"asked twice, in the order {seed}"
        assert len(await store.keys(SPACE, "", 9)) == 1 + len(before)
        for one in desks:
            await one.close()
