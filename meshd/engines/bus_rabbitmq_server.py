"""The RabbitMQ behind a bus: what is connected to, what is declared there, and what its refusals mean.

A sidecar has two connections. A server that is short of memory or disk stops reading from those that publish, and what
is heard of the log and acknowledged must go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiormq import exceptions as told_by
from aiormq.connection import Connection, TransportFactory
from pamqp.commands import Basic
from yarl import URL

from meshd.engines.bus_rabbitmq_entry import FORMAT, TYPE
from meshd.engines.bus_terms import SteadyClock
from meshd.engines.port import StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from meshd.engines.bus_terms import Timer
    from meshd.engines.url import StoreUrl

    T = TypeVar("T")

# It says on every failure what is said here in an operator's words.
_log = logging.getLogger("meshd.store")
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

PORT: Final = 5672
PORT_TLS: Final = 5671
HEARTBEAT_S: Final = 10
UNACKNOWLEDGED_MAX: Final = 1000
"""How much of the log the server sends ahead of what was read."""
SEGMENT_BYTES: Final = 64 * 2**20
COPIES_BYTES: Final = 2**20
WILL_KEPT_MS: Final = 3_600_000
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check(url: StoreUrl) -> None:
    """Refuse what an AMQP URL cannot say. Raises StoreUnable."""
    url.allow({"prefix"}, "bus")
    if not url.host:
        raise StoreUnable(f"a RabbitMQ is named by its host: {url.scheme}://127.0.0.1:{PORT}")
    if _PREFIX.fullmatch(prefix(url)) is None:
        raise StoreUnable("prefix= is 1 to 64 letters, digits, -, _ and dots")
    if url.scheme != "amqps" and {"ca", "cert", "key"} & set(url.options):
        raise StoreUnable("ca=, cert= and key= are for amqps://")
    if "cert" in url.options and "key" not in url.options:
        raise StoreUnable("cert= needs key=")
    if len(virtual_host(url)) > 127:
        raise StoreUnable("the name of the virtual host is longer than 127 characters")


def prefix(url: StoreUrl) -> str:
    """Return how the names of the bus's queues begin."""
    return url.options.get("prefix", "meshd")


def port(url: StoreUrl) -> int:
    return url.port or (PORT_TLS if url.scheme == "amqps" else PORT)


def virtual_host(url: StoreUrl) -> str:
    return url.path.removeprefix("/") or "/"


class _Transport(TransportFactory):
    """Opens the socket, and keeps it so that it can be let go of at once."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = self._url.tls() if self._url.scheme == "amqps" else None
        reader, self.writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
        return reader, self.writer


class Wire:
    """One connection."""

    def __init__(self, url: StoreUrl, where: str) -> None:
        self._where = where
        self._transport = _Transport(url)
        address = URL.build(
            scheme=url.scheme,
            user=url.user or "guest",
            password=url.secret() or ("guest" if url.user is None else ""),
            host=url.host,
            port=port(url),
            path="/",
            query={"heartbeat": str(HEARTBEAT_S), "name": "meshd"},
        )
        self.connection = Connection(address, transport_factory=self._transport)
        self.connection.vhost = virtual_host(url)

    async def open(self, lost: Callable[[StoreError], None]) -> None:
        """Connect and sign in. Raises StoreError, OSError."""
        await asked(self._where, self.connection.connect())
        self.connection.closing.add_done_callback(lambda future: lost(ended(self._where, future)))

    async def channel(self) -> AbstractChannel:
        return await asked(self._where, self.connection.channel(publisher_confirms=False))

    @property
    def is_open(self) -> bool:
        return self.connection.is_opened

    @property
    def is_blocked(self) -> bool:
        """The server takes nothing that is published: it is short of memory or disk."""
        waits = self.connection.ready()
        try:
            waits.send(None)
        except StopIteration:
            return False
        waits.close()
        return True

    async def close(self) -> None:
        """Take leave, as far as the server answers."""
        try:
            async with asyncio.timeout(1.0):
                await self.connection.close()
        except Exception as error:  # noqa: BLE001 - it is let go of whatever comes
            _log.debug("no leave was taken of %s: %s", self._where, error)
        self.abort()

    def abort(self) -> None:
        if self._transport.writer is not None:
            self._transport.writer.transport.abort()


async def asked(where: str, answer: Awaitable[T]) -> T:
    """Return an answer. Raises StoreError for what the server refuses; OSError and TimeoutError go on to the link."""
    try:
        return await answer
    except (told_by.AMQPError, told_by.ChannelInvalidStateError) as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise cause from None
        raise told(where, error) from error
    except (RuntimeError, ValueError, EOFError) as error:
        raise StoreError(f"{where} does not answer as a RabbitMQ does: {error}") from error


def told(where: str, error: Exception) -> StoreError:
    """Say in an operator's words what a server said."""
    text = str(getattr(error, "args", ("",))[-1] or error)[:300]
    if isinstance(error, told_by.AuthenticationError | told_by.ProbableAuthenticationError):
        return StoreUnable(f"{where} refuses this user and password")
    if isinstance(error, told_by.ChannelPreconditionFailed):
        return StoreUnable(
            f"{where} has a queue of one of the bus's names that is another's: {text}. "
            "Name another prefix (prefix=), or delete that queue"
        )
    if isinstance(error, told_by.ChannelAccessRefused):
        return StoreUnable(f"{where} does not permit what a bus needs (configure, write and read): {text}")
    # aiormq does not look into the close that comes in place of the answer.
    if isinstance(error, told_by.ConnectionNotAllowed) or "Connection.OpenOk" in text:
        return StoreUnable(f"{where}: there is no such virtual host, or it is not this user's")
    return StoreError(f"{where} broke the connection off: {text}")


def body_properties(name: str = "") -> Basic.Properties:
    """Return the properties of what the bus publishes."""
    kind = f"{TYPE}{FORMAT}"
    return Basic.Properties(
        content_type="application/msgpack", delivery_mode=2, message_type=kind, message_id=name or "m"
    )


class Names:
    """How the queues of a bus are called."""

    def __init__(self, url: StoreUrl) -> None:
        self.prefix = prefix(url)
        self.log = f"{self.prefix}.log"
        self.gone = f"{self.prefix}.gone"
        self.copies = f"{self.prefix}.copies"

    def will(self, sidecar: str, epoch: int) -> str:
        return f"{self.prefix}.will.{sidecar}.{epoch}"

    def copy(self, name: str) -> str:
        return f"{self.prefix}.copy.{name}"


def stream(bytes_max: int, segment_bytes: int = SEGMENT_BYTES) -> dict[str, Any]:
    """Return the arguments of a queue that is a stream."""
    return {
        "x-queue-type": "stream",
        "x-max-length-bytes": bytes_max,
        "x-stream-max-segment-size-bytes": segment_bytes,
    }


class Sizes(NamedTuple):
    """How much of the log is kept."""

    log_bytes: int = 4 * 2**30
    segment_bytes: int = SEGMENT_BYTES
    copy_bytes: int = 64 * 2**20
    """After so much, or twice what the bus holds, the next copy of the state is made."""


async def declare(where: str, channel: AbstractChannel, names: Names, sizes: Sizes) -> None:
    """Make what the bus needs, where it is not there. Raises StoreError."""
    arguments = stream(sizes.log_bytes, sizes.segment_bytes)
    await asked(where, channel.queue_declare(names.log, durable=True, arguments=arguments))
    await asked(where, channel.queue_declare(names.gone, durable=True))


async def leave_will(where: str, hearing: AbstractChannel, sending: AbstractChannel, names: Names, will: str) -> None:
    """Leave word of this connection's end.

    A message of a queue in which nothing may lie for any time is held unacknowledged: it comes back to the queue with
    the end of the connection, however that comes, and is passed on at that moment to where other sidecars hear it.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": 0,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": names.gone,
        "x-expires": WILL_KEPT_MS,
    }
    await asked(where, hearing.queue_declare(will, durable=True, arguments=arguments))
    held = asyncio.get_running_loop().create_future()

    async def hold(message: DeliveredMessage) -> None:
        if not held.done():
            held.set_result(message)

    await asked(where, hearing.basic_consume(will, hold))
    await asked(where, sending.basic_publish(b"", routing_key=will, properties=body_properties(will)))
    await held


async def server_time_s(where: str, hearing: AbstractChannel, sending: AbstractChannel) -> float:
    """Return the server's time, to a second: it writes it on what it passes on because its time is over."""
    answer = (await asked(where, hearing.queue_declare("", exclusive=True))).queue or ""
    arguments: dict[str, Any] = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": answer}
    over = (await asked(where, hearing.queue_declare("", exclusive=True, arguments=arguments))).queue or ""
    found: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def look(message: DeliveredMessage) -> None:
        deaths: Any = (message.header.properties.headers or {}).get("x-death")
        if not found.done():
            found.set_result(deaths[0]["time"].timestamp())

    consumer = (await asked(where, hearing.basic_consume(answer, look, no_ack=True))).consumer_tag or ""
    await asked(where, sending.basic_publish(b"", routing_key=over, properties=body_properties()))
    time_s = await found
    await asked(where, hearing.basic_cancel(consumer))
    for queue in (over, answer):
        await asked(where, hearing.queue_delete(queue))
    return time_s


def ended(where: str, future: asyncio.Future[Any]) -> StoreError:
    """Say why a connection or channel ended."""
    error = None if future.cancelled() else future.exception()
    if isinstance(error, told_by.AMQPError):
        return told(where, error)
    return StoreError(f"{where} closed the connection")


class ServerClock:
    """A clock (`meshd.engines.bus_terms.Clock`) that is right where the machine's own is as good as the server's.

    The server says its time to a second.
    """

    __slots__ = ("_ahead_s", "_steady")

    def __init__(self) -> None:
        self._steady = SteadyClock()
        self._ahead_s = 0.0

    def set(self, server_s: float) -> None:
        ahead_s = server_s + 0.5 - self._steady.now_s()
        self._ahead_s = ahead_s if abs(ahead_s) > 2.0 else 0.0

    def now_s(self) -> float:
        return self._steady.now_s() + self._ahead_s

    def wall_ns(self) -> int:
        return self._steady.wall_ns()

    def at(self, when_s: float, call: Callable[[], None]) -> Timer:
        return self._steady.at(when_s - self._ahead_s, call)


def tag_of(delivered: DeliveredMessage) -> int:
    """Return what a message is acknowledged by."""
    return getattr(delivered.delivery, "delivery_tag", None) or 0


def offset_of(delivered: DeliveredMessage) -> int:
    """Return where a message stands in its stream."""
    offset = (delivered.header.properties.headers or {}).get("x-stream-offset")
    return offset if isinstance(offset, int) else 0
