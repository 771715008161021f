"""What the log of a bus on RabbitMQ says, carried out: the embedded bus's tables in a file that is thrown away.

Every sidecar reads the same entries in the same order and so has the same tables, as long as what an entry does depends
on nothing but the entry and the tables: no clock, no chance, no memory of this process. Each function runs on the
file's thread, in one transaction with the offset up to which the log has been read.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines.bus_rabbitmq_entry import (
    FORMAT,
    TYPE,
    TYPES,
    Applied,
    Claim,
    Command,
    Copied,
    Entry,
    GiveBack,
    Gone,
    Group,
    HandOut,
    Hello,
    Join,
    Keep,
    Letters,
    Message,
    Numbers,
    Outcome,
    Positions,
    Redrive,
    Revive,
    Settle,
    Trim,
    decode,
)
from meshd.engines.bus_shelf import Attempt, HandedOut, Settled
from meshd.engines.bus_sqlite_replay import ReplayingShelf
from meshd.engines.bus_sqlite_shelf import APPLICATION_ID, LATEST, SCHEMA
from meshd.engines.bus_sqlite_shelf import FORMAT as TABLES
from meshd.engines.port import StoreCorrupt, StoreError, StoreFull, StoreNewer
from meshd.engines.sqlite_file import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_terms import Terms

log = logging.getLogger("meshd")

LOGGED_MAX: Final = 3 * 2**30
"""Beyond so much of the log since the last copy, only verdicts are taken: what is needed must not be cut off."""
SET_BACK_MS: Final = 1000
"""A time that is so much earlier than the last one was a clock's that was set back, and not two sidecars' at once."""
_REPLICA = """
CREATE TABLE IF NOT EXISTS sidecar (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holding (
    sequence INTEGER NOT NULL, grp INTEGER NOT NULL, attempt INTEGER NOT NULL, sidecar TEXT NOT NULL,
    PRIMARY KEY (sequence, grp)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS word (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('offset', 0), ('now_ms', 0), ('swept', 0), ('freed', 0), ('logged', 0);
"""
FORM: Final = Format(APPLICATION_ID, SCHEMA, TABLES.tables + _REPLICA, "UPDATE counter SET value = value")
_REFUSED: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What SQLite says of a command, and not of this machine: the same to every sidecar."""
_DUE = "SELECT min(due_ms) FROM pending WHERE grp = ? AND state IN (2, 3)"
_HELD = (
    "SELECT 1 FROM holding JOIN pending USING (sequence, grp, attempt) JOIN grp ON number = holding.grp "
    "WHERE sequence = ? AND attempt = ? AND sidecar = ? AND name = ? AND topic = ? AND state = 2 AND NOT is_done"
)
_COUNT = "UPDATE counter SET value = ? WHERE name = ?"


class LogGone(StoreError):
    """The log does not go on where it was read up to."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the log of the bus begins anew, at {offset}")


def digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


class Replica(ReplayingShelf):
    """The tables, as far as the log has been read."""

    def __init__(self, terms: Terms, sidecar: str) -> None:
        super().__init__(terms)
        self._sidecar = sidecar
        self._own_terms = terms
        self.offset = self.logged = self.held_bytes = self.latest = 0
        self.log_id = ""

    def begin(self, connection: sqlite3.Connection) -> None:
        """Take over the tables, which are empty or a copy."""
        self.connection = connection
        connection.execute("PRAGMA synchronous = OFF")
        self.look()

    def look(self) -> None:
        """Take what is remembered beside the tables from them: they were opened, or a transaction was rolled back."""
        found = dict(self.connection.execute("SELECT name, value FROM counter"))
        self.offset, self._now_ms, self.logged = found["offset"], found["now_ms"], found["logged"]
        self._saved = self._swept, self._freed = found["swept"], found["freed"]
        words = dict(self.connection.execute("SELECT name, value FROM word"))
        self._last = words.get("last", "")
        self.log_id = words.get("log", "")
        if "numbers" in words:
            self._take(msgspec.json.decode(words["numbers"], type=Numbers))

    def apply(self, messages: Sequence[Message], watched: frozenset[Group], is_first: bool) -> Applied:
        """Carry out what comes next in the log.

        `watched`: groups whose subscribers are here. `is_first`: it is the first that a connection brings.
        """
        touched: set[Group] = set()
        problem = self._check_first(messages[0]) if is_first and messages else None
        applied = Applied([], set(), set(), {}, problem, [])
        for message in messages if problem is None else ():
            if message.offset < self.offset:
                continue
            entry = self._entry(message)
            if isinstance(entry, StoreError):
                applied = applied._replace(problem=entry)
                break
            if entry is not None:
                self._carry_out(entry, applied, touched)
            self.offset = message.offset + 1
            self.logged += len(message.body)
            self._last = digest(message.body)
        run = self.connection.execute
        self._say("last", self._last)
        run(_COUNT, (self.offset, "offset"))
        run(_COUNT, (self._now_ms, "now_ms"))
        run(_COUNT, (self.logged, "logged"))
        self.held_bytes, self.latest = self.bytes_kept(), run(LATEST).fetchone()[0]
        for group in watched & touched:
            due_ms = run(_DUE, (self._number(group),)).fetchone()[0]
            if due_ms is not None:
                applied.dues[group] = due_ms
        return applied

    def _check_first(self, message: Message) -> LogGone | None:
        """Say where the log does not go on from here: it was made anew, or has lost what was not read yet.

        It is read again from the last message that was.
        """
        if self.offset == 0:
            return LogGone(message.offset) if message.offset > 0 else None
        if message.offset == self.offset - 1 and digest(message.body) == self._last:
            return None
        return LogGone(message.offset)

    def _entry(self, message: Message) -> Entry | StoreError | None:
        """Return an entry; None for what another program put there."""
        if message.type in TYPES:
            try:
                return decode(message.body)
            except (msgspec.MsgspecError, RecursionError):
                pass
        elif message.type.startswith(TYPE) and message.type[len(TYPE) :].isdigit():
            return StoreNewer(
                f"the log was written by a newer meshd (format {message.type[len(TYPE) :]}, this one knows {FORMAT}); "
                "run that version"
            )
        log.warning("the message at offset %d of the bus's log is another program's: passed over", message.offset)
        return None

    def _carry_out(self, entry: Entry, applied: Applied, touched: set[Group]) -> None:
        run, is_own = self.connection.execute, entry.sidecar == self._sidecar
        self._pass(entry.at_ms)
        row = run("SELECT epoch FROM sidecar WHERE name = ?", (entry.sidecar,)).fetchone()
        is_new = bool(entry.commands) and isinstance(entry.commands[0], Hello) and entry.epoch > (row[0] if row else 0)
        if not is_new and (row is None or row[0] != entry.epoch):
            if is_own:
                applied.outcomes.append(Outcome(entry.epoch, entry.number, is_void=True, results=[]))
            return
        results: list[Any] = []
        for command in entry.commands:
            run("SAVEPOINT command")
            before = self._swept, self._freed
            try:
                results.append(self._do(command, entry, applied, touched))
            except (StoreError, TypeError, ValueError, OverflowError, *_REFUSED) as error:
                run("ROLLBACK TO command")
                self._swept, self._freed = before
                told = error if isinstance(error, StoreError) else None
                results.append(told or StoreCorrupt(f"a command that is none stands in the log: {error}"))
            run("RELEASE command")
        if self._saved != (self._swept, self._freed):
            self._saved = self._swept, self._freed
            run(_COUNT, (self._swept, "swept"))
            run(_COUNT, (self._freed, "freed"))
        if is_own:
            applied.unheard.extend(self.unheard)
            applied.outcomes.append(Outcome(entry.epoch, entry.number, is_void=False, results=results))
        self.unheard.clear()

    def _pass(self, at_ms: int) -> None:
        """Let it be the time of an entry. Sidecars' clocks differ a little: it does not go back for that."""
        if at_ms < self._now_ms - SET_BACK_MS:
            run = self.connection.execute
            run("UPDATE pending SET due_ms = min(due_ms, ? + wait_ms) WHERE state = 3", (at_ms,))
            if (run("SELECT at_ms FROM event ORDER BY sequence DESC LIMIT 1").fetchone() or (0,))[0] > at_ms:
                run("UPDATE event SET at_ms = ? WHERE at_ms > ?", (at_ms, at_ms))
                run("UPDATE pending SET since_ms = ? WHERE since_ms > ?", (at_ms, at_ms))
            self._now_ms = at_ms
        self._now_ms = max(self._now_ms, at_ms)

    def _do(self, command: Command, entry: Entry, applied: Applied, touched: set[Group]) -> Any:
        match command:
            case Keep(events):
                if self.logged > LOGGED_MAX:
                    raise StoreFull(
                        "the bus's log is as long as it may be, and no sidecar has made a copy of its state"
                    )
                published = self.keep(tuple(events), self._now_ms)
                applied.topics.update(
                    event.topic for event, one in zip(events, published, strict=True) if not one.is_duplicate
                )
                return published
            case HandOut(group, handling_ms):
                touched.add(group)
                return self._begin(group, handling_ms, entry.sidecar)
            case Settle(group):
                touched.add(group)
                settled = self._end(command)
                if settled.is_freed:
                    applied.freed.add(group)
                return settled
            case GiveBack(group, attempts, is_unseen):
                self._return(group, attempts, is_unseen)
                applied.freed.add(group)
                return None
            case Redrive(name, ids) | Revive(name, ids):
                goes_on = isinstance(command, Revive)
                numbers = self.redrive(name, tuple(ids), self._now_ms, goes_on=goes_on)
                groups = [self._named(number) for number in numbers]
                applied.freed.update(groups)
                return groups
            case Hello(numbers, floor):
                return self._welcome(entry, numbers, floor)
            case Gone(sidecar, epoch):
                applied.freed.update(self._part(sidecar, epoch))
                return None
        return self._ask(command, entry, applied)

    def _ask(self, command: Command, entry: Entry, applied: Applied) -> Any:
        run = self.connection.execute
        match command:
            case Join(group, starts_at_oldest, at_ms, after):
                if at_ms is not None or after is not None:
                    return self.join_from(group.name, group.topic, at_ms, after or 0)
                return self.join(group.name, group.topic, starts_at_oldest)
            case Letters(name, after, limit):
                return self.dead_letters(name, after, limit)
            case Positions():
                return self.positions()
            case Trim():
                is_more = self.trim(self._now_ms)
                run(
                    "DELETE FROM holding WHERE NOT EXISTS (SELECT 1 FROM pending WHERE "
                    "pending.sequence = holding.sequence AND pending.grp = holding.grp)"
                )
                for name, topic in run("SELECT name, topic FROM grp"):
                    applied.freed.add(Group(name, topic))
                return is_more
            case Claim(name):
                return self._claim(name, entry)
            case Copied(name, _, logged):
                self.logged -= logged
                older = self._word("copy before")
                self._say("copy before", self._word("copy"))
                self._say("copy", name)
                self._say("claim", "")
                return older
        raise TypeError(type(command).__name__)

    def _begin(self, group: Group, handling_ms: list[int], sidecar: str) -> HandedOut:
        number = self._number(group)
        ends_ms = tuple(self._now_ms + one for one in handling_ms)
        deliveries, due_ms, is_more = self.hand_out(number, ends_ms, self._now_ms)
        self.connection.executemany(
            "INSERT OR REPLACE INTO holding VALUES (?, ?, ?, ?)",
            [(one.place, number, Attempt.of(one).number, sidecar) for one in deliveries],
        )
        return HandedOut(deliveries, None if due_ms is None else due_ms / 1000, is_more)

    def _end(self, command: Settle) -> Settled:
        number, attempt = self._number(command.group), Attempt(command.place, command.attempt)
        self._let_go(number, attempt)
        return self.settle(number, attempt, command.verdict, command.wait_ms, command.reason, self._now_ms)

    def _return(self, group: Group, attempts: Sequence[tuple[int, int]], is_unseen: bool) -> None:
        number = self._number(group)
        several = tuple(Attempt(*one) for one in attempts)
        for one in several:
            self._let_go(number, one)
        self.give_back(number, several, is_unseen, self._now_ms)

    def is_held(self, group: Group, attempt: Attempt) -> bool:
        """Say whether an attempt is this sidecar's, as far as the log has been read."""
        found = self.connection.execute(_HELD, (*attempt, self._sidecar, group.name, group.topic))
        return found.fetchone() is not None

    def _let_go(self, group: int, attempt: Attempt) -> None:
        self.connection.execute(
            "DELETE FROM holding WHERE sequence = ? AND grp = ? AND attempt = ?", (attempt.place, group, attempt.number)
        )

    def _welcome(self, entry: Entry, numbers: Numbers, floor: int) -> None:
        run = self.connection.execute
        if floor > run(LATEST).fetchone()[0]:
            run("DELETE FROM sqlite_sequence WHERE name = 'event'")
            run("INSERT INTO sqlite_sequence VALUES ('event', ?)", (floor,))
        self._take(numbers)
        self._say("numbers", msgspec.json.encode(numbers).decode())
        run("INSERT OR REPLACE INTO sidecar VALUES (?, ?)", (entry.sidecar, entry.epoch))
        if not self.log_id:
            # The first that came gives the log a name.
            self.log_id = f"{entry.sidecar}/{entry.epoch}"
            self._say("log", self.log_id)

    def _take(self, numbers: Numbers) -> None:
        self.terms = self._own_terms._replace(
            keep_s=numbers.keep_ms / 1000,
            keep_bytes=numbers.keep_bytes,
            repeat_s=numbers.repeat_ms / 1000,
            dead_keep_s=numbers.dead_keep_ms / 1000,
            attempts_max=numbers.attempts_max,
            groups_max=numbers.groups_max,
        )

    def _part(self, sidecar: str, epoch: int) -> list[Group]:
        """Give back what a sidecar had; return the groups of it."""
        run = self.connection.execute
        if run("DELETE FROM sidecar WHERE name = ? AND epoch = ?", (sidecar, epoch)).rowcount == 0:
            return []
        rows = run("SELECT grp, sequence, attempt FROM holding WHERE sidecar = ?", (sidecar,)).fetchall()
        by_group: dict[int, list[tuple[int, int]]] = {}
        for number, place, attempt in sorted(rows):
            by_group.setdefault(number, []).append((place, attempt))
        groups = {number: self._named(number) for number in by_group}
        for number, attempts in by_group.items():
            self._return(groups[number], attempts, is_unseen=False)
        return list(groups.values())

    def _claim(self, name: str, entry: Entry) -> str | None:
        """Return None where another makes a copy, else the queue of one that was begun and not ended, or nothing."""
        claimed, _, who = self._word("claim").partition(" ")
        if claimed and claimed != name:
            sidecar, _, epoch = who.partition("/")
            if epoch.isdigit() and self.is_known(sidecar, int(epoch)):
                return None
        self._say("claim", f"{name} {entry.sidecar}/{entry.epoch}")
        return claimed

    def _word(self, name: str) -> str:
        row = self.connection.execute("SELECT value FROM word WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def _say(self, name: str, value: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO word VALUES (?, ?)", (name, value))

    def is_known(self, sidecar: str, epoch: int) -> bool:
        """Say whether it is the last thing that is known of a sidecar that it had a connection of this epoch."""
        row = self.connection.execute("SELECT epoch FROM sidecar WHERE name = ?", (sidecar,)).fetchone()
        return row is not None and row[0] == epoch

    def _number(self, group: Group) -> int:
        # A group that is not there was in another log, which is gone: it begins with the oldest that there is.
        return self.join(group.name, group.topic, starts_at_oldest=True)

    def _named(self, number: int) -> Group:
        return Group(*self.connection.execute("SELECT name, topic FROM grp WHERE number = ?", (number,)).fetchone())
