"""What is asked over a connection: when it was waited for in vain."""

from __future__ import annotations

import asyncio
import time

import pytest

from meshd.engines.link import Asked, answered_within

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
