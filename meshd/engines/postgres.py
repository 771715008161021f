"""PostgreSQL as a store: one table, one connection, and group commit.

What is asked for while a group is under way makes the next one: its reads are one statement, its changes another, so
a hundred writers share one round trip and one sync. Watching is LISTEN on a connection of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from meshd.engines import postgres_schema as sql
from meshd.engines import postgres_server as server
from meshd.engines.link import Link, answered_within, in_doubt
from meshd.engines.port import (
    NUMBER_MAX,
    Ability,
    Record,
    StoreClosed,
    StoreError,
    StoreUnable,
    below_zero,
    damaged_number,
)
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S
from meshd.engines.watchers import MISSED, Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Change
    from meshd.engines.postgres_server import Session
    from meshd.engines.url import StoreUrl

GROUP_MAX: Final = 512
"""Changes in one transaction."""
TOLD_MAX: Final = 64
"""Changes of a group that are told key by key; more are told as "look again"."""
NAME_BYTES_MAX: Final = 2000
"""Of a space and a key together: an index entry takes 2704 bytes at most."""


class _Job:
    """A read, a scan, a word to those who listen, or changes and takes."""

    __slots__ = ("future", "kind", "rows")

    def __init__(self, kind: str, rows: list[tuple[Any, ...]]) -> None:
        self.kind = kind
        self.rows = rows
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class PostgresStore:
    """Records in one database. All of it belongs to the loop on which it was opened."""

    name = "postgres"

    def __init__(self, url: StoreUrl) -> None:
        """Use `open`."""
        server.check(url)
        self._url = url
        self._where = server.place(url)
        self._schema = server.schema(url)
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        self._connect_timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
        self.abilities = frozenset({Ability.SHARED})
        self.caution = ""
        self._channel = f"meshd:{self._schema}"
        self._link = Link(self._where, self._dial, timeout_s=self._connect_timeout_s, restored=self._is_back)
        ear = f"the watch on {self._where}"
        self._ear = Link(ear, self._dial_ear, timeout_s=self._connect_timeout_s, restored=self._missed)
        self._ear_is_open = False
        self._ear_lock = asyncio.Lock()
        self._pinging: asyncio.Task[None] | None = None
        self._watchers = Watchers()
        self._jobs: list[_Job] = []
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False

    @classmethod
    async def open(cls, url: StoreUrl) -> PostgresStore:
        """Connect, make the tables where there are none, and look at what the server promises. Raises StoreError."""
        store = cls(url)
        try:
            await store._link.open()
        except BaseException:
            await store.close()
            raise
        return store

    # The port.

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        rows = [(_text(space), _text(key)) for key in keys]
        found: dict[tuple[str, str], Record] = await self._ask("read", rows) if rows else {}
        return {key: found[space, key] for key in keys if (space, key) in found}

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        self._check()
        rows = [self._row(change.space, change.key, change.value, change.expected) for change in changes]
        made: list[bool] = []
        for at in range(0, len(rows), GROUP_MAX):
            made += [answer == 1 for answer in await self._ask("change", rows[at : at + GROUP_MAX])]
        return made

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        amount = max(-NUMBER_MAX, min(NUMBER_MAX, amount))
        row = self._row(space, key, None, None, amount, max(-1, min(NUMBER_MAX, ceiling)))
        (answer,) = await self._ask("change", [row])
        if answer == sql.DAMAGED:
            raise damaged_number(self.name, key)
        if answer == sql.BELOW_ZERO:
            raise below_zero(self.name, key)
        return None if answer == sql.REFUSED else int(answer)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        found: list[str] = await self._ask("keys", [(_text(space), _text(after), max(0, limit))])
        return found

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        self._check()
        async with self._ear_lock:
            if not self._ear_is_open:
                await self._ear.open()
                self._ear_is_open = True
                self._pinging = asyncio.get_running_loop().create_task(self._ping())
        self._ear.current()
        # One channel for all spaces: there is nothing to subscribe to beyond what the connection has.
        return self._watchers.add(space, changed)

    async def close(self) -> None:
        self._is_closed = True
        if self._working is not None:
            await asyncio.wait([self._working])
        if self._pinging is not None:
            self._pinging.cancel()
            await asyncio.gather(self._pinging, return_exceptions=True)
            self._pinging = None
        for link in (self._ear, self._link):
            try:
                await link.current().goodbye(self._timeout_s)
            except StoreError:
                pass
            await link.close()

    # The groups.

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed(f"{self._where} was closed")

    @staticmethod
    def _row(
        space: str, key: str, value: bytes | None, expected: int | None, amount: int | None = None, ceiling: int = 0
    ) -> tuple[Any, ...]:
        if len(_text(space).encode()) + len(_text(key).encode()) > NAME_BYTES_MAX:
            raise StoreUnable(f"a key of {len(key)} characters is too long for the postgres store")
        # A version that no record can have is one, too, where it does not fit.
        if expected is not None and not 0 <= expected < 2**63:
            expected = 2**63 - 1
        return space, key, value, expected, amount, ceiling

    async def _ask(self, kind: str, rows: list[tuple[Any, ...]]) -> Any:
        self._check()
        self._link.current()
        job = _Job(kind, rows)
        self._jobs.append(job)
        if self._working is None or self._working.done():
            self._working = asyncio.get_running_loop().create_task(self._work())
        return await job.future

    async def _work(self) -> None:
        while self._jobs:
            group: list[_Job] = []
            size = 0
            while self._jobs and (not group or size + len(self._jobs[0].rows) <= GROUP_MAX):
                size += len(self._jobs[0].rows)
                group.append(self._jobs.pop(0))
            try:
                session = self._link.current()
            except StoreError as error:
                self._fail(group, error)
                continue
            try:
                async with answered_within(self._timeout_s):
                    await self._run(session.connection, group)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self._fail(group, self._failed(session, error))

    @staticmethod
    def _fail(group: list[_Job], error: StoreError) -> None:
        for job in group:
            if not job.future.done():
                job.future.set_exception(type(error)(str(error)))

    def _failed(self, session: Session, error: Exception) -> StoreError:
        """Return what broke a group. Of its changes nobody knows whether they were made: it is not sent again."""
        if isinstance(error, TimeoutError):
            fault = StoreError(f"{self._where} did not answer within {self._timeout_s:g} s")
        elif isinstance(error, (OSError, asyncpg.InterfaceError)) or not session.is_open:
            fault = StoreError(f"{self._where} closed the connection")
        elif isinstance(error, asyncpg.PostgresError):
            fault = server.told(self._where, error)
            if error.sqlstate in server.RELIABLE:
                return fault
        else:
            fault = StoreError(f"{self._where}: {type(error).__name__}: {error}")
        self._link.lost(session, fault)
        return in_doubt(fault)

    async def _run(self, connection: Any, group: list[_Job]) -> None:
        """Answer a group: what is looked at first, since it need not wait for a sync."""
        reads = [job for job in group if job.kind == "read"]
        if reads:
            rows = list(dict.fromkeys(row for job in reads for row in job.rows))
            spaces, names = zip(*rows, strict=True)
            query = sql.READ.format(schema=self._schema)
            found = await connection.fetch(query, sql.array(spaces), sql.array(names))
            records = {(one["space"], one["key"]): Record(one["version"], one["value"]) for one in found}
            for job in reads:
                _answer(job, records)
        for job in group:
            if job.kind == "keys":
                found = await connection.fetch(sql.KEYS.format(schema=self._schema), *job.rows[0])
                _answer(job, [one["key"] for one in found])
            elif job.kind == "tell":
                await connection.execute("SELECT pg_notify($1, $2)", self._channel, job.rows[0][0])
                _answer(job, None)
        changing = [job for job in group if job.kind == "change"]
        if changing:
            answers = await self._change(connection, [row for job in changing for row in job.rows])
            at = 0
            for job in changing:
                _answer(job, answers[at : at + len(job.rows)])
                at += len(job.rows)

    async def _change(self, connection: Any, rows: list[tuple[Any, ...]]) -> list[int]:
        """Make changes and takes, each on its own. In byte order, but those of one record in the order asked for."""
        order = sorted(range(len(rows)), key=lambda n: (rows[n][0].encode(), rows[n][1].encode()))
        is_each_told = len(rows) <= TOLD_MAX
        told = [f"{len(rows[n][0])}:{rows[n][0]}{rows[n][1] if is_each_told else MISSED}" for n in order]
        columns = [sql.array(rows[n][column] for n in order) for column in range(6)]
        query = sql.CHANGE.format(schema=self._schema)
        found = sql.numbers(await connection.fetchval(query, self._channel, *columns, sql.array(told)))
        answers = [0] * len(rows)
        for n, answer in zip(order, found, strict=True):
            answers[n] = answer
        return answers

    # The connections.

    async def _dial(self) -> Session:
        session = await server.connected(self._url, self._where, self._connect_timeout_s)
        try:
            promise = await server.looked_at(session.connection, self._where)
            await server.prepare(session.connection, self._schema, self._where)
        except BaseException as error:
            session.abort(StoreError(f"{self._where} cannot be used"))
            if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError)):
                raise server.told(self._where, error) from None
            raise
        self.caution = promise.caution
        self.abilities = frozenset({Ability.SHARED, Ability.DURABLE} if promise.is_durable else {Ability.SHARED})
        self._tell_when_gone(session, self._link)
        return session

    async def _dial_ear(self) -> Session:
        session = await server.connected(self._url, self._ear.where, self._connect_timeout_s)
        try:
            await self._listen(session.connection)
        except BaseException as error:
            session.abort(StoreError(f"{self._where} cannot be watched"))
            if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError)):
                raise server.told(self._where, error) from None
            raise
        self._tell_when_gone(session, self._ear)
        return session

    async def _listen(self, connection: Any) -> None:
        """Listen, and see that a word said over our other connection arrives: behind a pooler it may not."""
        proof = f"proof:{secrets.token_hex(8)}"
        is_heard = asyncio.Event()

        def heard(_connection: object, _pid: int, _channel: str, payload: str) -> None:
            if payload == proof:
                is_heard.set()
            else:
                self._heard(payload)

        await connection.add_listener(self._channel, heard)
        await self._ask("tell", [(proof,)])
        try:
            async with answered_within(self._timeout_s):
                await is_heard.wait()
        except TimeoutError:
            raise StoreUnable(
                f"{self._where} does not pass notifications on: a pooler in transaction mode stands between; name the "
                "server itself"
            ) from None

    def _tell_when_gone(self, session: Session, link: Link[Session]) -> None:
        gone = StoreError(f"{link.where} closed the connection")
        session.connection.add_termination_listener(lambda _: link.lost(session, gone))

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(server.PING_EVERY_S)
            try:
                session = self._ear.current()
            except StoreError:
                continue
            try:
                async with answered_within(self._timeout_s):
                    await session.connection.execute("SELECT 1")
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._ear.lost(session, StoreError(f"{self._ear.where} did not answer within {self._timeout_s:g} s"))

    def _heard(self, payload: str) -> None:
        length, separator, rest = payload.partition(":")
        if separator and length.isascii() and length.isdigit():
            at = int(length)
            self._watchers.tell(rest[:at], (rest[at:],))

    def _is_back(self) -> None:
        self._ear.hurry()

    def _missed(self) -> None:
        self._link.hurry()
        self._watchers.tell_all_missed()


def _answer(job: _Job, answer: object) -> None:
    if not job.future.done():
        job.future.set_result(answer)


def _text(text: str) -> str:
    """Return a text that PostgreSQL can hold. Raises StoreUnable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreUnable("a key of a store is text, which half a surrogate pair is not") from None
    if "\0" in text:
        raise StoreUnable("a key in the postgres store has no NUL character")
    return text
