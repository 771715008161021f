"""One payload: its bytes until somebody must know what they say, then what is left of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.features import Features, features_of, says_no, simhash
from meshd.turns.restating import ANY, Gloss, gloss_of
from meshd.turns.rewording import gist_of
from meshd.turns.slot import brings_word, common
from meshd.turns.turn import AGENT, EVENT, LLM, TOOL

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
UNHEARD_SHARE: Final = 5
"""Where no more than one word in so many is new to the workflow, a question may have as many fresh as an answer."""
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
SKETCH_WORDS: Final = 24
SKETCH_WORDS_MIN: Final = 4
GIST_WORDS_MIN: Final = 4
SHORT_BYTES: Final = 400
_WORDS_ALONE: Final = bytes(
    [byte | 0x20 if 65 <= byte <= 90 else byte if byte >= 0x80 or 97 <= byte <= 122 else 0x20 for byte in range(256)]
)
"""Leaves nothing but words in lower case, and blanks; digits are left out before."""
ENDS_BYTES: Final = 256
"""Kept of a payload's beginning and of its end, to see what was put into a template."""
SLOT_TENTHS: Final = 6
"""A payload that has so many tenths of another around one place where it differs is a template with something else."""


class Said:
    """What was said once: a question or an answer."""

    __slots__ = (
        "_begin", "_content", "_end", "_features", "_gist", "_gloss", "_is_answer", "_is_courteous", "_is_not_yet",
        "_is_underway", "_likeness", "_raw", "_sketch", "_text", "exact", "is_known", "loose", "mark", "names", "size",
        "words",
    )  # fmt: skip

    def __init__(self, raw: bytes = b"", is_answer: bool = False) -> None:
        self._raw: bytes | None = raw
        self._is_answer = is_answer
        self._features: Features | None = None
        self._begin = self._end = b""
        self.size = len(raw)
        self.mark = hash(raw)
        """Equal for equal bytes, in this process; 0 where another one said it."""
        self.is_known = False
        """The next five are known, and the bytes are gone."""
        self.exact = 0
        self.loose = 0
        self._likeness = -1
        self._sketch: frozenset[bytes] | None = None
        self.words: set[int] | None = None
        """None where another process said it."""
        self.names: set[int] | None = None
        self._text = ""
        self._is_underway = self._is_not_yet = self._is_courteous = False
        self._gist: frozenset[bytes] | None = None
        self._content: tuple[set[int], set[int]] | None = None
        self._gloss: Gloss | None = None

    @classmethod
    def restored(cls, exact: int, loose: int, likeness: int, size: int) -> Said:
        """Return what another process said of a payload."""
        said = cls(b"")
        said._raw = None
        said.mark = 0
        said.is_known = True
        said.exact, said.loose, said._likeness, said.size = exact, loose, likeness, size
        return said

    @property
    def likeness(self) -> int:
        """64-bit simhash of what it says."""
        if self._likeness < 0 and self.words is not None and self.names is not None:
            self._likeness = simhash(sorted(self.words), sorted(self.names))
        return self._likeness

    @property
    def says_no(self) -> bool:
        """It says that what was asked for cannot be done, or is not there."""
        return says_no(self.text)

    @property
    def sketch(self) -> frozenset[bytes]:
        """The first of its words by the alphabet, as they stand: what unlike payloads are told apart by."""
        sketch = self._sketch
        if sketch is None:
            raw = self._raw if self._raw is not None else b""
            words = set(raw.translate(_WORDS_ALONE, b"0123456789").split())
            sketch = self._sketch = frozenset(sorted(words)[:SKETCH_WORDS] if len(words) > SKETCH_WORDS else words)
        return sketch

    def features(self) -> Features | None:
        """Return what it says, worked out once; None where only its digests are known."""
        if self._features is None and self._raw is not None:
            self._features = found = features_of(self._raw, is_answer=self._is_answer)
            self.exact, self.loose = found.exact, found.loose
            self._is_underway, self._is_not_yet = found.is_underway, found.is_not_yet
            self._is_courteous = found.is_courteous
            self._text = found.text
        return self._features

    @property
    def is_underway(self) -> bool:
        """It says that something is still being done."""
        if not self.is_known:
            self.features()
        return self._is_underway

    @property
    def is_not_yet(self) -> bool:
        """It says that in words which are no sign by themselves."""
        if not self.is_known:
            self.features()
        return self._is_not_yet

    @property
    def is_courteous(self) -> bool:
        """There are thanks in it, or a greeting."""
        if not self.is_known:
            self.features()
        return self._is_courteous

    @property
    def text(self) -> str:
        """What it says, without ids and times."""
        if not self.is_known:
            self.features()
        return self._text

    @property
    def gist(self) -> frozenset[bytes]:
        """Of its words those that may say something: see `meshd.turns.rewording`."""
        gist = self._gist
        if gist is None:
            gist = self._gist = gist_of(self._raw if self._raw is not None else self._begin, self.sketch)
        return gist

    @property
    def gloss(self) -> Gloss:
        """What it has of its own beside its words: see `meshd.turns.restating`."""
        gloss = self._gloss
        if gloss is None:
            gloss = self._gloss = gloss_of(self.text)
        return gloss

    def content(self) -> tuple[set[int], set[int]]:
        """Return its words and its names; none of either where only its digests are known."""
        if self.words is not None and self.names is not None:
            return self.words, self.names
        content = self._content
        if content is None:
            found = self.features()
            content = (set(found.words), set(found.names)) if found is not None else (set(), set())
            self._content = content
        return content

    def learn(self, seen: Seen) -> None:
        """Keep the digests in place of the bytes, and let its words be known."""
        found = self.features()
        if found is None or self._raw is None:
            return
        if self._sketch is None:
            self._sketch = self.sketch
        for word in found.words:
            seen.add(word)
        for word in found.names:
            seen.add(word)
        # Each once, before any is left out: a text that quotes says few words many times.
        self.words = set(list(dict.fromkeys(found.words))[:WORDS_KEPT_MAX])
        self.names = set(list(dict.fromkeys(found.names))[:WORDS_KEPT_MAX])
        self._begin, self._end = self._raw[:ENDS_BYTES], self._raw[-ENDS_BYTES:]
        self.is_known = True
        self._features = self._raw = self._content = None

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
        is_growing = self.grows_from(before)
        if is_longer and not is_growing:
            return DIFFERENT
        # A model or a tool is asked another thing wherever one word or number is new.
        if kind in (LLM, TOOL) and not (is_growing or is_answer) and self.brings_word(before):
            return DIFFERENT
        is_comparable = not before.is_known or before.words is not None
        share = 3 if kind in (LLM, TOOL) or self.size > SHORT_BYTES else 8
        if not is_growing and is_comparable and self._is_far(before, share):
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
        if not found.words and not found.names:
            return DIFFERENT
        return self._likeness_to(before, found, seen, kind, is_growing, is_answer)

    def _is_far(self, before: Said, share: int) -> bool:
        """Say whether two payloads have less than one word in `share` in common that says something, as they stand."""
        if len(self.sketch) < SKETCH_WORDS_MIN or len(before.sketch) < SKETCH_WORDS_MIN:
            return False
        one, other = self.gist, before.gist
        if one is ANY or other is ANY or len(one) < GIST_WORDS_MIN or len(other) < GIST_WORDS_MIN:
            one, other = self.sketch, before.sketch
        return len(one & other) * share < min(len(one), len(other))

    def brings_word(self, before: Said) -> bool:
        """Say whether it is certain that this has a word or a number that what was said before has not."""
        return self._raw is not None and before._raw is not None and brings_word(self._raw, before._raw)

    def grows_from(self, before: Said) -> bool:
        """Say whether this may be what was said before, behind more of what was said since."""
        if self.size <= before.size + LENGTHS_APART or before.size < TAIL_BYTES or self._raw is None:
            return False
        end = before._raw if before._raw is not None else before._end
        return self._raw[-TAIL_BYTES:] == end[-TAIL_BYTES:]

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
            and (
                fresh * FRESH_SHARE <= total
                or (fresh * 10 <= total * FRESH_TENTHS and (is_answer or self._is_heard(found, seen)))
            )
            # Where all of the one before is still said, words were added to it, and none put in the place of others.
            and (words.issubset(found.words) or not self._is_filled_in(before))
        ):
            return ALIKE
        common = total - fresh
        if kind in (AGENT, EVENT) and common + len(found.names) >= CORE_MIN and common * CORE_SHARE >= total:
            return DECORATED
        return DIFFERENT

    @staticmethod
    def _is_heard(found: Features, seen: Seen) -> bool:
        """Say whether hardly a word is new to the workflow, whoever said it."""
        unheard = sum([not seen.has(word) for word in found.words])
        return unheard * UNHEARD_SHARE <= len(found.words)

    def _is_filled_in(self, before: Said) -> bool:
        """Say whether this is the payload before with something else at one place."""
        raw = self._raw
        if raw is None:
            return False
        size = min(len(raw), before.size)
        same = common(raw, before._begin) + common(raw[: -ENDS_BYTES - 1 : -1], before._end[::-1])
        return same * 10 >= min(size, 2 * ENDS_BYTES) * SLOT_TENTHS


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


def is_old(found: Features, seen: Seen) -> bool:
    """Say whether every word of a payload was heard before."""
    unheard = sum([not seen.has(word) for word in (*found.names, *found.words)])
    return unheard == 0
