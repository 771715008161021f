"""The journal of one group on NATS: its entries are taken in, in order, and one is written where the last is known.

Whoever writes has a draft of the rows (meshd.engines.bus_nats_rows), and nothing is taken in while there is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.engines.bus_nats_rows import FORMAT, Entry, Rows
from meshd.engines.link import answered_within
from meshd.engines.nats_consumer import Consumer
from meshd.engines.port import StoreCorrupt, StoreError, StoreNewer, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_terms import Clock, Terms
    from meshd.engines.nats_consumer import Numbers
    from meshd.engines.nats_server import Ack
    from meshd.engines.nats_wire import Message, Wire

JOURNAL_BYTES: Final = 256 * 1024
"""A journal this much longer than what it says is written anew as a whole."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Packed(NamedTuple):
    """An entry as it is written."""

    data: bytes
    headers: bytes
    is_whole: bool


class Journal:
    """See the module. `changed` is called after another sidecar's entry was taken in."""

    def __init__(
        self, streams: Streams, group: str, topic: str, terms: Terms, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.rows = Rows(group, topic, terms)
        """With the draft, where there is one."""
        self.subject = streams.journal(group, topic)
        self._streams = streams
        self._clock = clock
        self._changed = changed
        self._applied = 0
        """The last entry that was taken in."""
        self._bytes = 0
        """Of the journal, and of its last whole entry."""
        self._whole_bytes = 0
        self._heard: deque[tuple[int, bytes]] = deque()
        self._working: asyncio.Future[None] | None = None
        """There may be a draft; done once there is none."""
        self._feed: Consumer | None = None
        self._news: asyncio.Event | None = None
        """For whoever waits for an entry."""
        self._opening = asyncio.Lock()
        self._wrong: StoreError | None = None

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    async def catch_up(self) -> bool:
        """Take in what there is by now; return whether there is such a group at all. Raises StoreError."""
        async with self._opening:
            last = await self._streams.get(self._streams.groups, last_by_subj=self.subject)
            if last is None:
                return False
            await self._listen()
            await self._wait_for(last.seq)
            return True

    async def make(self, position: int) -> None:
        """Begin its journal, where there is none. Raises StoreError."""
        entry = Entry(FORMAT, self.rows.group, self.rows.topic, True, self._now_ms(), position, 0, 0, {}, {})
        await self._streams.put(self._streams.groups, self.subject, _encode(entry), b"", expected=0)

    def tell(self) -> None:
        """Say that something was changed that whoever waits may want."""
        self._changed()

    # What is written.

    async def _write(self, now_ms: int) -> int:
        """Write the draft's entry; return 0, or the last one of the journal where that is another than we know."""
        streams = self._streams
        packed = self._packed(now_ms)
        ack = await streams.put(streams.groups, self.subject, packed.data, packed.headers, expected=self._applied)
        if self._is_written(packed, ack):
            return 0
        stored = await streams.get(streams.groups, last_by_subj=self.subject)
        if stored is None:
            raise StoreError(f"the group {self.rows.group} ({self.rows.topic}) was removed")
        return stored.seq

    def _packed(self, now_ms: int) -> Packed:
        """Return the draft's entry as it is written. Raises StoreUnable."""
        streams = self._streams
        is_whole = self._bytes > JOURNAL_BYTES + 2 * self._whole_bytes
        data = _encode(self.rows.entry(now_ms, is_whole=is_whole))
        headers = b"Nats-Rollup: sub\r\n" if is_whole else b""
        if len(data) > streams.room(headers) - 64:
            raise StoreUnable(
                f"the group {self.rows.group} ({self.rows.topic}) has begun with more events than a message of "
                f"{streams.where} can name: raise its max_payload"
            )
        return Packed(data, headers, is_whole)

    def _is_written(self, packed: Packed, ack: Ack) -> bool:
        """Say whether an entry is the journal's last, which we know then; it is not where another came before it."""
        if ack.seq:
            self._note(ack.seq, len(packed.data), is_whole=packed.is_whole)
        return ack.seq > 0

    def _note(self, sequence: int, size: int, *, is_whole: bool) -> None:
        self._applied = sequence
        if is_whole:
            self._whole_bytes = self._bytes = size
        else:
            self._bytes += size

    # What is heard.

    async def _listen(self) -> None:
        """Hear of every entry, over the connection that there is. Raises StoreError."""
        wire = self._streams.wire
        self._check()
        if self._feed is not None and self._feed.wire is wire:
            await self._feed.is_ready
            return
        if self._feed is not None:
            self._feed.stop()
        config = {"filter_subject": self.subject, "deliver_policy": "by_start_sequence"}
        config |= {"opt_start_seq": self._applied + 1}  # type: ignore[dict-item]
        self._feed = feed = Consumer(wire, self._streams.groups, config, self._arrived, self._lost)
        self._heard.clear()
        try:
            await feed.start(self._streams.where)
            last = await self._streams.get(self._streams.groups, last_by_subj=self.subject)
            if last is not None:
                await self._wait_for(last.seq)
        except BaseException:
            feed.stop()
            self._feed = None
            raise

    @property
    def _is_listening(self) -> bool:
        """Every entry is heard of, over the connection that there is, and could be read so far."""
        feed = self._feed
        if feed is None or self._wrong is not None or not feed.wire.is_open or not feed.is_ready.done():
            return False
        return feed.is_ready.exception() is None

    def _lost(self, wire: Wire, why: str) -> None:
        self._streams.lost(wire, StoreError(f"{self._streams.where}: {why}"))

    def _arrived(self, message: Message, told: Numbers | None) -> None:
        if told is None:
            # One is missing: listen anew from where we are.
            if self._feed is not None:
                self._feed.stop()
                self._feed = None
            self._changed()
        else:
            self._heard.append((told.sequence, message.data))
        if self._working is None:
            self._take_in()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set()

    def _take_in(self) -> None:
        """Apply what was heard. There must be no draft."""
        is_other = False
        while self._heard:
            sequence, data = self._heard.popleft()
            if sequence <= self._applied:
                continue
            try:
                entry = _decode(data)
            except msgspec.MsgspecError:
                entry = None
            if entry is None or entry.format > FORMAT:
                kind = StoreCorrupt if entry is None else StoreNewer
                what = "cannot be read" if entry is None else "is a newer meshd's"
                self._wrong = kind(
                    f"entry {sequence} of the journal of the group {self.rows.group} ({self.rows.topic}) in "
                    f"{self._streams.where} {what}"
                )
                return
            self.rows.apply(entry)
            self._note(sequence, len(data), is_whole=entry.is_whole)
            is_other = True
        if is_other:
            self._changed()

    async def _wait_for(self, sequence: int) -> None:
        """Wait until an entry was taken in, whoever does that. Raises StoreError."""
        try:
            async with answered_within(self._streams.timeout_s):
                while True:
                    if not self.rows.is_changed:
                        self._take_in()
                    self._check()
                    if self._applied >= sequence:
                        return
                    self._news = self._news or asyncio.Event()
                    await self._news.wait()
        except TimeoutError:
            raise StoreError(f"{self._streams.where} did not bring a journal in time") from None

    def _check(self) -> None:
        if self._wrong is not None:
            raise type(self._wrong)(*self._wrong.args)
