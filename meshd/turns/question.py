"""What was asked on an edge, and what came back: how often the same was asked, and whether the answers went on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.features import Features, features_of
from meshd.turns.turn import AGENT, EVENT, TOOL

if TYPE_CHECKING:
    from meshd.turns.seen import Seen

FAR_BITS: Final = 22
"""Two payloads whose simhashes differ in more bits are not alike. Those of unrelated ones differ in 32, or 4 less."""
FAR_BITS_TOOL: Final = 12
"""The same of what tools are called with: an argument changed is another question."""
NEW_SHARE: Final = 3
"""A payload of which one word in so many was not heard before says something new."""
TOKENS_MIN: Final = 3
"""A shorter payload is the same as another or is not: there is no likeness in two words."""
LENGTHS_APART: Final = 5
"""Payloads of which one is longer than the other by more than its half and so many bytes are not compared by words."""

DIFFERENT: Final = 0
ALIKE: Final = 1
LOOSE: Final = 2
EXACT: Final = 3
"""How near a payload is to one before, from the farthest."""


class Said:
    """One payload: its bytes until somebody must know what they say, then its features."""

    __slots__ = ("_features", "_raw", "exact", "is_known", "likeness", "loose", "mark", "size")

    def __init__(self, raw: bytes = b"") -> None:
        self._raw: bytes | None = raw
        self._features: Features | None = None
        self.size = len(raw)
        self.mark = hash(raw)
        """Equal for equal bytes, in this process."""
        self.is_known = False
        """The next three are known."""
        self.exact = 0
        self.loose = 0
        self.likeness = 0

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
        if found is not None:
            self.likeness = found.likeness
            for word in found.words:
                seen.add(word)
            for word in found.names:
                seen.add(word)
            self.is_known = True
            self._features = self._raw = None

    @property
    def kept_bytes(self) -> int:
        """Bytes that it holds until its features are worked out."""
        return len(self._raw) if self._raw is not None else 0

    def nearness(self, before: Said, seen: Seen, kind: str) -> int:
        """Say how near this is to what was said `before`, whose words are learned on the way."""
        if self.mark == before.mark and self.size == before.size and not (before.is_known and before.mark == 0):
            return EXACT
        apart = self.size - before.size
        shorter = before.size if apart > 0 else self.size
        if (apart if apart > 0 else -apart) > shorter // 2 + LENGTHS_APART:
            return DIFFERENT
        if not before.is_known:
            before.learn(seen)
        found = self.features()
        if found is None:
            return DIFFERENT
        if found.exact == before.exact:
            return EXACT
        if found.loose == before.loose:
            return LOOSE
        if len(found.words) + len(found.names) < TOKENS_MIN:
            return DIFFERENT
        far = FAR_BITS if kind != TOOL else FAR_BITS_TOOL
        if (found.likeness ^ before.likeness).bit_count() > far or is_new(found, seen, kind):
            return DIFFERENT
        return ALIKE


def is_new(found: Features, seen: Seen, kind: str) -> bool:
    """Say whether a payload says something that was not heard before: a name or number, or enough words."""
    for name in found.names:
        if not seen.has(name):
            return True
    unheard = 0
    for word in found.words:
        if not seen.has(word):
            unheard += 1
    return unheard * NEW_SHARE > len(found.words) if kind != TOOL else unheard > 0


class Question:
    """A question on an edge, as it was asked last."""

    __slots__ = (
        "answer", "asked", "changes", "failures", "gap_s", "last_s", "news_at", "next_s", "number", "open", "operation",
        "rounds",
    )  # fmt: skip

    def __init__(self, asked: Said, operation: str, number: int) -> None:
        self.asked = asked
        self.operation = operation
        self.number = number
        self.answer: Said | None = None
        self.rounds = 0
        """How often it was asked and got the same answer, without anything new in between."""
        self.open = 0
        """How often it was asked and is not answered yet."""
        self.failures = 0
        """How often in a row it failed in a way that another attempt may mend."""
        self.changes = 0
        """How often its answer was another one than before."""
        self.news_at = 0
        self.last_s = 0.0
        self.gap_s = 0.0
        """Between the last two times."""
        self.next_s = 0.0
        """When it may be asked again, where it is polling."""

    def is_same(self, answer: Said, seen: Seen, kind: str) -> bool:
        """Say whether an answer brings nothing that the one before did not."""
        before = self.answer
        if before is None:
            return True
        return answer.nearness(before, seen, kind if kind in (AGENT, EVENT) else TOOL) != DIFFERENT
