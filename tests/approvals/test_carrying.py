"""Who carries a held call out, and when a sidecar that did is taken for gone: never while it may only be slow."""

from __future__ import annotations

import pytest

from meshd.approvals.carrying import Carrying
from meshd.approvals.held_calls import LOST_S, RUNNING, HeldCall, HeldCalls
from meshd.engines.memory import MemoryStore
from meshd.ledger.desk import Desk as Owner
from meshd.ledger.desk import HolderRecord
from tests.approvals.asking import NOW_S, Clock, desk


def call(**changes: object) -> HeldCall:
    fields = {"holder": "there", "epoch": 3, "beat_s": NOW_S, "changed_s": NOW_S, "state": RUNNING, **changes}
    return HeldCall("k7x2-m9qr-tzab", "t", "p", "writer", "a2a", "SendMessage", "/writer/", NOW_S, 60.0, 0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epoch", "silent_s", "is_lost"),
    [
        (3, LOST_S, False),  # the very start that claimed it: paused, perhaps
        (2, 0.0, False),  # an old record of the holder says nothing of a later start
        (4, 0.0, True),  # started again: what it was at then, nobody is at
        (3, LOST_S + 1, True),  # a guess, by silence
        (None, 0.0, False),  # nobody knows that holder
    ],
)
async def test_one_that_was_started_again_is_gone_at_once_and_one_that_is_slow_is_not(
    epoch: int | None, silent_s: float, is_lost: bool
) -> None:
    store, clock = MemoryStore(), Clock()
    if epoch is not None:
        assert await Owner(store).write_holder("there", HolderRecord(epoch, "boot"))
    carrying = Carrying(HeldCalls(desk(store).shelf), clock, lambda: ("here", 1))
    clock.now_s += silent_s
    assert await carrying.is_lost(call()) is is_lost


async def test_a_record_without_its_holder_is_judged_by_silence_alone() -> None:
    store, clock = MemoryStore(), Clock()
    carrying = Carrying(HeldCalls(desk(store).shelf), clock)
    assert not await carrying.is_lost(call(holder="", epoch=0))
    clock.now_s += LOST_S + 1
    assert await carrying.is_lost(call(holder="", epoch=0))
