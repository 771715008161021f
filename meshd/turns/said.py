"""One payload: its bytes until somebody must know what they say, then what is left of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.features import Features, features_of
from meshd.turns.turn import AGENT, EVENT, TOOL

if TYPE_CHECKING:
    from meshd.turns.seen import Seen

DIFFERENT: Final = 0
DECORATED: Final = 1
"""The same words, among as many others that were never heard."""
ALIKE: Final = 2
LOOSE: Final = 3
EXACT: Final = 4
"""How near a payload is to one before, from the farthest."""

FAR_BITS: Final = 22
"""Two payloads whose simhashes differ in more bits are not alike. Those of unrelated ones differ in 32, or 4 less."""
FRESH_SHARE: Final = 3
"""A payload of which more than one word in so many is fresh says something else."""
FRESH_TENTHS: Final = 4
"""The same in tenths for an answer: its question was asked before, so less is needed to say that it is the same."""
TOKENS_MIN: Final = 3
"""A shorter payload has the same words as another, or is not alike."""
CORE_MIN: Final = 3
CORE_SHARE: Final = 4
"""A decorated payload has so many words in common with the one before, and at least one in so many of its own."""
LENGTHS_APART: Final = 40
"""A payload that is shorter than another by more than its half and so many bytes is another one."""
TAIL_BYTES: Final = 24
"""Payloads that end alike may be one that grows: what was said so far, and then the same again."""
WORDS_KEPT_MAX: Final = 96
ENDS_BYTES: Final = 256
"""Kept of a payload's beginning and of its end, to see what was put into a template."""
SLOT_TENTHS: Final = 6
"""A payload that has so many tenths of another around one place where it differs is a template with something else."""


class Said:
    """What was said once: a question or an answer."""

    __slots__ = (
        "_begin", "_end", "_features", "_raw", "exact", "is_known", "likeness", "loose", "mark", "names",
        "says_no", "size", "words",
    )  # fmt: skip

    def __init__(self, raw: bytes = b"") -> None:
        self._raw: bytes | None = raw
        self._features: Features | None = None
        self._begin = self._end = b""
        self.size = len(raw)
        self.mark = hash(raw)
        """Equal for equal bytes, in this process; 0 where another one said it."""
        self.is_known = False
        """The next five are known, and the bytes are gone."""
        self.exact = 0
        self.loose = 0
        self.likeness = 0
        self.words: set[int] | None = None
        """None where another process said it."""
        self.names: set[int] | None = None
        self.says_no = False

    @classmethod
    def restored(cls, exact: int, loose: int, likeness: int, size: int) -> Said:
        """Return what another process said of a payload."""
        said = cls(b"")
        said._raw = None
        said.mark = 0
        said.is_known = True
        said.exact, said.loose, said.likeness, said.size = exact, loose, likeness, size
        return said

    def features(self) -> Features | None:
        """Return what it says, worked out once; None where only its digests are known."""
        if self._features is None and self._raw is not None:
            self._features = found = features_of(self._raw)
            self.exact, self.loose = found.exact, found.loose
        return self._features

    def learn(self, seen: Seen) -> None:
        """Keep the digests in place of the bytes, and let its words be known."""
        found = self.features()
        if found is None or self._raw is None:
            return
        for word in found.words:
            seen.add(word)
        for word in found.names:
            seen.add(word)
        self.likeness, self.says_no = found.likeness, found.says_no
        # Each once, before any is left out: a text that quotes says few words many times.
        self.words = set(list(dict.fromkeys(found.words))[:WORDS_KEPT_MAX])
        self.names = set(list(dict.fromkeys(found.names))[:WORDS_KEPT_MAX])
        self._begin, self._end = self._raw[:ENDS_BYTES], self._raw[-ENDS_BYTES:]
        self.is_known = True
        self._features = self._raw = None

    def take_over(self, before: Said) -> None:
        """Be the latest of payloads that say the same: their words are its own."""
        if self.words is not None and self.names is not None and before.words and before.names is not None:
            if len(self.words) + len(before.words) <= WORDS_KEPT_MAX:
                self.words |= before.words
            if len(self.names) + len(before.names) <= WORDS_KEPT_MAX:
                self.names |= before.names

    @property
    def kept_bytes(self) -> int:
        """Bytes that it holds until its features are worked out."""
        return len(self._raw) if self._raw is not None else 0

    def nearness(self, before: Said, seen: Seen, kind: str, *, is_answer: bool = False) -> int:
        """Say how near this is to what was said `before`, whose words are learned on the way."""
        if self.mark == before.mark != 0 and self.size == before.size:
            return EXACT
        raw = self._raw
        if raw is None:
            return DIFFERENT
        is_longer = self.size > before.size + (before.size >> 1) + LENGTHS_APART
        if before.size > self.size + (self.size >> 1) + LENGTHS_APART:
            return DIFFERENT
        if not before.is_known:
            before.learn(seen)
        is_growing = (
            self.size > before.size + LENGTHS_APART
            and before.size >= TAIL_BYTES
            and raw[-TAIL_BYTES:] == before._end[-TAIL_BYTES:]
        )
        if is_longer and not is_growing:
            return DIFFERENT
        found = self.features()
        if found is None:
            return DIFFERENT
        if found.exact == before.exact:
            return EXACT
        if found.loose == before.loose:
            return LOOSE
        if not found.words and not found.names:
            return DIFFERENT
        return self._likeness_to(before, found, seen, kind, is_growing, is_answer)

    def _likeness_to(
        self, before: Said, found: Features, seen: Seen, kind: str, is_growing: bool, is_answer: bool
    ) -> int:
        words, names = before.words, before.names
        if words is None or names is None or (is_growing and kind != TOOL):
            if words is None and (found.likeness ^ before.likeness).bit_count() > FAR_BITS:
                return DIFFERENT
            return DIFFERENT if is_new(found, seen, kind) else ALIKE
        for name in found.names:
            if name not in names:
                return DIFFERENT
        fresh = 0
        for word in found.words:
            if word not in words:
                fresh += 1
        total = len(found.words)
        if not fresh:
            # Nothing is new in it; where it leaves nearly everything out, it is another question all the same.
            return ALIKE if total * FRESH_SHARE >= len(words) else DIFFERENT
        if (
            kind in (AGENT, EVENT)
            and total + len(found.names) >= TOKENS_MIN
            and (fresh * FRESH_SHARE <= total or (is_answer and fresh * 10 <= total * FRESH_TENTHS))
            and not self._is_filled_in(before)
        ):
            return ALIKE
        common = total - fresh
        if kind in (AGENT, EVENT) and common + len(found.names) >= CORE_MIN and common * CORE_SHARE >= total:
            return DECORATED
        return DIFFERENT

    def _is_filled_in(self, before: Said) -> bool:
        """Say whether this is the payload before with something else at one place."""
        raw = self._raw
        if raw is None:
            return False
        size = min(len(raw), before.size)
        same = _common(raw, before._begin) + _common(raw[: -ENDS_BYTES - 1 : -1], before._end[::-1])
        return same * 10 >= min(size, 2 * ENDS_BYTES) * SLOT_TENTHS


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts begin with that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) >> 1
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def is_new(found: Features, seen: Seen, kind: str) -> bool:
    """Say whether a payload says something that was not heard before: a name or number, or enough words."""
    for name in found.names:
        if not seen.has(name):
            return True
    unheard = 0
    for word in found.words:
        if not seen.has(word):
            unheard += 1
    return unheard * FRESH_SHARE > len(found.words) if kind != TOOL else unheard > 0
