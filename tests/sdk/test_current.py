"""The current context: in one ContextVar, in tasks and in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from meshd_sdk import context as codec
from meshd_sdk.current import Current, carrying, current, using
from meshd_sdk.threads import CarryingExecutor

ONE = Current("token-1", "wf-1", "writer")
TWO = Current("token-2", "wf-2", "writer")
TRACE = "00-" + "a1" * 16 + "-" + "b2" * 8 + "-01"


def token_of(workflow: str, agent: str) -> str:
    context = codec.Context(workflow, agent, account="workflow/" + workflow)
    ring = codec.Keyring([codec.Key("k", bytes(32))])
    return codec.mint(
        context, ring, audience=codec.Audience.LOCAL, expires_s=int(time.time()) + 60, nonce=bytes(8)
    ).decode()


def test_nothing_is_current_at_first() -> None:
    assert current() is None


def test_it_holds_within_the_block_and_nests() -> None:
    with using(ONE) as now:
        assert now is ONE
        with using(TWO):
            assert current() is TWO
            with using(None):
                assert current() is None
        assert current() is ONE
    assert current() is None


def test_an_error_in_the_block_ends_it_too() -> None:
    with pytest.raises(RuntimeError, match="mine"), using(ONE):
        raise RuntimeError("mine")
    assert current() is None


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        ONE.token = "other"  # type: ignore[misc]


def test_headers_are_in_lower_case_and_hold_what_there_is() -> None:
    assert ONE.headers() == {"x-meshd-context": "token-1"}
    assert Current().headers() == {}
    full = Current("t", "w", "a", TRACE, "k=v", "b=1", time.time() + 30, 5000)
    fields = full.headers()
    assert 29 < float(fields.pop("x-meshd-deadline")) <= 30
    assert fields == {
        "x-meshd-context": "t",
        "traceparent": TRACE,
        "tracestate": "k=v",
        "baggage": "b=1",
        "x-meshd-delegate": "5000",
    }


def test_a_deadline_is_never_below_zero_nor_longer_than_meshd_reads() -> None:
    assert Current(deadline_s=time.time() - 5).headers() == {"x-meshd-deadline": "0.000"}
    assert Current(deadline_s=time.time() + 10**12).headers() == {"x-meshd-deadline": "999999999.000"}


def test_what_is_no_part_is_not_sent() -> None:
    with pytest.raises(ValueError, match="a number of tokens"):
        Current(delegate_tokens=0).headers()


def test_a_request_s_headers_are_read_as_mapping_as_texts_and_as_bytes() -> None:
    token = token_of("wf-9", "critic")
    fields = {"X-Meshd-Context": token, "traceparent": TRACE, "baggage": "b=1", "accept": "*/*"}
    expected = Current(token, "wf-9", "critic", TRACE, "", "b=1")
    assert Current.from_headers(fields) == expected
    assert Current.from_headers(fields.items()) == expected
    assert Current.from_headers([(k.encode(), v.encode()) for k, v in fields.items()]) == expected
    assert Current.from_headers({"accept": "*/*"}) is None


def test_the_seconds_left_become_a_time() -> None:
    found = Current.from_headers({"x-meshd-deadline": "12.5"})
    assert found is not None
    assert found.deadline_s is not None
    assert 11 < found.deadline_s - time.time() <= 12.5


@pytest.mark.parametrize("value", ["", "-1", "nan", "inf", "1e9", "soon", "1.2345", "9" * 400, "\u0663"])
def test_a_deadline_that_is_no_number_of_seconds_is_not_taken(value: str) -> None:
    found = Current.from_headers({"x-meshd-context": "t", "x-meshd-deadline": value})
    assert found == Current("t")


def test_a_field_that_came_twice_is_not_taken() -> None:
    pairs = [("x-meshd-context", "a"), ("X-Meshd-Context", "b"), ("x-meshd-deadline", "1"), ("x-meshd-deadline", "2")]
    assert Current.from_headers(pairs) is None


@pytest.mark.parametrize("token", ["nonsense", "\xff\xfe", "A" * 600, "AQ", "\u20ac"])
def test_a_token_that_is_none_goes_on_unread(token: str) -> None:
    assert Current.from_headers({"x-meshd-context": token}) == Current(token)


@pytest.mark.both_loops
async def test_tasks_have_it_by_themselves() -> None:
    async def look() -> Current | None:
        await asyncio.sleep(0)
        return current()

    with using(ONE):
        one, two = await asyncio.gather(look(), look())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(look()) for _ in range(3)]
        assert await asyncio.to_thread(current) is ONE
        left = asyncio.create_task(look())
    assert one is two is ONE
    assert [task.result() for task in tasks] == [ONE] * 3
    assert await left is ONE, "it was made within"
    assert current() is None


async def test_a_task_changes_it_for_itself_alone() -> None:
    async def change() -> None:
        with using(TWO):
            await asyncio.sleep(0)
            assert current() is TWO

    with using(ONE):
        await asyncio.gather(*(change() for _ in range(5)))
        assert current() is ONE


async def test_an_executor_of_the_loop_has_it_by_carrying_alone() -> None:
    loop = asyncio.get_running_loop()
    with using(ONE):
        assert await loop.run_in_executor(None, carrying(current)) is ONE
        assert await loop.run_in_executor(None, current) is None, "what carrying is for"
        with CarryingExecutor(1) as executor:
            assert await loop.run_in_executor(executor, current) is ONE


def test_threads_have_it_by_carrying() -> None:
    found: list[Current | None] = []

    def look() -> None:
        found.append(current())

    with using(ONE):
        threads = [threading.Thread(target=carrying(look)) for _ in range(2)]
        plain = threading.Thread(target=look)
    for thread in (*threads, plain):
        thread.start()
        thread.join()
    assert found == [ONE, ONE, None]


@pytest.mark.parametrize(
    "take",
    [lambda pool, n: pool.submit(current).result(), lambda pool, n: next(iter(pool.map(lambda _: current(), [n])))],
)
def test_a_carrying_executor_takes_what_was_current_at_each_submission(
    take: Callable[[Any, int], Current | None],
) -> None:
    with CarryingExecutor(2) as pool:
        for number in range(4):
            mine = replace(ONE, token=f"t{number}")
            with using(mine):
                assert take(pool, number) is mine
        assert take(pool, 0) is None


def test_what_is_carried_may_run_in_many_threads_at_once() -> None:
    barrier = threading.Barrier(4, timeout=20)

    def meet() -> Current | None:
        barrier.wait()
        return current()

    with using(ONE):
        carried = carrying(meet)
    with ThreadPoolExecutor(4) as pool:
        assert [one.result() for one in [pool.submit(carried) for _ in range(4)]] == [ONE] * 4


async def test_a_generator_closed_from_another_task_leaves_that_task_alone() -> None:
    async def stream() -> Any:
        with using(ONE):
            yield 1
            yield 2

    made = stream()
    assert await asyncio.create_task(anext(made)) == 1
    with using(TWO):
        await made.aclose()
        assert current() is TWO
