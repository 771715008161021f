"""What was asked on an edge, and what came back: how often the same was asked, and whether the answers went on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.turns.said import DECORATED, DIFFERENT
from meshd.turns.turn import AGENT, TOOL

if TYPE_CHECKING:
    from meshd.turns.said import Said
    from meshd.turns.seen import Seen

_LATER: Final = re.compile(
    r"(?i:\btim(?:ed?|ing)[ -]?out\b|\b(?:try|retry) (?:it )?(?:again|later)|\btemporar|\bunavailable\b|\boverload|"
    r"\brate[ -]?limit|\btoo many requests\b|\bbusy\b)"
)
GROWN: Final = 3.0
BURST_S: Final = 0.02
STEADY_SHARE: Final = 8
"""A gap is like the one before where they differ by less than one part in so many."""
GROWTH: Final = 1.3
"""A gap has grown that is so many times as long as the one before."""


class Question:
    """A question on an edge, as it was asked last."""

    __slots__ = (
        "_asked_at", "_grows_from_s", "answer", "asked", "changes", "failures", "gap_s", "growth", "is_alone",
        "is_burst", "is_decorated", "is_program", "is_unthought", "last_s", "mark", "models_at", "news_at", "next_s",
        "number", "open", "plain_mark", "plain_said", "plain_size", "rounds", "steady",
    )  # fmt: skip

    def __init__(self, asked: Said, mark: int, number: int) -> None:
        self.asked = asked
        self.mark = mark
        """Of the operation: the same text to another one is another question."""
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
        self.is_decorated = False
        """It came last among words that were never heard: it is the same only where the answer says no to it again."""
        self.news_at = 0
        self.is_program = False
        """Who asks again has asked no model in between, and does so elsewhere."""
        self.models_at = -1
        """How often its asker had called a model when it was asked last."""
        self.last_s = 0.0
        self.gap_s = 0.0
        """Between the last two times."""
        self.growth = 0
        """How often in a row that gap has grown, as it does for one who backs off."""
        self.plain_mark = 0
        """Hash of the model's last answer, byte for byte, where it came whole; 0 for none."""
        self.plain_size = 0
        self.plain_said = b""
        """What that answer says."""
        self._grows_from_s = 0.0
        self._asked_at = -1
        self.is_alone = False
        """Nothing else was asked in between."""
        self.steady = 0
        """How often in a row that gap was like the one before, as those of a clock are."""
        self.is_burst = False
        """It was asked at once with the one before, as who hands out equal work does."""
        self.is_unthought = False
        """Who asks has asked no model in between."""
        self.next_s = 0.0
        """When it may be asked again, where it is polling."""

    def came(self, now_s: float, models: int, at: int) -> None:
        """It is asked now, by who has called so many models; `at` is how much was asked in the workflow."""
        self.is_alone = at == self._asked_at + 1
        self._asked_at = at
        self.is_unthought = models == self.models_at
        self.is_program = self.is_unthought and models > 0
        self.models_at = models
        self.open += 1
        if self.last_s:
            gap_s = now_s - self.last_s
            before_s = self.gap_s
            if 0 < before_s * GROWTH < gap_s:
                self._grows_from_s = before_s if not self.growth else self._grows_from_s
                self.growth += 1
            else:
                self.growth = 0
            apart_s = gap_s - before_s if gap_s > before_s else before_s - gap_s
            self.steady = self.steady + 1 if before_s > 0 and apart_s * STEADY_SHARE < gap_s else 0
            self.is_burst = gap_s < BURST_S
            self.gap_s = gap_s
        self.last_s = now_s

    @property
    def backs_off(self) -> bool:
        """Its gaps have grown twice in a row, and to three times what they were."""
        return self.growth > 1 and self.gap_s >= GROWN * self._grows_from_s

    @property
    def is_transient(self) -> bool:
        """Its answer says that it may be asked again later."""
        return self.answer is not None and _LATER.search(self.answer.text) is not None

    def is_same(self, answer: Said, seen: Seen, kind: str) -> bool:
        """Say whether an answer brings nothing that the one before did not."""
        before = self.answer
        if before is None:
            return True
        near = answer.nearness(before, seen, TOOL if kind == TOOL else AGENT, is_answer=True)
        if self.is_decorated or near == DECORATED:
            found = answer.features()
            return near != DIFFERENT and (before.says_no or (found is not None and found.says_no))
        return near != DIFFERENT
