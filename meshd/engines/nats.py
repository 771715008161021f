"""NATS JetStream as a store: one key-value bucket, in which a record's version is its sequence in the stream.

A change is one message that the server takes only where the last one of its subject is the expected one. Deleting puts
a marker there, as key-value buckets do, so that watchers hear of it; a while later the marker is purged by its own
sequence, which never touches what came after it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.link import Link
from meshd.engines.nats_keys import decoded, encoded
from meshd.engines.nats_watch import Ear
from meshd.engines.port import Ability, Record, StoreClosed, StoreCorrupt, StoreError, StoreUnable, sum_of
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S
from meshd.engines.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.nats_wire import Wire
    from meshd.engines.port import Change
    from meshd.engines.url import StoreUrl

TRIES_MAX: Final = 100
"""Times that a change without an expected version, or a take, is tried while others come between."""
READS_MAX: Final = 256
"""Records asked for at once."""
SCAN_TIMEOUT_S: Final = 10.0
"""How long the server may take to list its subjects: some 100 ms for 100,000."""
MARKER_S: Final = 30.0
"""How long a marker stays: far longer than a watcher needs to hear of it."""


class _Turn:
    """Who takes from one number in this process goes one after the other: they would only come between each other."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class NatsStore:
    """Records in one bucket. All of it belongs to the loop on which it was opened."""

    name = "nats"

    def __init__(self, url: StoreUrl) -> None:
        """Use `open`."""
        server.check(url)
        self._url = url
        self._where = f"the nats store at {url.host}:{url.port or server.PORT}"
        self._bucket = server.bucket(url)
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        self._connect_timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
        self.abilities = frozenset({Ability.SHARED})
        self.caution = ""
        self._watchers = Watchers()
        self._ear = Ear(self._bucket, self._watchers, self._heard_wrong)
        self._link: Link[Wire] = Link(
            self._where, self._dial, timeout_s=self._connect_timeout_s, restored=self._watchers.tell_all_missed
        )
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._markers: deque[tuple[float, str, int]] = deque()
        self._sweeping: asyncio.Task[None] | None = None
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @classmethod
    async def open(cls, url: StoreUrl) -> NatsStore:
        """Connect, make the bucket where there is none, and look at what it promises. Raises StoreError."""
        store = cls(url)
        try:
            await store._link.open()
        except BaseException:
            await store.close()
            raise
        return store

    # The port.

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        subjects = [self._subject(space, key) for key in keys]
        found: dict[str, Record] = {}
        async with self._at_work():
            for at in range(0, len(keys), READS_MAX):
                stored = await asyncio.gather(*(self._last(subject) for subject in subjects[at : at + READS_MAX]))
                for key, one in zip(keys[at : at + READS_MAX], stored, strict=True):
                    if one is not None and not one.is_marker:
                        found[key] = Record(one.seq, one.data)
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        subjects = [self._subject(change.space, change.key) for change in changes]
        made = []
        async with self._at_work():
            # Each is awaited before the next is sent: where one fails, those after it must not have been made.
            for subject, change in zip(subjects, changes, strict=True):
                if change.value is None:
                    made.append(await self._delete(subject, change.expected))
                else:
                    made.append(await self._put(subject, change.value, change.expected))
        return made

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        subject = self._subject(space, key)
        turn = self._turns.setdefault((space, key), _Turn())
        turn.waiting += 1
        try:
            async with self._at_work(), turn.lock:
                return await self._take(subject, key, amount, ceiling)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop((space, key), None)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        found: list[str] = []
        async with self._at_work():
            begin = after.encode(errors="surrogatepass")
            names = sorted(name for name in await self._names(space) if name > begin)
            # A listed subject may hold a marker only: pages are filled with those that hold a record.
            while names and len(found) < limit:
                some, names = names[: min(READS_MAX, limit)], names[min(READS_MAX, limit) :]
                subjects = [self._subject(space, name.decode()) for name in some]
                stored = await asyncio.gather(*(self._last(subject) for subject in subjects))
                for name, subject, one in zip(some, subjects, stored, strict=True):
                    if one is not None and not one.is_marker:
                        found.append(name.decode())
                    elif one is not None and one.age_s > MARKER_S:
                        self._sweep_later(subject, one.seq, 0.0)  # left by one who died before he could
        return found[: max(0, limit)]

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        async with self._at_work():
            remove = self._watchers.add(space, changed)
            try:
                await self._ear.listen(self._link.current(), space)
            except BaseException:
                remove()
                raise

        def end() -> None:
            remove()
            if space not in self._watchers.spaces:
                self._ear.leave(space)

        return end

    async def close(self) -> None:
        self._is_closed = True
        await self._idle.wait()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
            self._sweeping = None
        self._ear.close()
        await self._link.close()

    # One record.

    async def _put(self, subject: str, value: bytes, expected: int | None) -> bool:
        if expected is None:
            await self._sent(subject, value)
            return True
        if await self._sent_after(subject, value, expected):
            return True
        if expected > 0:
            return False
        # Something stands there: a record, or the marker of a deleted one.
        for _ in range(TRIES_MAX):
            last = await self._last(subject)
            if last is not None and not last.is_marker:
                return False
            if await self._sent_after(subject, value, 0 if last is None else last.seq):
                return True
        raise self._busy()

    async def _delete(self, subject: str, expected: int | None) -> bool:
        for attempt in range(TRIES_MAX):
            sequence = expected
            if not expected:
                last = await self._last(subject)
                if last is None or last.is_marker:
                    return True
                if expected == 0:
                    return False
                sequence = last.seq
            assert sequence is not None
            if marker := await self._sent_after(subject, b"", sequence, b"KV-Operation: DEL\r\n"):
                self._sweep_later(subject, marker, MARKER_S)
                return True
            if expected:
                return False
            await self._pause(attempt)
        raise self._busy()

    async def _take(self, subject: str, key: str, amount: int, ceiling: int) -> int | None:
        for attempt in range(TRIES_MAX):
            last = await self._last(subject)
            value = None if last is None or last.is_marker else last.data
            total = sum_of(self.name, key, value, amount, ceiling)
            if total is None:
                return None
            # A failure in this is raised, never tried again: what was sent may have been added.
            if await self._sent_after(subject, b"%d" % total, 0 if last is None else last.seq):
                return total
            await self._pause(attempt)
        raise self._busy()

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(random.random() * min(0.05, 0.001 * 2**attempt))  # noqa: S311 - it is no secret

    def _busy(self) -> StoreError:
        return StoreError(f"{self._where} is busy: others changed the same record {TRIES_MAX} times meanwhile")

    async def _sent_after(self, subject: str, value: bytes, sequence: int, headers: bytes = b"") -> int:
        """Put a message where the subject's last one is `sequence`; return its own sequence, 0 where it was not."""
        headers += b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % sequence
        return await self._sent(subject, value, headers)

    async def _sent(self, subject: str, value: bytes, headers: bytes = b"") -> int:
        wire = self._link.current()
        room = wire.payload_max - len(headers) - 64
        if len(value) > room:
            raise StoreUnable(f"a record of {len(value)} bytes is too long for {self._where}, which takes {room}")
        message = await wire.ask(subject, value, headers)
        if message.status == 503:
            error = StoreError(f"the bucket {self._bucket} of {self._where} is gone, or has no leader")
            self._link.lost(wire, error)
            raise error
        ack = server.decoded(message, server.Ack, self._where)
        if ack.error is None:
            return ack.seq
        if ack.error.err_code == server.WRONG_SEQUENCE:
            return 0
        raise server.told(self._where, ack.error)

    async def _last(self, subject: str) -> server.Stored | None:
        wire = self._link.current()
        # From the stream's leader, not from whichever replica is near: that one may not have heard of the last change.
        message = await wire.ask(
            f"{server.API}STREAM.MSG.GET.KV_{self._bucket}", b'{"last_by_subj":"%b"}' % subject.encode()
        )
        got = server.decoded(message, server.Got, self._where)
        if got.error is None:
            return got.message
        if got.error.err_code == server.NO_MESSAGE:
            return None
        error = server.told(self._where, got.error)
        if got.error.code == 404:
            self._link.lost(wire, error)  # the bucket itself is gone: the next connection makes it anew
        raise error

    # The bucket.

    async def _names(self, space: str) -> list[bytes]:
        """Return the keys of all subjects in a space, those of markers too."""
        prefix = f"$KV.{self._bucket}.{encoded(space)}."
        names: list[bytes] = []
        total = 1
        while len(names) < total:
            request = msgspec.json.encode({"subjects_filter": f"{prefix}>", "offset": len(names)})
            message = await self._link.current().ask(
                f"{server.API}STREAM.INFO.KV_{self._bucket}", request, timeout_s=max(SCAN_TIMEOUT_S, self._timeout_s)
            )
            info = server.decoded(message, server.StreamInfo, self._where)
            if info.error is not None:
                raise server.told(self._where, info.error)
            subjects = info.state.subjects or {}
            for subject in subjects:
                if (name := decoded(subject.removeprefix(prefix))) is None:
                    raise StoreCorrupt(f"what stands under {subject} in {self._where} is not a record of meshd")
                names.append(name.encode())
            total = info.total if subjects else 0
        return names

    def _sweep_later(self, subject: str, sequence: int, delay_s: float) -> None:
        self._markers.append((asyncio.get_running_loop().time() + delay_s, subject, sequence))
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """Purge markers that have stood their time. What fails is left to the next scan."""
        while self._markers:
            due_s, subject, sequence = self._markers.popleft()
            await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
            # Up to the marker: what was put there since has a later sequence, and stays.
            request = msgspec.json.encode({"filter": subject, "seq": sequence + 1})
            try:
                await self._link.current().ask(f"{server.API}STREAM.PURGE.KV_{self._bucket}", request)
            except StoreError:
                pass

    def _subject(self, space: str, key: str) -> str:
        return f"$KV.{self._bucket}.{encoded(space)}.{encoded(key)}"

    # The connection.

    async def _dial(self) -> Wire:
        inbox = f"_INBOX.{secrets.token_hex(12)}"
        wire = await server.connected(self._url, self._where, self._timeout_s, inbox, self._link.lost)
        try:
            promise = await server.bucket_made(wire, self._url, self._where, self._connect_timeout_s)
            for space in self._watchers.spaces:
                await self._ear.listen(wire, space)
        except BaseException:
            wire.abort(StoreError(f"{self._where} cannot be used"))
            raise
        self.caution = promise.caution
        self.abilities = frozenset({Ability.SHARED, Ability.DURABLE} if promise.is_durable else {Ability.SHARED})
        return wire

    def _heard_wrong(self, wire: Wire, why: str) -> None:
        self._link.lost(wire, StoreError(f"{self._where}: {why}"))

    def _at_work(self) -> _Work:
        if self._is_closed:
            raise StoreClosed(f"{self._where} was closed")
        return _Work(self)


class _Work:
    """While one of these is open, closing waits."""

    __slots__ = ("_store",)

    def __init__(self, store: NatsStore) -> None:
        self._store = store

    async def __aenter__(self) -> None:
        self._store._under_way += 1
        self._store._idle.clear()

    async def __aexit__(self, *_: object) -> None:
        self._store._under_way -= 1
        if not self._store._under_way:
            self._store._idle.set()
