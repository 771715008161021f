"""How the embedded bus lets go of events: of what is too old, and of what nobody needs where there is no room.

It runs on the file's thread, a few hundred events at a time, so that whoever publishes meanwhile does not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.engines.bus_event import matcher

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from meshd.engines.bus_terms import Terms

CHUNK: Final = 500
OUT: Final = 2


class Trimming:
    """The part of a shelf that removes. `connection` is set when the file is open."""

    connection: sqlite3.Connection

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.is_crowded = False
        self._matchers: dict[str, Callable[[str], bool]] = {}
        self._swept = 0
        """How far the sweep that is under way has come; 0 where none is."""
        self._freed = 0
        """Up to here there is nothing more to free."""

    def start_over(self) -> None:
        """Forget how far trimming has come: it was rolled back."""
        self._swept = self._freed = 0

    def finish(self, group: int, sequence: int, key: str) -> bool:
        """Be done with an event; return whether another can be handed out now."""
        raise NotImplementedError

    def bytes_kept(self) -> int:
        """Return how many bytes are kept, as `keep_bytes` counts them."""
        return int(self.connection.execute("SELECT value FROM counter WHERE name = 'bytes'").fetchone()[0])

    def add_bytes(self, many: int) -> None:
        """Count bytes that came, or, below 0, went."""
        if many:
            self.connection.execute("UPDATE counter SET value = value + ? WHERE name = 'bytes'", (many,))

    def trim(self, now_ms: int) -> bool:
        """Remove some of what is too old, or, where it is crowded, not needed; return whether there is more."""
        most = self.terms.keep_bytes - self.terms.keep_bytes // 8
        over = self.bytes_kept() - most
        freed = self.free(over, chunks_max=1) if over > 0 else 0
        self.is_crowded = freed < over
        if self.is_crowded and freed:
            return True
        return self._sweep(now_ms) or self._sweep_dead(now_ms)

    def free(self, bytes_wanted: int, chunks_max: int = 1000) -> int:
        """Let go of the oldest events that no group needs; return how many bytes that made free.

        What stays of each is its id, so that it is not published twice.
        """
        run, freed = self.connection.execute, 0
        floor = run("SELECT min(position) FROM grp").fetchone()[0]
        floor = 2**62 if floor is None else floor
        for _ in range(chunks_max):
            rows = run(
                "SELECT sequence, bytes FROM event WHERE sequence > ? AND sequence <= ? AND body IS NOT NULL "
                "AND NOT EXISTS (SELECT 1 FROM pending WHERE pending.sequence = event.sequence) "
                "ORDER BY sequence LIMIT ?",
                (self._freed, floor, CHUNK),
            ).fetchall()
            for sequence, size in rows:
                if freed >= bytes_wanted:
                    break
                run("UPDATE event SET body = NULL, bytes = 0 WHERE sequence = ?", (sequence,))
                freed += size
            if freed >= bytes_wanted or len(rows) < CHUNK:
                break
        needed = "SELECT sequence FROM event WHERE sequence > ? AND body IS NOT NULL ORDER BY sequence LIMIT 1"
        row = run(needed, (self._freed,)).fetchone()
        if row is not None:
            self._freed = row[0] - 1
        self.add_bytes(-freed)
        return freed

    def _sweep(self, now_ms: int) -> bool:
        run = self.connection.execute
        gone_ms = now_ms - int(self.terms.keep_s * 1000)
        forgotten_ms = min(gone_ms, now_ms - int(self.terms.repeat_s * 1000))
        rows = run(
            "SELECT sequence, topic, at_ms, bytes, body IS NULL FROM event "
            "WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (self._swept, CHUNK),
        ).fetchall()
        self._swept = rows[-1][0] if len(rows) == CHUNK else 0
        behind = run(
            "SELECT number, position, topic FROM grp WHERE position < ?", (rows[-1][0] if rows else 0,)
        ).fetchall()
        freed = 0
        for sequence, topic, at_ms, size, is_empty in rows:
            if at_ms > gone_ms:
                self._swept = 0
                break
            if not is_empty:
                if not self._give_up(sequence, gone_ms):
                    continue
                freed += size
                for group, position, pattern in behind:
                    if position < sequence and self.matcher(pattern)(topic):
                        run("UPDATE grp SET expired = expired + 1 WHERE number = ?", (group,))
            if at_ms <= forgotten_ms:
                run("DELETE FROM event WHERE sequence = ?", (sequence,))
            elif not is_empty:
                run("UPDATE event SET body = NULL, bytes = 0 WHERE sequence = ?", (sequence,))
        self.add_bytes(-freed)
        return self._swept > 0

    def _give_up(self, sequence: int, gone_ms: int) -> bool:
        """Take an event from the groups that have not settled it; return False where one is at it, or asked for it."""
        run = self.connection.execute
        rows = run("SELECT grp, key, state, since_ms FROM pending WHERE sequence = ?", (sequence,)).fetchall()
        if any(state == OUT or since_ms > gone_ms for _, _, state, since_ms in rows):
            return False
        for group, key, _, _ in rows:
            run("UPDATE grp SET expired = expired + 1 WHERE number = ?", (group,))
            self.finish(group, sequence, key)
        return True

    def _sweep_dead(self, now_ms: int) -> bool:
        run = self.connection.execute
        gone_ms = now_ms - int(self.terms.dead_keep_s * 1000)
        rows = run("SELECT number, died_ms, bytes FROM dead ORDER BY number LIMIT ?", (CHUNK,)).fetchall()
        old = [(number, size) for number, died_ms, size in rows if died_ms <= gone_ms]
        for number, _ in old:
            run("DELETE FROM dead WHERE number = ?", (number,))
        self.add_bytes(-sum(size for _, size in old))
        return len(old) == CHUNK

    def matcher(self, pattern: str) -> Callable[[str], bool]:
        """Return what says whether a topic is one of a group's."""
        found = self._matchers.get(pattern)
        if found is None:
            found = self._matchers[pattern] = matcher(pattern)
        return found
