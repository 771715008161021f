"""The thread that counts, with its cache and its limits."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.tokens.cutting import pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Encode = Callable[[str], list[int]]

REQUEST_BYTES_MAX: Final = 8 * 2**20
"""Of one request. More than this is beyond every window of a model that can be counted."""
PENDING_BYTES_MAX: Final = 16 * 2**20
"""Of all requests that wait for the thread: beyond it a request is not counted, and its byte bound stands."""
CACHE_BYTES_MAX: Final = 4 * 2**20
CACHED_CHARACTERS_MIN: Final = 64
"""A shorter text is counted sooner than it is looked up."""
# A key of 17 bytes, a small number and the links between them, as Python 3.11 keeps them; measured.
_ENTRY_BYTES: Final = 240

_log = logging.getLogger("meshd.tokens")


class Texts(NamedTuple):
    """What a request gives its model to read, as its dialect sees it."""

    parts: tuple[str, ...]
    """Texts, each tokenized on its own, in the order of `labels`."""
    labels: tuple[str, ...]
    """What each of them is, for people."""
    overhead: int
    """Tokens beside those of the texts: marks around messages, the priming of the answer, hidden prompts, images."""


class Cache:
    """Counts by text and encoding, those used longest ago dropped first. Not for two threads at once."""

    __slots__ = ("_counts", "_entries_max", "hits", "misses")

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._entries_max = max(1, bytes_max // _ENTRY_BYTES)
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, encoding: str, text: str, count: Callable[[str], int]) -> int:
        """Return the count of a text, by `count` where it is not known."""
        if len(text) < CACHED_CHARACTERS_MIN:
            return count(text)
        # A chat sends its history again with every turn: nearly all of its texts were counted before.
        key = blake2b(text.encode(), digest_size=16, person=encoding.encode()).digest()
        known = self._counts.get(key)
        if known is not None:
            self.hits += 1
            self._counts.move_to_end(key)
            return known
        self.misses += 1
        found = self._counts[key] = count(text)
        if len(self._counts) > self._entries_max:
            self._counts.popitem(last=False)
        return found


class Counter:
    """Counts texts, in one thread of its own that is not started before there is something to count."""

    def __init__(self, *, load: Callable[[str], Encode] | None = None, cache_bytes_max: int = CACHE_BYTES_MAX) -> None:
        """`load` finds an encoding by its name; None for the ones that ship with meshd."""
        self._load = load
        self._cache = Cache(cache_bytes_max)
        self._encodings: dict[str, Encode | None] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._pending = 0

    @property
    def cached(self) -> int:
        """Texts whose count is remembered."""
        return len(self._cache)

    async def total(self, encoding: str, texts: Callable[[], Texts | None], size: int) -> int | None:
        """Return the tokens of what `texts` finds, off the loop: exactly, or more where a text is not safe to count.

        None where it is not to be counted: too much of it, the thread is behind, no vocabulary, nothing found. `size`
        is about the bytes of it all. `texts` is called in the thread.
        """
        if not encoding or size > REQUEST_BYTES_MAX or self._pending + size > PENDING_BYTES_MAX:
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meshd-tokens")
        self._pending += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._total, encoding, texts)
        finally:
            self._pending -= size

    def _total(self, encoding: str, texts: Callable[[], Texts | None]) -> int | None:
        try:
            found = texts()
            counts = self.count_here(encoding, found.parts) if found is not None else None
        except Exception:  # noqa: BLE001
            # A fault of ours here must not refuse a call: its bound stands.
            _log.exception("a request could not be counted")
            return None
        return sum(counts) + found.overhead if counts is not None and found is not None else None

    def count_here(self, encoding: str, parts: Sequence[str]) -> list[int] | None:
        """Return the tokens of each text, in the thread that asks; None where there is no vocabulary."""
        if encoding not in self._encodings:
            self._encodings[encoding] = self._loaded(encoding)
        encode = self._encodings[encoding]
        if encode is None:
            return None
        return [self._cache.count(encoding, text, lambda text: tokens_of(text, encode)) for text in map(whole, parts)]

    def _loaded(self, encoding: str) -> Encode | None:
        try:
            if self._load is None:
                from meshd.tokens.vocabulary import load

                return load(encoding)
            return self._load(encoding)
        except Exception as error:  # noqa: BLE001
            # Said once: the next count finds that there is none.
            _log.warning(
                "tokens of %s cannot be counted, so bounds of its models stay those of bytes: %s", encoding, error
            )
            return None

    def close(self) -> None:
        """Let the thread end; what it counts still is not waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


def whole(text: str) -> str:
    """Return a text in which half of a surrogate pair is U+FFFD, as tokenizers and servers take it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def tokens_of(text: str, encode: Encode) -> int:
    """Return the tokens of a text, never more than its bytes in UTF-8."""
    return sum(
        _tokens_of(piece.text, encode) if piece.is_countable else len(piece.text.encode()) for piece in pieces_of(text)
    )


def _tokens_of(text: str, encode: Encode) -> int:
    try:
        return len(encode(text))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001
        # A panic of the library's Rust code is no Exception. The bytes bound what it could not count.
        _log.warning("a text of %d characters could not be counted: %s", len(text), error)
        return len(text.encode())
