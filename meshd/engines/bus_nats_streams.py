"""The three streams of a bus on NATS, and what is asked of them.

`NAME_events` holds events, by topic; `NAME_groups` a journal per group; `NAME_dead` the bodies of dead letters. They
are kept in files, and refuse what is too much rather than to throw away what is old: what goes, goes by our hand.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from meshd.engines import nats_server as server
from meshd.engines.nats_consumer import Made
from meshd.engines.nats_keys import encoded
from meshd.engines.port import StoreError, StoreUnable
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_terms import Terms
    from meshd.engines.link import Link
    from meshd.engines.nats_wire import Message, Wire
    from meshd.engines.url import StoreUrl

OPTIONS: Final = ("stream", "replicas", "synced", "creds", "nkey", "token_file")
SCAN_TIMEOUT_S: Final = 10.0
UNSYNCED: Final = (
    "no client can see how often the server syncs its files: unless its sync_interval is `always`, a crash of its host "
    "loses the last events and verdicts that it acknowledged. Where it is, say so: synced=true"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_HEAD: Final = len(b"NATS/1.0\r\n\r\n")
_EXPECTED: Final = b"Nats-Expected-Last-Subject-Sequence: %d\r\n"

T = TypeVar("T")


class Done(msgspec.Struct):
    """The answer to what only is done or not."""

    error: server.ApiError | None = None


def check(url: StoreUrl) -> None:
    """Refuse what a NATS URL of a bus cannot say. Raises StoreUnable."""
    url.allow(OPTIONS, "bus")
    if not url.host:
        raise StoreUnable(f"the {url.scheme} URL names no host, for example {url.scheme}://127.0.0.1:{server.PORT}")
    if url.path.strip("/"):
        raise StoreUnable("a NATS URL has no path; how the streams' names begin is an option: ?stream=meshd")
    name(url)
    url.is_set("synced")
    url.seconds("timeout", TIMEOUT_S)
    url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
    url.number("replicas", 1, least=1, most=5)


def name(url: StoreUrl) -> str:
    """Return how the names of the streams begin. Raises StoreUnable."""
    text = url.options.get("stream", "meshd")
    if not _NAME.match(text):
        raise StoreUnable(f"stream={text[:40]} is not a name of letters, digits, - and _, up to 64")
    return text


def promise(cautions: list[str], *, is_synced: bool) -> server.Promise:
    """Return what streams promise. `is_synced`: the operator's word."""
    if not cautions and not is_synced:
        cautions = [UNSYNCED]
    return server.Promise(not cautions, "; ".join(cautions))


class Streams:
    """See the module. Methods raise StoreError."""

    def __init__(self, url: StoreUrl, where: str, link: Link[Wire], timeout_s: float) -> None:
        self.where = where
        self.name = name(url)
        self.events = f"{self.name}_events"
        self.groups = f"{self.name}_groups"
        self.dead = f"{self.name}_dead"
        self.topics = f"{self.name}.event."
        self.journals = f"{self.name}.group."
        self.marks = f"{self.name}.marks"
        self.knows_longer = False
        """The server may know an event as the same for longer than the bus does."""
        self._url = url
        self._link = link
        self.timeout_s = timeout_s

    @property
    def wire(self) -> Wire:
        return self._link.current()

    @property
    def is_connected(self) -> bool:
        try:
            return self._link.current().is_open
        except StoreError:
            return False

    def journal(self, group: str, topic: str) -> str:
        """Return the subject of a group's journal."""
        return f"{self.journals}{encoded(group)}.{encoded(topic)}"

    def letters(self, group: str) -> str:
        """Return the subject of a group's dead letters."""
        return f"{self.name}.dead.{encoded(group)}"

    async def api(
        self, call: str, request: object, kind: type[T], *, wire: Wire | None = None, timeout_s: float | None = None
    ) -> T:
        """Ask JetStream; the answer may say that there is an error."""
        data = b"" if request is None else msgspec.json.encode(request)
        message = await (wire or self.wire).ask(f"{server.API}{call}", data, timeout_s=timeout_s)
        return server.decoded(message, kind, self.where)

    async def info(self, stream: str, **request: object) -> server.StreamInfo:
        timeout_s = max(SCAN_TIMEOUT_S, self.timeout_s)
        info = await self.api(f"STREAM.INFO.{stream}", request, server.StreamInfo, timeout_s=timeout_s)
        if info.error is not None:
            raise self.told(info.error)
        return info

    async def get(self, stream: str, **request: object) -> server.Stored | None:
        """Return a message, asked for by its sequence or as the last of a subject."""
        got = await self.api(f"STREAM.MSG.GET.{stream}", request, server.Got)
        if got.error is None:
            return got.message
        if got.error.err_code == server.NO_MESSAGE:
            return None
        raise self.told(got.error)

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove one message; one that is gone is gone."""
        await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True}, Done)

    async def purge(self, stream: str, below: int) -> None:
        """Remove every message below a sequence."""
        if below <= 1:
            return  # there is none, and the server takes 1 for no sequence at all: it would remove everything
        done = await self.api(f"STREAM.PURGE.{stream}", {"seq": below}, Done, timeout_s=SCAN_TIMEOUT_S)
        if done.error is not None:
            raise self.told(done.error)

    def forget(self, stream: str, sequence: int) -> None:
        """Have one message removed, some time soon. What is left where that fails is found when it is too old."""
        request = b'{"seq":%d,"no_erase":true}' % sequence
        try:
            self.wire.ask(f"{server.API}STREAM.MSG.DELETE.{stream}", request)
        except StoreError:
            pass

    def lost(self, wire: Wire, error: StoreError) -> None:
        """Say that a connection is of no use."""
        self._link.lost(wire, error)

    def room(self, headers: bytes) -> int:
        """Return how long a body may be beside these headers."""
        return self.wire.payload_max - len(headers) - _HEAD

    async def put(
        self, stream: str, subject: str, data: bytes, headers: bytes, expected: int | None = None
    ) -> server.Ack:
        """Write a message, where the last one of its subject is the `expected` one."""
        if expected is not None:
            headers += _EXPECTED % expected
        wire = self.wire
        return self.taken(wire, stream, await wire.ask(subject, data, headers))

    def put_at_once(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: bytes,
        expected: int | None,
        tell: Callable[[server.Ack | StoreError], None],
    ) -> None:
        """As `put`; `tell` is called with the answer or the error. Raises StoreError where nothing was sent."""
        if expected is not None:
            headers += _EXPECTED % expected
        wire = self.wire

        def told(answer: Message | StoreError) -> None:
            if isinstance(answer, StoreError):
                tell(answer)
                return
            try:
                ack = self.taken(wire, stream, answer)
            except StoreError as error:
                tell(error)
            else:
                tell(ack)

        wire.ask_at_once(subject, data, headers, told)

    def taken(self, wire: Wire, stream: str, message: Message) -> server.Ack:
        """Read the answer to what was written; its sequence is 0 where another message was expected."""
        if message.status == 503:
            error = StoreError(f"the stream {stream} of {self.where} is gone, or has no leader")
            self._link.lost(wire, error)
            raise error
        ack = server.decoded(message, server.Ack, self.where)
        if ack.error is None:
            return ack
        if ack.error.err_code == server.WRONG_SEQUENCE:
            return server.Ack()
        raise self.told(ack.error)

    def told(self, error: server.ApiError) -> StoreError:
        return server.told(self.where, error)

    async def clock_s(self, wire: Wire) -> float:
        """Return the server's time: of the making of a consumer, which goes away by itself."""
        config = {
            "ack_policy": "none",
            "deliver_policy": "new",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 1_000_000_000,
        }
        request = {"stream_name": self.groups, "config": config}
        made = await self.api(f"CONSUMER.CREATE.{self.groups}", request, Made, wire=wire)
        if made.error is not None:
            raise self.told(made.error)
        try:
            return server.unix_s(made.created) + float("0." + (made.created[20:-1] or "0"))
        except ValueError:
            raise StoreError(f"{self.where} says no time that can be read") from None

    async def make(self, wire: Wire, terms: Terms, timeout_s: float) -> server.Promise:
        """Make the streams where there are none, and look at what they promise."""
        known_s = max(terms.keep_s, terms.repeat_s)
        cautions: list[str] = []
        for stream, subjects, more in (
            (self.events, [f"{self.topics}>"], {"duplicate_window": int(known_s * 1e9)}),
            (self.groups, [f"{self.journals}>", self.marks], {"allow_rollup_hdrs": True}),
            (self.dead, [f"{self.name}.dead.>"], {"duplicate_window": int(terms.repeat_s * 1e9)}),
        ):
            wanted = {
                "name": stream,
                "subjects": subjects,
                "retention": "limits",
                "storage": "file",
                "discard": "new",
                "num_replicas": self._url.number("replicas", 1, least=1, most=5),
                **more,
            }
            config = await server.stream_made(wire, wanted, self.where, timeout_s)
            self._look_at(stream, config, wanted, int(terms.repeat_s * 1e9))
            if stream == self.events and config.duplicate_window > int(known_s * 1e9):
                self.knows_longer = True
            if config.storage != "file":
                cautions.append(f"the stream {stream} is kept in memory: a restart of the server loses it")
        return promise(cautions, is_synced=self._url.is_set("synced"))

    def _look_at(self, stream: str, config: server.Config, wanted: dict[str, Any], least_ns: int) -> None:
        wrong = ""
        if config.subjects != wanted["subjects"] or config.mirror or config.sources or config.retention != "limits":
            wrong = "is no stream of meshd's own"
        elif config.max_age:
            wrong = "forgets by age, whether groups have handled it or not: set its max_age to 0"
        elif config.max_msgs_per_subject > 0:
            wrong = "keeps so many messages of a subject only: set its max_msgs_per_subject to -1"
        elif config.discard != "new" and (config.max_msgs > 0 or config.max_bytes > 0):
            wrong = "throws old messages away when it is full: set its discard to new"
        elif config.deny_delete or config.deny_purge:
            wrong = "lets nothing be removed: it must be made without deny_delete and deny_purge"
        elif "duplicate_window" in wanted and config.duplicate_window < least_ns:
            wrong = (
                f"knows an event as the same for too short a time: set its duplicate_window to {least_ns // 10**9} s"
            )
        elif "allow_rollup_hdrs" in wanted and not config.allow_rollup_hdrs:
            wrong = "allows no roll-up, by which journals stay short: set its allow_rollup_hdrs"
        if wrong:
            raise StoreUnable(f"the stream {stream} of {self.where} {wrong}, or name others: stream=")
