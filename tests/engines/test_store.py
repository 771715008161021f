"""The contract of the store port, kept by every engine: the memory engine is the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, Record, Store, StoreClosed, StoreCorrupt, StoreError, StoreUnable
from tests.engines.places import PLACES, SHARED, Place, place_of

pytestmark = pytest.mark.both_loops


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    engine = await place.open()
    yield engine
    await engine.close()


async def test_absent_records_are_left_out(store: Store) -> None:
    assert await store.read("space", ["a", "b"]) == {}
    assert await store.keys("space") == []


async def test_what_is_written_is_read(store: Store) -> None:
    assert await store.write([Change("space", "a", b"\x00one"), Change("space", "ü", b"")]) == [True, True]
    found = await store.read("space", ["ü", "a", "b"])
    assert {key: record.value for key, record in found.items()} == {"a": b"\x00one", "ü": b""}
    assert await store.read("other", ["a"]) == {}


async def test_create_only_if_absent(store: Store) -> None:
    assert await store.write([Change("space", "a", b"one", expected=0)]) == [True]
    assert await store.write([Change("space", "a", b"two", expected=0)]) == [False]
    assert (await store.read("space", ["a"]))["a"].value == b"one"


async def test_compare_and_set(store: Store) -> None:
    await store.write([Change("space", "a", b"one")])
    version = (await store.read("space", ["a"]))["a"].version
    assert await store.write([Change("space", "a", b"two", expected=version)]) == [True]
    assert await store.write([Change("space", "a", b"three", expected=version)]) == [False]
    record = (await store.read("space", ["a"]))["a"]
    assert record.value == b"two"
    assert record.version > version


async def test_a_version_never_comes_back(store: Store) -> None:
    await store.write([Change("space", "a", b"one")])
    first = (await store.read("space", ["a"]))["a"].version
    await store.write([Change("space", "a", None)])
    await store.write([Change("space", "a", b"one")])
    assert (await store.read("space", ["a"]))["a"].version > first
    assert await store.write([Change("space", "a", None, expected=first)]) == [False]


async def test_each_change_of_a_batch_stands_on_its_own(store: Store) -> None:
    await store.write([Change("space", "a", b"one")])
    batch = [Change("space", "b", b"new"), Change("space", "a", b"x", expected=999_999), Change("space", "a", None)]
    assert await store.write(batch) == [True, False, True]
    assert {key: one.value for key, one in (await store.read("space", ["a", "b"])).items()} == {"b": b"new"}


async def test_changes_of_a_batch_see_those_before_them(store: Store) -> None:
    batch = [Change("space", "a", b"one", expected=0), Change("space", "a", b"two", expected=0)]
    assert await store.write(batch) == [True, False]
    assert await store.write([]) == []


async def test_a_take_adds_up_to_its_ceiling(store: Store) -> None:
    assert await store.take("space", "n", 7, ceiling=10) == 7
    assert await store.take("space", "n", 4, ceiling=10) is None
    assert await store.take("space", "n", 3, ceiling=10) == 10
    assert await store.take("space", "n", 0, ceiling=10) == 10
    assert (await store.read("space", ["n"]))["n"].value == b"10"
    assert await store.take("space", "m", 11, ceiling=10) is None
    assert await store.read("space", ["m"]) == {}


async def test_a_take_is_exact_up_to_its_eighteen_digits(store: Store) -> None:
    most = 10**18 - 1
    assert await store.take("space", "n", 9_007_199_254_740_993, ceiling=most) == 9_007_199_254_740_993
    assert await store.take("space", "n", 999_999_999, ceiling=most) == 9_007_200_254_740_992
    assert await store.take("space", "n", most - 9_007_200_254_740_992, ceiling=most) == most
    assert await store.take("space", "n", 1, ceiling=10**30) is None
    assert await store.take("space", "n", 10**30, ceiling=10**30) is None
    assert (await store.read("space", ["n"]))["n"].value == b"999999999999999999"


async def test_a_take_gives_back_what_was_taken_and_no_more(store: Store) -> None:
    assert await store.take("space", "n", 2_000_000_000, ceiling=3_000_000_000) == 2_000_000_000
    assert await store.take("space", "n", -1_000_000_001, ceiling=3_000_000_000) == 999_999_999
    with pytest.raises(StoreUnable, match="fall below 0"):
        await store.take("space", "n", -1_000_000_000, ceiling=3_000_000_000)
    with pytest.raises(StoreUnable, match="fall below 0"):
        await store.take("space", "m", -1, ceiling=10)
    assert await store.take("space", "n", 0, ceiling=-1) is None
    assert await store.take("space", "n", -999_999_999, ceiling=0) == 0


async def test_takes_at_once_never_pass_the_ceiling(store: Store) -> None:
    got = await asyncio.gather(*(store.take("space", "n", 3, ceiling=40) for _ in range(20)))
    assert sorted(one for one in got if one is not None) == list(range(3, 40, 3))


async def test_a_take_changes_the_version(store: Store) -> None:
    await store.take("space", "n", 1, ceiling=10)
    version = (await store.read("space", ["n"]))["n"].version
    await store.take("space", "n", 1, ceiling=10)
    assert await store.write([Change("space", "n", b"0", expected=version)]) == [False]


async def test_a_take_from_what_is_no_number(store: Store, subtests: pytest.Subtests) -> None:
    for value in (b"", b"ten", b"-1", b"1.5", b"1" * 19, b"\xff"):
        with subtests.test(value=str(value)):
            await store.write([Change("space", "n", value)])
            with pytest.raises(StoreCorrupt, match="number under n"):
                await store.take("space", "n", 1, ceiling=10)
            assert (await store.read("space", ["n"]))["n"].value == value


async def test_a_watch_hears_of_changes_in_its_space(store: Store) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    end = await store.watch("space", heard.put_nowait)
    await store.write([Change("other", "q", b""), Change("space", "a", b"one")])
    while await heard.get() not in ("a", ""):
        pass
    await store.write([Change("space", "b", b"", expected=99), Change("space", "a", None)])
    await store.take("space", "n", 1, ceiling=1)
    while (key := await heard.get()) != "n":
        assert key in ("a", "")
    end()
    end()
    await store.write([Change("space", "late", b"")])
    await store.write([Change("space", "later", b"")])
    assert "late" not in [heard.get_nowait() for _ in range(heard.qsize())]


async def test_keys_are_paged_in_byte_order(store: Store) -> None:
    names = ["b", "a", "é", "Z", "\U0001f600", "\uffff"]
    await store.write([Change("space", name, b"") for name in names] + [Change("other", "q", b"")])
    ordered = sorted(names, key=str.encode)
    assert await store.keys("space") == ordered
    assert await store.keys("space", after=ordered[1], limit=2) == ordered[2:4]
    assert await store.keys("space", after="\U0001f600") == []


async def test_a_deleted_record_has_no_key(store: Store) -> None:
    await store.write([Change("space", name, b"") for name in "abcdef"])
    await store.write([Change("space", name, None) for name in "abde"])
    assert await store.keys("space") == ["c", "f"]
    assert await store.keys("space", limit=1) == ["c"]
    assert await store.keys("space", after="c", limit=1) == ["f"]
    assert await store.write([Change("space", "a", None, expected=0), Change("space", "c", None, expected=0)]) == [
        True,
        False,
    ]
    assert await store.write([Change("space", "a", b"again", expected=0)]) == [True]
    assert await store.keys("space") == ["a", "c", "f"]


NAMES = ["a:b", "a", "a%3Ab", "a.b", "*", ">", " ", "", "=", "=2E", "a/b", "$KV", "\r\n", "\x7f", "ä" * 100]


async def test_no_two_names_are_one(store: Store) -> None:
    pairs = [(space, key) for space in NAMES for key in NAMES]
    for space, key in pairs:
        assert await store.write([Change(space, key, f"{space}|{key}".encode(), expected=0)]) == [True]
    for space in NAMES:
        found = await store.read(space, NAMES)
        assert {key: one.value for key, one in found.items()} == {key: f"{space}|{key}".encode() for key in NAMES}
        assert await store.keys(space) == sorted((name for name in NAMES if name), key=str.encode)


async def test_a_large_record_and_a_large_batch(store: Store, place: Place) -> None:
    value = (bytes(range(256)) * 2000)[: place.record_bytes_max]
    batch = [Change("space", f"{number:04d}", value[:number]) for number in range(place.batch)]
    assert await store.write([Change("space", "large", value), *batch]) == [True] * (place.batch + 1)
    assert (await store.read("space", ["large"]))["large"].value == value
    found = await store.read("space", [change.key for change in batch])
    assert {key: one.value for key, one in found.items()} == {change.key: change.value for change in batch}
    assert await store.write([change._replace(value=None) for change in batch]) == [True] * place.batch
    assert await store.keys("space") == ["large"]


async def test_writers_at_once_all_count(store: Store) -> None:
    await store.write([Change("space", "n", b"0")])

    async def add_one() -> int:
        tries = 0
        while True:
            tries += 1
            record = (await store.read("space", ["n"]))["n"]
            new = Change("space", "n", b"%d" % (int(record.value) + 1), expected=record.version)
            if (await store.write([new]))[0]:
                return tries

    await asyncio.gather(*(add_one() for _ in range(20)))
    assert (await store.read("space", ["n"]))["n"].value == b"20"


async def test_a_key_that_is_no_text_fails_alone(store: Store) -> None:
    try:
        await store.write([Change("space", "\ud800", b"")])
    except (StoreError, UnicodeError):
        pass
    assert await store.write([Change("space", "a", b"one")]) == [True]
    assert (await store.read("space", ["a"]))["a"].value == b"one"


async def test_closed_means_closed(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed):
        await store.read("space", ["a"])
    with pytest.raises(StoreClosed):
        await store.write([Change("space", "a", b"")])


changes = st.lists(
    st.builds(
        Change,
        space=st.sampled_from(["s", "t"]),
        key=st.sampled_from(["a", "b", "c"]),
        value=st.none() | st.binary(max_size=4),
        expected=st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("place", [name for name in PLACES if name != "memory"], indirect=True)
async def test_what_one_wrote_another_reads(place: Place) -> None:
    first = await place.open()
    await first.write([Change("space", "a", b"one")])
    version = (await first.read("space", ["a"]))["a"].version
    await first.close()
    second = await place.open()
    assert await second.read("space", ["a"]) == {"a": Record(version, b"one")}
    await second.write([Change("space", "b", b"two")])
    assert (await second.read("space", ["b"]))["b"].version > version
    await second.close()


@pytest.mark.parametrize("place", SHARED, indirect=True)
async def test_many_at_once_share_one_store(place: Place) -> None:
    # Opened at once, as sidecars that start together do, while there is nothing there yet.
    stores = await asyncio.gather(*(place.open() for _ in range(place.stores)))
    heard: asyncio.Queue[str] = asyncio.Queue()
    await stores[0].watch("space", heard.put_nowait)
    takers = stores * (48 // place.stores)
    taken = await asyncio.gather(*(one.take("space", "n", 7, ceiling=7 * 20) for one in takers))
    assert sorted(sum_ for sum_ in taken if sum_ is not None) == list(range(7, 7 * 21, 7))
    made = await asyncio.gather(*(one.write([Change("space", "once", b"", expected=0)]) for one in stores))
    assert sorted(made) == [[False]] * (place.stores - 1) + [[True]]
    while await heard.get() not in ("once", ""):
        pass
    names = [f"{number:02d}" for number in range(40)]
    # In opposite orders, which must not make them wait in a circle.
    await asyncio.gather(
        *(
            one.write([Change("space", name, b"x") for name in (names if number % 2 else reversed(names))])
            for number, one in enumerate(stores)
        )
    )
    assert set(await stores[5].keys("space")) == {"n", "once", *names}
    await asyncio.gather(*(one.close() for one in stores))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(changes, max_size=12))
def test_dynamodb_does_what_the_model_does(
    batches: list[list[Change]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fewer of them: moto's server is slow."""
    _check_against_the_model("dynamodb", batches, tmp_path_factory)


@pytest.mark.parametrize("engine", [name for name in PLACES if name not in ("memory", "dynamodb")])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(changes, max_size=12))
def test_an_engine_does_what_the_model_does(
    engine: str, batches: list[list[Change]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _check_against_the_model(engine, batches, tmp_path_factory)


def _check_against_the_model(
    engine: str, batches: list[list[Change]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run() -> None:
        async with place_of(engine, tmp_path_factory.mktemp("model")) as place:
            model, real = MemoryStore(), await place.open()
            try:
                for batch in batches:
                    # Versions themselves may differ; which one a record has is what decides: rank them.
                    assert await model.write(_ranked(batch, await _all(model))) == await real.write(
                        _ranked(batch, await _all(real))
                    )
                    assert _values(await _all(model)) == _values(await _all(real))
            finally:
                await real.close()
            again = await place.open()
            assert _values(await _all(again)) == _values(await _all(model))
            await again.close()

    asyncio.run(run())


async def _all(store: Store) -> dict[tuple[str, str], Record]:
    return {(s, k): r for s in ("s", "t") for k, r in (await store.read(s, await store.keys(s))).items()}


def _values(records: dict[tuple[str, str], Record]) -> dict[tuple[str, str], bytes]:
    return {key: record.value for key, record in records.items()}


def _ranked(batch: list[Change], now: dict[tuple[str, str], Record]) -> list[Change]:
    """Read an expected 1 as "the version that it has", 2 and above as one that nobody has."""
    ranked = []
    for change in batch:
        expected = change.expected
        if expected == 1:
            record = now.get((change.space, change.key))
            expected = record.version if record else 10**9
        elif expected is not None and expected > 1:
            expected += 10**9
        ranked.append(change._replace(expected=expected))
    return ranked
