"""A connection that is kept, and what is asked over it: when it was waited for in vain."""

from __future__ import annotations

import asyncio
import time

import pytest

from meshd.engines.link import Asked, Link, answered_within
from meshd.engines.port import StoreError

TIMEOUT_S = 0.2


async def test_what_came_while_the_process_stood_still_was_not_waited_for_in_vain() -> None:
    late: list[float] = []
    asked = Asked(late.append)
    answer = asked.add(1, TIMEOUT_S)
    time.sleep(2 * TIMEOUT_S)  # as in a container that is frozen: timers are due, nothing is read
    asyncio.get_running_loop().call_later(0.001, asked.answer, 1, "here")
    assert await answer == "here"
    assert late == []


async def test_what_does_not_come_was_waited_for_in_vain_however_often_the_process_stands_still() -> None:
    ended = asyncio.Event()
    late: list[float] = []

    def tell(seconds: float) -> None:
        late.append(seconds)
        ended.set()

    asked = Asked(tell)
    asked.add(1, TIMEOUT_S)
    while not ended.is_set():
        time.sleep(TIMEOUT_S)  # that is what is tested
        await asyncio.sleep(TIMEOUT_S / 100)
    assert late == [TIMEOUT_S]


async def test_an_answer_that_came_while_the_process_stood_still_came_in_time() -> None:
    answer = asyncio.get_running_loop().create_future()
    async with answered_within(TIMEOUT_S):
        time.sleep(2 * TIMEOUT_S)
        asyncio.get_running_loop().call_later(0.001, answer.set_result, "here")
        assert await answer == "here"
    await asyncio.sleep(2 * TIMEOUT_S)  # nothing ends who has gone on


async def test_no_answer_is_told_as_such_and_a_cancellation_as_that() -> None:
    with pytest.raises(TimeoutError):
        async with answered_within(TIMEOUT_S):
            await asyncio.Event().wait()

    async def ask() -> None:
        async with answered_within(60):
            await asyncio.Event().wait()

    asked = asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


class Wire:
    """A connection that tells its link at once when it is lost, as all do."""

    def __init__(self) -> None:
        self.is_open = True

    def lose(self, link: Link[Wire]) -> None:
        self.is_open = False
        link.lost(self, StoreError("cut"))

    def abort(self, error: StoreError) -> None:
        self.is_open = False


async def test_what_is_lost_with_its_last_answer_is_no_connection_to_begin_with() -> None:
    async def dial() -> Wire:
        wire = Wire()
        wire.lose(link)  # the last that was asked has been answered, and who asked has not gone on yet
        return wire

    link = Link("the store", dial, timeout_s=60)
    with pytest.raises(StoreError, match="the store closed the connection"):
        await link.open()
    with pytest.raises(StoreError):
        link.current()
    await link.close()
