"""The embedded bus's tables, looked at without a group, and groups that begin anywhere in them.

Every function runs as those of `meshd.engines.bus_sqlite_shelf` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import Topic
from meshd.engines.bus_shelf import check_place
from meshd.engines.bus_sqlite_shelf import LATEST, SCAN, SCAN_MAX, Shelf

if TYPE_CHECKING:
    from meshd.engines.bus_port import Event

# No index by time: a group is made once, and looking through what is kept takes some milliseconds.
_BEFORE = f"SELECT coalesce((SELECT min(sequence) - 1 FROM event WHERE at_ms >= ? AND NOT is_back), ({LATEST}))"  # noqa: S608
_KEPT = "SELECT count(*) FROM event WHERE sequence > ? AND body IS NOT NULL AND NOT is_back"


class ReplayingShelf(Shelf):
    """See the module."""

    def join_from(self, group: str, topic: str, at_ms: int | None, after: int) -> int:
        """Return the number of a group; a new one begins at a moment, else behind a place. Raises as `check_place`."""
        if at_ms is None:
            return self.join_at(group, topic, lambda: self._checked(after))
        return self.join_at(group, topic, lambda: int(self.connection.execute(_BEFORE, (at_ms,)).fetchone()[0]))

    def _checked(self, after: int) -> int:
        latest = self.last_place()
        # Places are given one after the other: as many are kept as were given, or something was removed.
        behind = self.connection.execute(_KEPT, (after,)).fetchone()[0]
        check_place(after, latest, is_whole=behind == latest - after)
        return after

    def kept(self, topic: str, after: int, limit: int) -> tuple[list[Event], int]:
        """Return events that are kept, as the bus's, of SCAN_MAX at most; and where to look on, 0 for nowhere."""
        is_for = self.matcher(topic)
        found: list[Event] = []
        rows = self.connection.execute(SCAN, (after, SCAN_MAX)).fetchall()
        for sequence, event_topic, _ in rows:
            if is_for(event_topic):
                if len(found) == limit:
                    return found, 0
                if (event := self.event(sequence)) is not None:
                    found.append(event)
        return found, rows[-1][0] if len(rows) == SCAN_MAX else 0

    def behind(self, topic: str, after: int) -> tuple[int, int]:
        """Return how many events there are, of SCAN_MAX at most; and where to look on, 0 for nowhere."""
        is_for = self.matcher(topic)
        rows = self.connection.execute(SCAN, (after, SCAN_MAX)).fetchall()
        return sum(is_for(one) for _, one, _ in rows), rows[-1][0] if len(rows) == SCAN_MAX else 0

    def topics(self) -> list[Topic]:
        """Return the topics, as the bus's."""
        found = self.connection.execute(
            "SELECT topic, count(*), sum(bytes), max(sequence) FROM event WHERE body IS NOT NULL AND NOT is_back "
            "GROUP BY topic ORDER BY topic"
        )
        return [Topic(topic, count, size, sequence_text(latest)) for topic, count, size, latest in found]
