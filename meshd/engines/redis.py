"""Redis as a store: records, their versions and the index of each space change together, in a script.

    PREFIX:record:SPACE:KEY   `m1 VERSION VALUE`
    PREFIX:keys:SPACE         sorted set of the keys, all of score 0: so they lie in byte order
    PREFIX:version            the counter that versions come from
    PREFIX:watch:DB:SPACE     channel on which a changed key is told

A colon within the name of a space is written %3A, so that no two spaces share a key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.engines import redis_server
from meshd.engines.link import Link
from meshd.engines.port import (
    NUMBER_MAX,
    Ability,
    Record,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnable,
    below_zero,
    damaged_number,
)
from meshd.engines.redis_asking import Asking
from meshd.engines.redis_scripts import TAKE, WRITE
from meshd.engines.redis_wire import ReplyError, Wire
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S
from meshd.engines.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Change
    from meshd.engines.url import StoreUrl

BATCH_MAX: Final = 512
"""Changes of one script: nobody else is served while it runs, some 5 us a change."""
LOSS: Final = "a budget's record that is thrown away is granted anew"


class RedisStore:
    """Records in one Redis. All of it belongs to the loop on which it was opened."""

    name = "redis"

    def __init__(self, url: StoreUrl) -> None:
        """Use `open`."""
        redis_server.check(url)
        self._url = url
        self._where = redis_server.place(url)
        self._prefix = url.options.get("prefix", "meshd")
        self._db = redis_server.database(url)
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        connect_timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
        self.abilities = frozenset({Ability.SHARED})
        self.caution = ""
        self._asking = Asking(
            self._where, self._dial, (WRITE, TAKE), connect_timeout_s=connect_timeout_s, restored=self._is_back
        )
        self._link = self._asking.link
        ear = f"the watch on {self._where}"
        self._ear = Link(ear, self._dial_ear, timeout_s=connect_timeout_s, restored=self._missed)
        self._ear_is_open = False
        self._ear_lock = asyncio.Lock()
        self._watchers = Watchers()

    @classmethod
    async def open(cls, url: StoreUrl) -> RedisStore:
        """Connect and look at what the server promises. Raises StoreError or one of its kinds."""
        store = cls(url)
        try:
            await store._link.open()
        except BaseException:
            await store.close()
            raise
        return store

    # The port.

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        self._asking.check()
        stored = [self._record(space, key) for key in keys]
        wire = self._link.current()
        # One command a key: MGET takes what is no string for absent.
        replies = await self._asking.all(*(wire.ask("GET", one) for one in stored))
        found = {}
        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, ReplyError):
                raise self._told(reply, key)
            if reply is not None:
                found[key] = self._unpacked(key, reply)
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        self._asking.check()
        made: list[bool] = []
        batches = [changes[at : at + BATCH_MAX] for at in range(0, len(changes), BATCH_MAX)]
        packed = [self._packed(batch) for batch in batches]  # before anything is sent: a key may be no text
        for batch, (names, arguments) in zip(batches, packed, strict=True):
            reply = await self._run(WRITE, names, arguments, [change.key for change in batch])
            made += [one == 1 for one in reply]
        return made

    def _packed(self, changes: Sequence[Change]) -> tuple[list[bytes], list[bytes]]:
        names, arguments = [f"{self._prefix}:version".encode()], []
        for space, key, value, expected in changes:
            names += [self._record(space, key), self._index(space)]
            arguments += [
                _text(key),
                self._channel(space),
                b"" if expected is None else b"%d" % expected,
                b"" if value is None else b"=" + value,
            ]
        return names, arguments

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        self._asking.check()
        names = [f"{self._prefix}:version".encode(), self._record(space, key), self._index(space)]
        # Beyond what a number may be they change nothing, and the script reckons in halves of nine digits.
        amount = max(-NUMBER_MAX, min(NUMBER_MAX, amount))
        ceiling = max(-1, min(NUMBER_MAX, ceiling))
        arguments = [_text(key), self._channel(space), b"%d" % amount, b"%d" % ceiling]
        reply = await self._run(TAKE, names, arguments, [key])
        return None if reply is None else int(reply)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        self._asking.check()
        ask = self._link.current().ask
        (reply,) = await self._asking.all(
            ask("ZRANGEBYLEX", self._index(space), b"(" + _text(after), "+", "LIMIT", 0, max(0, limit))
        )
        if isinstance(reply, ReplyError):
            raise self._told(reply, f"the index of {space}")
        try:
            return [key.decode() for key in reply]
        except UnicodeDecodeError:
            raise StoreCorrupt(f"a key of {space} in {self._where} is no text") from None

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        self._asking.check()
        channel = self._channel(space)
        async with self._ear_lock:
            if not self._ear_is_open:
                await self._ear.open()
                self._ear_is_open = True
        # Before it is subscribed to, so that a connection that is made anew meanwhile subscribes to it too.
        remove = self._watchers.add(space, changed)
        try:
            await self._asking.all(self._ear.current().ask("SUBSCRIBE", channel))
        except BaseException:
            remove()
            raise

        def end() -> None:
            remove()
            if space not in self._watchers.spaces and self._ear_is_open:
                try:
                    self._ear.current().ask("UNSUBSCRIBE", channel)
                except StoreError:
                    pass  # the next connection does not ask for this space

        return end

    async def close(self) -> None:
        await self._asking.finish()
        await self._ear.close()
        await self._link.close()

    # Below the port.

    async def _run(self, script: str, names: list[bytes], arguments: list[bytes], keys: list[str]) -> Any:
        """Run a script. Raises StoreError; where that came in place of a reply, nobody knows whether it ran."""
        reply = await self._asking.run(script, names, arguments)
        if isinstance(reply, ReplyError):
            raise self._told(reply, *keys)
        return reply

    def _told(self, reply: ReplyError, *keys: str) -> StoreError:
        """Return what a refusal of the server means; where another server may do better, look for it."""
        text = redis_server.words_of(reply)
        kind, _, rest = text.partition(" ")
        if kind == "MESHDBAD":
            return self._foreign(keys[int(rest.split()[0]) - 1])
        if kind == "WRONGTYPE":
            return self._foreign(keys[0] if len(keys) == 1 else "an index or a record")
        if kind == "MESHDCOUNTER":
            return StoreCorrupt(f"{self._where} has lost its counter of versions ({self._prefix}:version)")
        if kind == "MESHDNUMBER":
            return damaged_number(self.name, keys[0])
        if kind == "MESHDNEGATIVE":
            return below_zero(self.name, keys[0])
        if kind == "OOM":
            return StoreFull(f"{self._where} is full: raise its maxmemory, or remove what is not meshd's")
        return self._asking.told(text)

    def _foreign(self, key: str) -> StoreCorrupt:
        return StoreCorrupt(f"what stands under {key} in {self._where} is not a record of meshd")

    def _unpacked(self, key: str, packed: bytes) -> Record:
        mark, _, rest = packed.partition(b" ")
        version, separator, value = rest.partition(b" ")
        if mark != b"m1" or not separator or not version.isdigit():
            raise self._foreign(key)
        return Record(int(version), value)

    def _record(self, space: str, key: str) -> bytes:
        return b"%b:record:%b:%b" % (self._prefix.encode(), _space(space), _text(key))

    def _index(self, space: str) -> bytes:
        return b"%b:keys:%b" % (self._prefix.encode(), _space(space))

    def _channel(self, space: str) -> bytes:
        # Channels are one namespace over all databases of a server.
        return b"%b:watch:%d:%b" % (self._prefix.encode(), self._db, _space(space))

    async def _dial(self) -> Wire:
        wire = await redis_server.connected(self._url, self._where, self._timeout_s, self._link.lost)
        try:
            found = await redis_server.looked_at(wire, self._where, LOSS)
            await self._asking.load(wire)
        except BaseException:
            wire.abort(StoreError(f"{self._where} cannot be used"))
            raise
        self.caution = found.caution
        self.abilities = frozenset({Ability.SHARED, Ability.DURABLE} if found.is_durable else {Ability.SHARED})
        wire.keep_alive()
        return wire

    async def _dial_ear(self) -> Wire:
        wire = await redis_server.connected(self._url, self._ear.where, self._timeout_s, self._ear.lost, self._heard)
        try:
            for space in self._watchers.spaces:
                await redis_server.asked(wire, self._ear.where, "SUBSCRIBE", self._channel(space))
        except BaseException:
            wire.abort(StoreError(f"{self._where} cannot be watched"))
            raise
        wire.keep_alive()
        return wire

    def _heard(self, channel: bytes, key: bytes) -> None:
        space = channel.removeprefix(self._channel("")).decode(errors="replace").replace("%3A", ":").replace("%25", "%")
        self._watchers.tell(space, (key.decode(errors="replace"),))

    def _is_back(self) -> None:
        self._ear.hurry()

    def _missed(self) -> None:
        self._link.hurry()
        self._watchers.tell_all_missed()


def _space(space: str) -> bytes:
    return _text(space.replace("%", "%25").replace(":", "%3A"))


def _text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise StoreUnable("a key of a store is text, which half a surrogate pair is not") from None
