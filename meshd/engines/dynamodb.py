"""DynamoDB as a store: one table, each change a conditional write of one item.

    space   S{space}     partition key; what S and K stand before keeps names from being empty
    key     K{key}       sort key, in byte order
    v       the version: microseconds of unix time, or one more than the version before, whichever is more
    d       the value; of a deleted record `gone` stands in its place, for a day, so that its next version is higher
    until   when DynamoDB may remove what stands for a deleted record

Nothing here is sent twice but what DynamoDB says it has not done. Watching is polling: the index by_version tells what
has changed in a space since a little while ago. (Streams would tell the same a second earlier, for a shard to be
followed by every sidecar.)
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from meshd.engines import dynamodb_server as server
from meshd.engines.port import Ability, Record, StoreClosed, StoreCorrupt, StoreError, StoreUnable, sum_of
from meshd.engines.watchers import MISSED, Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Change
    from meshd.engines.url import StoreUrl

VALUE_BYTES_MAX: Final = 400_000
"""Of one record: an item has at most 400 kB (409,600 bytes), its names included."""
BATCH_MAX: Final = 100
"""Records of one read."""
TRIES_MAX: Final = 100
GONE_S: Final = 86_400
"""For how long a deleted record is remembered. After that its next version is higher by the clock alone."""
BEHIND_US: Final = 5_000_000
"""How far the clocks of sidecars may differ, and the index lag behind, for a watch to hear of every key."""
LOOK_AGAIN_S: Final = 30.0
"""How often a watch is told to look again, whatever it heard."""


class _Turn:
    """Who takes from one number in this process goes one after the other: they would only come between each other."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class DynamoStore:
    """Records in one table. All of it belongs to the loop on which it was opened."""

    name = "dynamodb"

    def __init__(self, url: StoreUrl) -> None:
        """Use `open`."""
        server.check(url)
        self._url = url
        self._table = url.path.strip("/")
        self._where = f"the dynamodb store {self._table} in {url.host}"
        self._poll_s = url.seconds("poll", server.POLL_S)
        self.abilities = frozenset({Ability.SHARED, Ability.DURABLE})
        self.caution = ""
        self._exits = AsyncExitStack()
        self._client: Any = None
        self._last = 0
        self._watchers = Watchers()
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @classmethod
    async def open(cls, url: StoreUrl) -> DynamoStore:
        """Reach the table, and make it where there is none. Raises StoreError or one of its kinds."""
        store = cls(url)
        try:
            store._client = await server.connected(url, store._exits)
            store.caution = await server.table_made(store._client, store._table, store._where)
        except (ClientError, BotoCoreError) as error:
            await store.close()
            raise server.told(store._where, error) from None
        except BaseException:
            await store.close()
            raise
        return store

    # The port.

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        wanted = list(dict.fromkeys(keys))
        for at in range(0, len(wanted), BATCH_MAX):
            left: Any = {self._table: {"Keys": [_at(space, key) for key in wanted[at : at + BATCH_MAX]]}}
            left[self._table]["ConsistentRead"] = True
            tries = 0
            while left:
                answer = await self._ask("batch_get_item", RequestItems=left)
                for item in answer["Responses"].get(self._table, ()):
                    if (record := self._record(item)) is not None:
                        found[item["key"]["S"][1:]] = record
                left = answer.get("UnprocessedKeys")
                if left:
                    tries += 1
                    await self._pause(tries)
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        for change in changes:
            _at(change.space, change.key)  # before anything is sent: a key may be no text
        # Each is awaited before the next is sent: where one fails, those after it must not have been made.
        return [await self._write(change) for change in changes]

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        turn = self._turns.setdefault((space, key), _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                return await self._take(space, key, amount, ceiling)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop((space, key), None)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        found: list[str] = []
        start: Any = None
        while len(found) < limit:
            more = {} if start is None else {"ExclusiveStartKey": start}
            answer = await self._ask(
                "query",
                TableName=self._table,
                ConsistentRead=True,
                KeyConditionExpression="#s = :s AND #k > :k",
                FilterExpression="attribute_exists(d)",
                ProjectionExpression="#k",
                ExpressionAttributeNames={"#s": "space", "#k": "key"},
                ExpressionAttributeValues={":s": {"S": _text("S" + space)}, ":k": {"S": _text("K" + after)}},
                **more,
            )
            found += [item["key"]["S"][1:] for item in answer["Items"]]
            start = answer.get("LastEvaluatedKey")
            if not start:
                break
        return found[: max(0, limit)]

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        self._check()
        since_us = self._now_us() - BEHIND_US
        await self._changes(space, since_us)  # it can be asked
        remove = self._watchers.add(space, changed)
        if space not in self._polls:
            self._polls[space] = asyncio.get_running_loop().create_task(self._poll(space, since_us))

        def end() -> None:
            remove()
            if space not in self._watchers.spaces and (poll := self._polls.pop(space, None)) is not None:
                poll.cancel()

        return end

    async def close(self) -> None:
        self._is_closed = True
        await self._idle.wait()
        polls, self._polls = list(self._polls.values()), {}
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        await self._exits.aclose()

    # One record.

    async def _write(self, change: Change) -> bool:
        space, key, value, expected = change
        if value is not None and len(value) > VALUE_BYTES_MAX:
            raise StoreUnable(
                f"a record of {len(value)} bytes is too long for {self._where}, which takes {VALUE_BYTES_MAX}"
            )
        if value is None and expected == 0:
            return not await self.read(space, (key,))
        floor = 0
        for attempt in range(TRIES_MAX):
            if attempt > 1:
                await self._pause(attempt)
            there = await self._put(space, key, value, expected, self._next(max(floor, (expected or 0) + 1)))
            if there is None:
                return True
            version, is_live = there
            if expected:
                return False
            if expected == 0 and is_live:
                return False
            if value is None and not is_live:
                return True
            floor = version + 1  # another clock is ahead of this one
        raise server.Busy(f"{self._where} is busy: others changed the same record {TRIES_MAX} times meanwhile")

    async def _put(
        self, space: str, key: str, value: bytes | None, expected: int | None, version: int
    ) -> tuple[int, bool] | None:
        """Write where that may be; return what stands there instead: its version, and whether it is a record."""
        values: dict[str, Any] = {":v": {"N": str(version)}}
        if value is not None:
            update = "SET d = :d, v = :v REMOVE gone, #u"
            values[":d"] = {"B": value}
            condition = "attribute_not_exists(v) OR v < :v"
            if expected == 0:
                condition = "attribute_not_exists(v) OR (attribute_not_exists(d) AND v < :v)"
        else:
            update = "SET gone = :g, #u = :u, v = :v REMOVE d"
            values |= {":g": {"BOOL": True}, ":u": {"N": str(int(time.time()) + GONE_S)}}
            condition = "attribute_exists(d) AND v < :v"
        if expected:
            condition = "attribute_exists(d) AND v = :n"
            values[":n"] = {"N": str(expected)}
        try:
            await self._ask(
                "update_item",
                TableName=self._table,
                Key=_at(space, key),
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames={"#u": "until"},
                ExpressionAttributeValues=values,
                ReturnValuesOnConditionCheckFailure="ALL_OLD" if not expected else "NONE",
            )
        except _Unmet as unmet:
            item = unmet.item or {}
            return (int(item["v"]["N"]) if "v" in item else 0), "d" in item
        return None

    async def _take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        for attempt in range(TRIES_MAX):
            record = (await self.read(space, (key,))).get(key)
            total = sum_of(self.name, key, None if record is None else record.value, amount, ceiling)
            if total is None:
                return None
            expected = 0 if record is None else record.version
            there = await self._put(space, key, b"%d" % total, expected, self._next(expected + 1))
            if there is None:
                return total
            if not there[1]:
                self._last = max(self._last, there[0])
            await self._pause(attempt)
        raise server.Busy(f"{self._where} is busy: others changed the same record {TRIES_MAX} times meanwhile")

    def _record(self, item: dict[str, Any]) -> Record | None:
        if "gone" in item and "d" not in item:
            return None
        try:
            return Record(int(item["v"]["N"]), bytes(item["d"]["B"]))
        except (KeyError, ValueError, TypeError):
            raise StoreCorrupt(
                f"what stands under {item['key']['S'][1:]} in {self._where} is not a record of meshd"
            ) from None

    def _next(self, floor: int) -> int:
        self._last = max(self._now_us(), self._last + 1, floor)
        return self._last

    @staticmethod
    def _now_us() -> int:
        return time.time_ns() // 1000

    @staticmethod
    async def _pause(attempt: int) -> None:
        await asyncio.sleep(random.random() * min(0.2, 0.001 * 2 ** min(attempt, 10)))  # noqa: S311 - it is no secret

    # What has changed.

    async def _poll(self, space: str, since_us: int) -> None:
        told: dict[tuple[str, int], None] = {}
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                now_us = self._now_us()
                changes = await self._changes(space, since_us)
            except StoreError:
                looked_s = 0.0  # some may have been missed
                continue
            self._watchers.tell(space, [key for key, version in changes if (key, version) not in told])
            told = dict.fromkeys(changes)
            since_us = now_us - BEHIND_US
            if loop.time() - looked_s > LOOK_AGAIN_S:
                looked_s = loop.time()
                self._watchers.tell(space, (MISSED,))

    async def _changes(self, space: str, since_us: int) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        start: Any = None
        while True:
            more = {} if start is None else {"ExclusiveStartKey": start}
            answer = await self._ask(
                "query",
                TableName=self._table,
                IndexName=server.INDEX,
                KeyConditionExpression="#s = :s AND v > :v",
                ExpressionAttributeNames={"#s": "space"},
                ExpressionAttributeValues={":s": {"S": _text("S" + space)}, ":v": {"N": str(since_us)}},
                **more,
            )
            found += [(item["key"]["S"][1:], int(item["v"]["N"])) for item in answer["Items"]]
            start = answer.get("LastEvaluatedKey")
            if not start:
                return found

    # Asking.

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed(f"{self._where} was closed")

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Ask once; where DynamoDB says that it is busy, and so did nothing, again. Raises StoreError, _Unmet."""
        self._check()
        self._under_way += 1
        self._idle.clear()
        try:
            for attempt in range(4):
                try:
                    return await getattr(self._client, method)(**arguments)
                except ClientError as error:
                    if server.code(error) == server.CONDITION:
                        raise _Unmet(error.response.get("Item")) from None
                    told = server.told(self._where, error)
                    if attempt == 3 or not isinstance(told, server.Busy):
                        raise told from None
                except (BotoCoreError, OSError, TimeoutError) as error:
                    raise server.told(self._where, error) from None
                await self._pause(attempt + 5)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        raise AssertionError("unreachable")


class _Unmet(Exception):
    """The condition of a write was not met."""

    def __init__(self, item: dict[str, Any] | None) -> None:
        super().__init__()
        self.item = item


def _at(space: str, key: str) -> dict[str, Any]:
    return {"space": {"S": _text("S" + space)}, "key": {"S": _text("K" + key)}}


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreUnable("a key of a store is text, which half a surrogate pair is not") from None
    return text
