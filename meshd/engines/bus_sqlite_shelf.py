"""What the embedded bus does to its tables. Every function runs on the file's thread, inside of a transaction.

Nothing of the tables is held in memory: a transaction that is rolled back leaves nothing to be mended. Times are Unix
milliseconds. An event that a group has begun with and not settled has a row in `pending`; of one partition key all but
the first are BLOCKED.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Verdict
from meshd.engines.bus_shelf import (
    AGAIN,
    UNHEARD,
    Attempt,
    Settled,
    Unheard,
    deferred,
    full,
    none_unheard,
    ordinal,
    redriven,
)
from meshd.engines.bus_sqlite_trim import Trimming
from meshd.engines.bus_terms import EVENT_BYTES
from meshd.engines.port import StoreFull
from meshd.engines.sqlite_file import Format

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from meshd.engines.bus_terms import Terms

log = logging.getLogger("meshd")

SCHEMA = 1
APPLICATION_ID = 0x6D627573  # "mbus"
SCAN_MAX: Final = 2000
"""How many events are looked at in one go: what waits behind it waits no longer than that takes."""
READY, BLOCKED, OUT, WAITING = range(4)
DAMAGED: Final = "its record is damaged"

# AUTOINCREMENT: a sequence that was given once is never given again, whatever was removed.
_TABLES = """
CREATE TABLE IF NOT EXISTS event (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
    key TEXT NOT NULL, at_ms INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB, is_back INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS event_id ON event (source, id);
CREATE TABLE IF NOT EXISTS grp (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, topic TEXT NOT NULL, position INTEGER NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0, expired INTEGER NOT NULL DEFAULT 0, UNIQUE (name, topic)
);
CREATE TABLE IF NOT EXISTS pending (
    sequence INTEGER NOT NULL, grp INTEGER NOT NULL, key TEXT NOT NULL, state INTEGER NOT NULL, due_ms INTEGER NOT NULL,
    wait_ms INTEGER NOT NULL, attempt INTEGER NOT NULL, is_marked INTEGER NOT NULL, is_done INTEGER NOT NULL,
    since_ms INTEGER NOT NULL, PRIMARY KEY (sequence, grp)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending_due ON pending (grp, state, due_ms, sequence);
CREATE INDEX IF NOT EXISTS pending_key ON pending (grp, key, state, sequence) WHERE key <> '';
CREATE TABLE IF NOT EXISTS dead (
    number INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, sequence INTEGER NOT NULL, topic TEXT NOT NULL,
    key TEXT NOT NULL, attempts INTEGER NOT NULL, is_marked INTEGER NOT NULL, reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL, died_ms INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB
);
CREATE INDEX IF NOT EXISTS dead_grp ON dead (grp, number);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('bytes', 0);
"""
FORMAT: Final = Format(APPLICATION_ID, SCHEMA, _TABLES, "UPDATE counter SET value = value")

_KEEP = "INSERT INTO event (topic, source, id, key, at_ms, bytes, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_KNOWN = "SELECT sequence FROM event WHERE source = ? AND id = ?"
SCAN = (
    "SELECT sequence, topic, key FROM event WHERE sequence > ? AND body IS NOT NULL AND NOT is_back "
    "ORDER BY sequence LIMIT ?"
)
_PENDING = "INSERT INTO pending VALUES (?, ?, ?, ?, ?, 0, ?, ?, 0, ?)"
_ROW = "SELECT key, state, attempt, is_marked, is_done FROM pending WHERE sequence = ? AND grp = ?"
_DUE = (
    "SELECT min(coalesce((SELECT min(due_ms) FROM pending WHERE grp = ?1 AND state = 2), 9e18),"
    " coalesce((SELECT min(due_ms) FROM pending WHERE grp = ?1 AND state = 3), 9e18))"
)
_READY = (
    "SELECT sequence, attempt, is_marked, key FROM pending WHERE grp = ? AND state = 0 "
    "ORDER BY due_ms, sequence LIMIT ?"
)
_BEGIN = "UPDATE pending SET state = 2, due_ms = ?, attempt = ? WHERE sequence = ? AND grp = ?"
_IS_HELD = "SELECT 1 FROM pending WHERE grp = ? AND key = ? AND key <> '' LIMIT 1"
_IS_LED = "SELECT 1 FROM pending WHERE grp = ? AND key = ? AND key <> '' AND state <> 1 LIMIT 1"
_NEXT_OF_KEY = (
    "SELECT sequence FROM pending WHERE grp = ? AND key = ? AND key <> '' AND state = 1 ORDER BY sequence LIMIT 1"
)
LATEST = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0)"


class Shelf(Trimming):
    """The tables of one bus."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self.unheard = none_unheard()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode

    def open(self, connection: sqlite3.Connection, now_ms: int) -> None:
        """Take over what the process before left: what was under way is handed out again, marked."""
        self.connection = connection
        run = connection.execute
        run("BEGIN IMMEDIATE")
        # Where the clock was set back meanwhile, nothing waits or is kept for longer than it would have been.
        run("UPDATE pending SET due_ms = min(due_ms, ? + wait_ms) WHERE state = 3", (now_ms,))
        if (run("SELECT at_ms FROM event ORDER BY sequence DESC LIMIT 1").fetchone() or (0,))[0] > now_ms:
            run("UPDATE event SET at_ms = ? WHERE at_ms > ?", (now_ms, now_ms))
            run("UPDATE pending SET since_ms = ? WHERE since_ms > ?", (now_ms, now_ms))
        rows = run("SELECT grp, sequence FROM pending WHERE state = 2").fetchall()
        for group, sequence in rows:
            self._lose(group, sequence, now_ms)
        run("COMMIT")

    def keep(self, events: tuple[Event, ...], now_ms: int) -> list[Published]:
        """Keep events. Raises StoreFull."""
        run = self.connection.execute
        bodies = [self._encode(event) for event in events]
        self._check_room(events, sum(map(len, bodies)) + EVENT_BYTES * len(bodies), now_ms)
        published, added = [], 0
        for event, body in zip(events, bodies, strict=True):
            known = run(_KNOWN, (event.source, event.id)).fetchone()
            if known is None:
                size = len(body) + EVENT_BYTES
                row = (event.topic, event.source, event.id, event.partition_key, now_ms, size, body)
                place = run(_KEEP, row).lastrowid or 0
                added += size
            else:
                place = known[0]
            published.append(Published(event.id, sequence_text(place), known is not None))
        self.add_bytes(added)
        return published

    def _check_room(self, events: tuple[Event, ...], size: int, now_ms: int) -> None:
        over = self.bytes_kept() + size - self.terms.keep_bytes
        self.is_crowded = over > -self.terms.keep_bytes // 8
        if over <= 0:
            return
        known = [event for event in events if self.connection.execute(_KNOWN, (event.source, event.id)).fetchone()]
        over -= sum(len(self._encode(event)) + EVENT_BYTES for event in known)
        if over <= 0 or len(known) == len(events) or self.free(over) >= over:
            return
        behind = self.connection.execute("SELECT name, topic FROM grp ORDER BY position LIMIT 1").fetchone()
        raise full(self.terms, f"{behind[0]} ({behind[1]})" if behind else "")

    def join(self, group: str, topic: str, starts_at_oldest: bool) -> int:
        """Return the number of a group. Raises StoreFull where there are too many."""
        return self.join_at(group, topic, (lambda: 0) if starts_at_oldest else self.last_place)

    def last_place(self) -> int:
        """Return the last place that was given."""
        return int(self.connection.execute(LATEST).fetchone()[0])

    def join_at(self, group: str, topic: str, begins: Callable[[], int]) -> int:
        """The same; `begins` returns behind which place a new one begins, and may raise what speaks against it."""
        run = self.connection.execute
        row = run("SELECT number FROM grp WHERE name = ? AND topic = ?", (group, topic)).fetchone()
        if row is not None:
            return int(row[0])
        if run("SELECT count(*) FROM grp").fetchone()[0] >= self.terms.groups_max:
            raise StoreFull(f"the bus remembers {self.terms.groups_max} groups, and takes no more")
        made = run("INSERT INTO grp (name, topic, position) VALUES (?, ?, ?)", (group, topic, begins()))
        return made.lastrowid or 0

    def hand_out(self, group: int, ends_ms: tuple[int, ...], now_ms: int) -> tuple[list[Delivery], int | None, bool]:
        """Begin attempts that end at `ends_ms`; say when the next thing is due, and whether there is more to see."""
        run = self.connection.execute
        if run(_DUE, (group,)).fetchone()[0] <= now_ms:
            self._fall_due(group, now_ms)
        deliveries: list[Delivery] = []
        for sequence, attempt, is_marked, _ in run(_READY, (group, len(ends_ms))).fetchall():
            event = self.event(sequence)
            if event is None:
                self._bury(group, sequence, DAMAGED, now_ms)
                continue
            run(_BEGIN, (ends_ms[len(deliveries)], attempt + 1, sequence, group))
            deliveries.append(Attempt(sequence, attempt + 1).handed(event, is_marked=bool(is_marked)))
        is_more = len(deliveries) < len(ends_ms) and self._scan(group, ends_ms, deliveries, now_ms)
        due_ms = run(_DUE, (group,)).fetchone()[0]
        return deliveries, None if due_ms > 8e18 else due_ms, is_more

    def _scan(self, group: int, ends_ms: tuple[int, ...], deliveries: list[Delivery], now_ms: int) -> bool:
        run = self.connection.execute
        began, topic = run("SELECT position, topic FROM grp WHERE number = ?", (group,)).fetchone()
        position, seen, is_for = began, 0, self.matcher(topic)
        rows = run(SCAN, (began, SCAN_MAX))
        for sequence, event_topic, key in rows:
            if is_for(event_topic):
                if len(deliveries) == len(ends_ms):
                    rows.close()
                    break
                if key and run(_IS_HELD, (group, key)).fetchone():
                    run(_PENDING, (sequence, group, key, BLOCKED, 0, 0, 0, 0))
                else:
                    end_ms = ends_ms[len(deliveries)]
                    run(_PENDING, (sequence, group, key, OUT, end_ms, 1, 0, 0))
                    event = self.event(sequence)
                    if event is None:
                        self._bury(group, sequence, DAMAGED, now_ms)
                    else:
                        deliveries.append(Delivery(event, 1, False, sequence))
            position = sequence
            seen += 1
        if position != began:
            run("UPDATE grp SET position = ? WHERE number = ?", (position, group))
        return seen == SCAN_MAX

    def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, wait_ms: int | None, reason: str, now_ms: int
    ) -> Settled:
        """End an attempt, as `Subscription.settle` says."""
        run = self.connection.execute
        row = run(_ROW, (attempt.place, group)).fetchone()
        if row is None:
            return Settled(counted=False)
        key, state, number, _, is_done = row
        if verdict in AGAIN and state == WAITING and number == deferred(attempt.number):
            number += verdict is Verdict.RETRY
        elif state != OUT or number != attempt.number:
            if verdict is not Verdict.SUCCESS:
                return Settled(counted=False)
            if state == OUT:
                # Somebody else is at it: the next of its key waits until that has ended, however it ends.
                run("UPDATE pending SET is_done = 1 WHERE sequence = ? AND grp = ?", (attempt.place, group))
                return Settled(counted=not is_done)
            return Settled(counted=True, is_freed=self.finish(group, attempt.place, key))
        elif is_done or verdict not in AGAIN:
            if verdict is Verdict.DROP and not is_done:
                run("UPDATE grp SET dropped = dropped + 1 WHERE number = ?", (group,))
            return Settled(counted=not is_done, is_freed=self.finish(group, attempt.place, key))
        elif verdict is Verdict.DEFER:
            number = deferred(attempt.number)
        wait_ms = int(self.terms.retry_s(ordinal(attempt.number)) * 1000) if wait_ms is None else wait_ms
        run(
            "UPDATE pending SET state = 3, due_ms = ?, wait_ms = ?, attempt = ? WHERE sequence = ? AND grp = ?",
            (now_ms + wait_ms, wait_ms, number, attempt.place, group),
        )
        if verdict is Verdict.RETRY and ordinal(attempt.number) >= self.terms.attempts_max:
            return Settled(counted=True, is_freed=self._bury(group, attempt.place, reason, now_ms))
        return Settled(counted=True, due_s=(now_ms + wait_ms) / 1000)

    def give_back(self, group: int, attempts: tuple[Attempt, ...], is_unseen: bool, now_ms: int) -> None:
        """End attempts of which nothing will be heard."""
        run = self.connection.execute
        for place, number in attempts:
            row = run(_ROW, (place, group)).fetchone()
            if row is None or row[1] != OUT or row[2] != number:
                continue
            if is_unseen and not row[4]:
                run(
                    "UPDATE pending SET state = 0, due_ms = 0, attempt = ? WHERE sequence = ? AND grp = ?",
                    (number - 1, place, group),
                )
            else:
                self._lose(group, place, now_ms)

    def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters, as the bus's."""
        found = self.connection.execute(
            "SELECT dead.number, grp.topic, sequence, dead.topic, attempts, reason, died_ms, body FROM dead "
            "JOIN grp ON grp.number = dead.grp WHERE grp.name = ? AND dead.number > ? ORDER BY dead.number LIMIT ?",
            (group, after, limit),
        )
        return [
            DeadLetter(
                id, group, pattern, self._read(body, place) or Event(topic, ""), ordinal(last), reason, ms / 1000
            )
            for id, pattern, place, topic, last, reason, ms, body in found
        ]

    def redrive(self, group: str, ids: tuple[int, ...], now_ms: int, *, goes_on: bool = True) -> list[int]:
        """Take dead letters back into their group; return its number for each. Attempts have numbers of their own,
        unless they are not to go on."""
        run, groups = self.connection.execute, []
        for number in ids:
            row = run(
                "SELECT grp, sequence, dead.topic, key, attempts, is_marked, at_ms, bytes, body FROM dead "
                "JOIN grp ON grp.number = dead.grp WHERE dead.number = ? AND grp.name = ?",
                (number, group),
            ).fetchone()
            if row is None:
                continue
            one, sequence, topic, key, attempts, is_marked, at_ms, size, body = row
            kept = run("SELECT bytes FROM event WHERE sequence = ? AND body IS NOT NULL", (sequence,)).fetchone()
            if kept is None:
                # Back for this group alone. Its id may be another's by now; the one within its body is what it was.
                values = (sequence, topic, "", f"redriven {sequence}", key, at_ms, size, body)
                run(
                    "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1) "
                    "ON CONFLICT (sequence) DO UPDATE SET body = excluded.body, bytes = excluded.bytes, is_back = 1",
                    values,
                )
                self.look_again(sequence)
            state = BLOCKED if run(_IS_LED, (one, key)).fetchone() else READY
            run(_PENDING, (sequence, one, key, state, 0, redriven(attempts) if goes_on else 0, is_marked, now_ms))
            run("DELETE FROM dead WHERE number = ?", (number,))
            self.add_bytes(0 if kept is None else -size)
            groups.append(one)
        return groups

    def positions(self) -> list[Position]:
        """Return how far each group has come."""
        return [
            Position(name, topic, sequence_text(position), *counts)
            for name, topic, position, *counts in self.connection.execute(
                "SELECT name, topic, position, "
                "(SELECT count(*) FROM pending WHERE grp = number AND state = 2), "
                "(SELECT count(*) FROM pending WHERE grp = number AND state <> 2), "
                "(SELECT count(*) FROM dead WHERE grp = grp.number), dropped, expired FROM grp ORDER BY name, topic"
            )
        ]

    def _fall_due(self, group: int, now_ms: int) -> None:
        run = self.connection.execute
        run("UPDATE pending SET state = 0, due_ms = 0 WHERE grp = ? AND state = 3 AND due_ms <= ?", (group, now_ms))
        late = run("SELECT sequence FROM pending WHERE grp = ? AND state = 2 AND due_ms <= ?", (group, now_ms))
        for (sequence,) in late.fetchall():
            self._lose(group, sequence, now_ms)

    def _lose(self, group: int, sequence: int, now_ms: int) -> None:
        """End an attempt whose end nobody knows."""
        run = self.connection.execute
        key, _, attempt, _, is_done = run(_ROW, (sequence, group)).fetchone()
        run("UPDATE pending SET is_marked = 1, state = 0, due_ms = 0 WHERE sequence = ? AND grp = ?", (sequence, group))
        if is_done:
            self.finish(group, sequence, key)
        elif ordinal(attempt) >= self.terms.attempts_max:
            self._bury(group, sequence, UNHEARD, now_ms)

    def finish(self, group: int, sequence: int, key: str) -> bool:
        """Be done with an event; return whether another can be handed out now."""
        run = self.connection.execute
        run("DELETE FROM pending WHERE sequence = ? AND grp = ?", (sequence, group))
        if not key or run(_IS_LED, (group, key)).fetchone():
            return False
        row = run(_NEXT_OF_KEY, (group, key)).fetchone()
        if row is None:
            return False
        run("UPDATE pending SET state = 0, due_ms = 0 WHERE sequence = ? AND grp = ?", (row[0], group))
        return True

    def _bury(self, group: int, sequence: int, reason: str, now_ms: int) -> bool:
        """Make a dead letter of an event; return whether another can be handed out now."""
        run = self.connection.execute
        key, _, attempt, is_marked, _ = run(_ROW, (sequence, group)).fetchone()
        topic, at_ms, size, body = run(
            "SELECT topic, at_ms, bytes, body FROM event WHERE sequence = ?", (sequence,)
        ).fetchone()
        letter = run(
            "INSERT INTO dead (grp, sequence, topic, key, attempts, is_marked, reason, at_ms, died_ms, bytes, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (group, sequence, topic, key, attempt, is_marked, reason, at_ms, now_ms, size, body),
        ).lastrowid
        self.add_bytes(size)
        name, pattern = run("SELECT name, topic FROM grp WHERE number = ?", (group,)).fetchone()
        if reason is UNHEARD:
            self.unheard.append(Unheard(name, letter or 0))
        log.warning("event %d is a dead letter of the group %s (%s)", sequence, name, pattern)
        return self.finish(group, sequence, key)

    def event(self, sequence: int) -> Event | None:
        row = self.connection.execute("SELECT body FROM event WHERE sequence = ?", (sequence,)).fetchone()
        return self._read(row[0], sequence) if row is not None else None

    def _read(self, body: Any, sequence: int) -> Event | None:
        try:
            return msgspec.structs.replace(self._decode(body), sequence=sequence_text(sequence))
        except (msgspec.MsgspecError, TypeError):
            return None
