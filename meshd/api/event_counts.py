"""What this sidecar has done with events, counted for the metrics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.refusal import Reason

TOPICS_MAX: Final = 200
"""Topics that are counted by name; agents write them, so what comes later counts as OTHER."""
OTHER: Final = "other"


class EventCounts:
    """Counts since the start of the process."""

    __slots__ = ("_topics", "handed_out", "led", "published", "refusals", "settled")

    def __init__(self) -> None:
        self._topics: set[str] = set()
        self.published: Counter[tuple[str, str]] = Counter()
        """By topic, and `new` or `duplicate`."""
        self.handed_out: Counter[str] = Counter()
        """By topic."""
        self.settled: Counter[tuple[str, str]] = Counter()
        """By topic and verdict."""
        self.refusals: Counter[tuple[str, str]] = Counter()
        """By `publish` or `handle`, and reason."""
        self.led: Counter[str] = Counter()
        """Events on `mesh.intent`, by what was decided for them."""

    def kept(self, topic: str, *, is_duplicate: bool) -> None:
        """The bus has it."""
        self.published[self._named(topic), "duplicate" if is_duplicate else "new"] += 1

    def handed(self, topic: str) -> None:
        """Somebody was handed it."""
        self.handed_out[self._named(topic)] += 1

    def ended(self, topic: str, verdict: str) -> None:
        """Its handler has said what became of it."""
        self.settled[self._named(topic), verdict] += 1

    def refused(self, verb: str, reason: Reason) -> None:
        """It was not published, or not handed out."""
        self.refusals[verb.lower(), reason.value] += 1

    def _named(self, topic: str) -> str:
        if topic in self._topics:
            return topic
        if len(self._topics) >= TOPICS_MAX:
            return OTHER
        self._topics.add(topic)
        return topic
