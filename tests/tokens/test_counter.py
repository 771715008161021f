"""The counting thread: off the loop, remembered, limited, and never the end of a call."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.tokens.counter import PENDING_BYTES_MAX, REQUEST_BYTES_MAX, Cache, Counter, Texts, tokens_of, whole
from tests.tokens.texts import ENCODINGS, MIB, any_text, encode

pytestmark = pytest.mark.both_loops


class Panic(BaseException):
    """As pyo3 raises a panic of Rust code: no Exception."""


def texts(*parts: str, overhead: int = 0) -> Texts:
    return Texts(parts, tuple(f"text {index}" for index in range(len(parts))), overhead)


def letters(text: str) -> list[int]:
    return list(text.encode())


def by_letters(**options: int) -> Counter:
    return Counter(load=lambda _name: letters, **options)


async def test_texts_and_what_is_around_them() -> None:
    counter = by_letters()
    assert await counter.total("o200k_base", lambda: texts("abc", "de", overhead=7), 5) == 12
    counter.close()


async def test_the_loop_goes_on_while_a_thread_counts() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(text: str) -> list[int]:
        begun.set()
        assert may_end.wait(30)
        return letters(text)

    counter = Counter(load=lambda _name: slow)
    counting = asyncio.create_task(counter.total("o200k_base", lambda: texts("abc"), 3))
    await asyncio.to_thread(begun.wait, 30)
    assert not counting.done()
    may_end.set()
    assert await counting == 3
    counter.close()


@pytest.mark.parametrize(
    "text",
    [" " * MIB, "\U0001f600" * (MIB // 4), "\x00\x01\x02" * (MIB // 3), "".join(map(chr, range(0x20, 0xD7FF))) * 4],
    ids=["spaces", "emoji", "control", "every character"],
)
async def test_a_megabyte_of_nonsense_neither_blocks_the_loop_nor_ends_it(text: str) -> None:
    counter = Counter()
    await counter.total("cl100k_base", lambda: texts("warm"), 4)
    turns = 0
    counting = asyncio.create_task(counter.total("cl100k_base", lambda: texts(text), len(text)))
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    found = await counting
    assert found is not None
    assert 0 < found <= len(text.encode())
    assert turns > 1
    counter.close()


async def test_what_is_too_much_is_not_counted_and_starts_no_thread() -> None:
    counter = by_letters()
    before = set(threading.enumerate())  # other counters have threads of their own
    assert await counter.total("o200k_base", lambda: texts("x"), REQUEST_BYTES_MAX + 1) is None
    assert await counter.total("", lambda: texts("x"), 1) is None
    assert set(threading.enumerate()) <= before
    assert REQUEST_BYTES_MAX * 2 <= PENDING_BYTES_MAX


async def test_a_thread_that_is_behind_is_given_no_more() -> None:
    may_end = threading.Event()

    def slow(text: str) -> list[int]:
        assert may_end.wait(30)
        return letters(text)

    counter = Counter(load=lambda _name: slow)
    most = PENDING_BYTES_MAX // REQUEST_BYTES_MAX
    waiting = [
        asyncio.create_task(counter.total("o200k_base", lambda: texts("ab"), REQUEST_BYTES_MAX)) for _ in range(most)
    ]
    await asyncio.sleep(0)
    assert await counter.total("o200k_base", lambda: texts("ab"), 2) is None
    may_end.set()
    assert await asyncio.gather(*waiting) == [2] * most
    assert await counter.total("o200k_base", lambda: texts("ab"), 2) == 2
    counter.close()


async def test_a_call_that_is_given_up_gives_its_place_back() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(text: str) -> list[int]:
        begun.set()
        assert may_end.wait(30)
        return letters(text)

    counter = Counter(load=lambda _name: slow)
    counting = asyncio.create_task(counter.total("o200k_base", lambda: texts("ab"), REQUEST_BYTES_MAX))
    await asyncio.to_thread(begun.wait, 30)
    counting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await counting
    may_end.set()
    for _ in range(PENDING_BYTES_MAX // REQUEST_BYTES_MAX):
        assert await counter.total("o200k_base", lambda: texts("ab"), REQUEST_BYTES_MAX) == 2
    counter.close()


async def test_a_fault_of_ours_is_logged_and_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Texts:
        raise RuntimeError("a fault")

    counter = by_letters()
    assert await counter.total("o200k_base", broken, 1) is None
    assert await counter.total("o200k_base", lambda: None, 1) is None
    assert "could not be counted" in caplog.text
    counter.close()


def test_a_panic_counts_as_bytes(caplog: pytest.LogCaptureFixture) -> None:
    def panics(text: str) -> list[int]:
        raise Panic(f"called `Result::unwrap()` on {len(text)}")

    with caplog.at_level(logging.WARNING):
        assert tokens_of("\u4e2d\u6587", panics) == 6
    assert "could not be counted" in caplog.text


def test_no_library_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def missing(_name: str) -> None:
        raise ImportError("No module named 'tiktoken'")

    counter = Counter(load=missing)  # type: ignore[arg-type]
    assert counter.count_here("o200k_base", ["a"]) is None
    assert counter.count_here("o200k_base", ["a"]) is None
    assert caplog.text.count("No module named") == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=any_text)
@settings(max_examples=200)
def test_a_count_never_passes_the_bytes_of_a_text_as_a_server_takes_it(encoding: str, text: str) -> None:
    counter = Counter(load=encode)
    counts = counter.count_here(encoding, [text, text])
    assert counts is not None
    assert counts[0] == counts[1] == len(encode(encoding)(whole(text)))
    assert counts[0] <= len(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00", "\ud83d" * 100])
def test_halves_of_surrogate_pairs_are_what_servers_make_of_them(text: str) -> None:
    assert "\ud83d" not in whole(text)
    assert whole("\ud83d\ude00") == "\U0001f600"
    assert by_letters().count_here("o200k_base", [text])


# The memory


def test_what_was_counted_is_known_until_others_take_its_place() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(text)

    cache = Cache(bytes_max=240 * 3)
    long = [letter * 100 for letter in "abcd"]
    for text in [*long[:3], long[0], long[3], long[0], long[1]]:
        assert cache.count("o200k_base", text, count) == 100
    assert asked == [*long, long[1]], "b was used longest ago"
    assert len(cache) == 3
    assert (cache.hits, cache.misses) == (2, 5)


def test_encodings_are_remembered_apart_and_short_texts_not_at_all() -> None:
    cache = Cache()
    assert cache.count("o200k_base", "x" * 100, lambda _text: 1) == 1
    assert cache.count("cl100k_base", "x" * 100, lambda _text: 2) == 2
    assert cache.count("o200k_base", "x", lambda _text: 3) == 3
    assert cache.count("o200k_base", "x", lambda _text: 4) == 4
    assert len(cache) == 2


@given(st.lists(st.text(min_size=64, max_size=80), max_size=60), st.integers(1, 10))
def test_the_memory_is_bounded_and_right(given: list[str], most: int) -> None:
    cache = Cache(bytes_max=240 * most)
    for text in given:
        assert cache.count("o200k_base", text, len) == len(text)
        assert len(cache) <= most


def test_a_daemon_that_counts_nothing_loads_nothing_of_it() -> None:
    program = (
        "import sys, meshd.daemon, meshd.cli.run, meshd.filters.bounds, meshd.tokens.counter\n"
        "meshd.tokens.counter.Counter().close()\n"
        "heavy = {'tiktoken', 'regex', 'requests', 'urllib3', 'meshd.tokens.vocabulary'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
