"""What becomes of a store whose server is killed, cut off or silent: callers hear of it at once, and it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines import link
from meshd.engines.port import Change, Store, StoreError
from meshd.engines.table import open_store
from tests.engines.places import BROKEN, Place, place_of, until_it_fails
from tests.engines.servers import Line, Server, line_to, nats_server, redis_server, running

AT_ONCE_S = 0.5
"""Far below what any timeout of a driver is, and far above what a busy machine takes."""
BACK_S = 30.0

pytestmark = pytest.mark.both_loops


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DELAY_S_MAX", 0.1)


@pytest.fixture(params=BROKEN)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def line(place: Place) -> AsyncIterator[Line]:
    """A line to the server, which the place's URL leads over."""
    async with line_to(place.address) as one:
        place.url = place.url.replace(place.address, one.address)
        yield one


async def until_back(store: Store) -> None:
    """Wait until a store answers again."""
    async with asyncio.timeout(BACK_S):
        while True:
            try:
                await store.read("space", ["a"])
            except StoreError:
                await asyncio.sleep(0.01)
            else:
                return


async def fails_at_once(store: Store) -> None:
    """Check that every operation fails, and none makes its caller wait."""
    began_s = time.monotonic()
    for asked in (
        store.read("space", ["a"]),
        store.write([Change("space", "a", b"late")]),
        store.take("space", "n", 1, 10),
        store.keys("space"),
    ):
        with pytest.raises(StoreError):
            await asked
    assert time.monotonic() - began_s < AT_ONCE_S


async def test_a_cut_line_fails_at_once_and_mends_by_itself(place: Place, line: Line) -> None:
    store = await place.open()
    await store.write([Change("space", "a", b"one")])
    line.cut()
    with pytest.raises(StoreError):
        await until_it_fails(lambda: store.write([Change("space", "b", b"")]))
    await fails_at_once(store)
    await line.mend()
    await until_back(store)
    assert (await store.read("space", ["a"]))["a"].value == b"one"
    assert await store.write([Change("space", "c", b"", expected=0)]) == [True]
    await store.close()


async def test_what_waits_when_the_line_is_cut_is_told_at_once(place: Place, line: Line) -> None:
    store = await place.open()
    line.silence()
    asked = [asyncio.ensure_future(store.write([Change("space", str(number), b"")])) for number in range(20)]
    asked += [asyncio.ensure_future(store.take("space", "n", 1, 100)) for _ in range(20)]
    await asyncio.sleep(0.05)
    began_s = time.monotonic()
    line.cut()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in told} == {StoreError}
    assert time.monotonic() - began_s < AT_ONCE_S
    await line.mend()
    await until_back(store)
    await store.close()


async def test_a_server_that_falls_silent_is_given_up(place: Place, line: Line) -> None:
    store = await place.open("&timeout=0.2&connect_timeout=2")
    line.silence()
    began_s = time.monotonic()
    with pytest.raises(StoreError, match=r"did not answer within 0\.2 s"):
        await store.write([Change("space", "a", b"one")])
    assert time.monotonic() - began_s < 0.2 + AT_ONCE_S
    await fails_at_once(store)
    await line.mend()
    await until_back(store)
    # It was on its way when it was given up: made or not, and never twice.
    found = await store.read("space", ["a"])
    assert [record.value for record in found.values()] in ([], [b"one"])
    await store.close()


async def test_a_server_that_is_silent_from_the_start(place: Place, line: Line) -> None:
    line.silence()
    began_s = time.monotonic()
    with pytest.raises(StoreError, match="did not answer within"):
        await place.open("&connect_timeout=0.2")
    assert time.monotonic() - began_s < 0.2 + AT_ONCE_S


async def test_nobody_listens(place: Place, line: Line) -> None:
    line.cut()
    with pytest.raises(StoreError, match="refuses connections: is it running"):
        await place.open()


async def test_a_watch_goes_on_after_the_line_was_cut(place: Place, line: Line) -> None:
    store = await place.open()
    heard: asyncio.Queue[str] = asyncio.Queue()
    end = await store.watch("space", heard.put_nowait)
    await store.write([Change("space", "a", b"")])
    while await heard.get() != "a":
        pass
    line.cut()
    await line.mend()
    async with asyncio.timeout(BACK_S):
        while await heard.get() != "":  # some may have been missed: look again
            pass
        await until_back(store)
        await store.write([Change("space", "b", b"")])
        while await heard.get() != "b":
            pass
    end()
    await store.close()


async def test_closing_while_the_server_is_away(place: Place, line: Line) -> None:
    store = await place.open()
    await store.watch("space", lambda _: None)
    line.cut()
    with pytest.raises(StoreError):
        await until_it_fails(lambda: store.read("space", ["a"]))
    began_s = time.monotonic()
    await store.close()
    await store.close()
    assert time.monotonic() - began_s < AT_ONCE_S


async def test_a_caller_that_gives_up_breaks_nothing(place: Place) -> None:
    store = await place.open()
    asked = [asyncio.ensure_future(store.write([Change("space", str(number), b"x")])) for number in range(50)]
    await asyncio.sleep(0)
    for one in asked[::2]:
        one.cancel()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert all(one == [True] for one in told[1::2])
    assert (await store.read("space", ["1"]))["1"].value == b"x"
    assert len(await store.keys("space")) >= 25
    await store.close()


async def test_a_line_that_breaks_again_and_again_makes_nothing_twice(place: Place, line: Line) -> None:
    """Count up by compare-and-set over a bad line: what was told as made stands, what was not may, nothing else."""
    store = await place.open("&timeout=0.3")
    await store.write([Change("space", "n", b"0")])
    made = unknown = 0
    broken = asyncio.ensure_future(_break(line, times=20))
    while not broken.done():
        try:
            record = (await store.read("space", ["n"]))["n"]
        except StoreError:
            await asyncio.sleep(0.005)
            continue
        try:
            is_made = await store.write([Change("space", "n", b"%d" % (int(record.value) + 1), record.version)])
        except StoreError:
            unknown += 1
        else:
            # Nobody else is there: a refusal would be of our own change, sent twice or late.
            made += is_made == [True]
            unknown += is_made != [True]
    await broken
    await until_back(store)
    assert made <= int((await store.read("space", ["n"]))["n"].value) <= made + unknown
    assert made > 10
    await store.close()


async def _break(line: Line, times: int) -> None:
    for _ in range(times):
        before = line.bytes_passed
        while line.bytes_passed < before + 20_000:
            await asyncio.sleep(0.002)
        line.cut()
        await line.mend()


KILLED = {
    "redis": lambda path: redis_server(path, "--appendonly", "yes", "--appendfsync", "always"),
    "nats": lambda path: nats_server(path),
}


def url_of(engine: str, server: Server, options: str = "") -> str:
    return f"{engine}://{server.address}?timeout=1{options}"


@pytest.mark.parametrize("engine", KILLED)
async def test_what_was_acknowledged_outlives_a_kill(engine: str, tmp_path: Path) -> None:
    async with running(KILLED[engine](tmp_path / "server")) as server:
        store = await open_store(url_of(engine, server), tmp_path)
        acknowledged: list[int] = []

        async def write(first: int) -> None:
            for number in range(first, 1_000_000, 8):
                try:
                    await store.write([Change("space", f"{number:07d}", b"x", expected=0)])
                except StoreError:
                    return
                acknowledged.append(number)

        writers = [asyncio.ensure_future(write(first)) for first in range(8)]
        while len(acknowledged) < 200:
            await asyncio.sleep(0.001)
        server.kill()
        await asyncio.gather(*writers)
        await fails_at_once(store)
        await server.start()
        await until_back(store)
        found = await store.read("space", [f"{number:07d}" for number in acknowledged])
        assert len(found) == len(acknowledged)
        assert await store.take("space", "n", 1, 10) == 1
        await store.close()


@pytest.mark.parametrize("engine", KILLED)
async def test_a_frozen_server_is_given_up_and_taken_up_again(engine: str, tmp_path: Path) -> None:
    async with running(KILLED[engine](tmp_path / "server")) as server:
        store = await open_store(
            url_of(engine, server).replace("timeout=1", "timeout=0.2&connect_timeout=0.2"), tmp_path
        )
        server.freeze()
        with pytest.raises(StoreError, match="did not answer"):
            await store.take("space", "n", 1, 10)
        await fails_at_once(store)
        server.thaw()
        await until_back(store)
        assert await store.take("space", "m", 1, 10) == 1
        await store.close()


async def test_a_server_that_comes_back_empty_is_used_as_it_is(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        store = await open_store(url_of("redis", server), tmp_path)
        assert "restart loses" in store.caution
        await store.write([Change("space", "a", b"one")])
        server.kill()
        await server.start()
        await until_back(store)
        assert await store.read("space", ["a"]) == {}
        assert await store.write([Change("space", "a", b"two", expected=0)]) == [True]
        await store.close()
