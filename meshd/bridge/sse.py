"""A channel to an MCP server of 2024-11-05: a stream of events on which it speaks, and an address to POST to.

The stream's first event names that address. It must be of the stream's own origin: a server may not send its clients'
messages, and the keys that go with them, elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp

from meshd.bridge.contract import Ended
from meshd.outcome import Fault
from meshd.wire.sse import EventTooLarge, Splitter, data_of, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.bridge.contract import Host, Listening
    from meshd.call import Headers
    from meshd.upstream import Upstream

EVENT_BYTES_MAX: Final = 16 * 2**20
WAITING_BYTES_MAX: Final = 64 * 2**20
"""Of messages that have not been taken yet. One is always taken."""
ENDPOINT_CHARACTERS_MAX: Final = 2048
POSTS_MAX: Final = 8
"""Messages of one session on their way at once. They arrive in any order, as the transport has it."""
PATH: Final = "/sse"
"""Where the stream is, where the upstream's url has no path."""
SENT_S: Final = 60.0
"""How long a server may take to accept a message; its answer comes on the stream."""
_UNSENT: Final = frozenset(
    {b"accept", b"content-type", b"content-length", b"mcp-session-id", b"last-event-id", b"origin"}
)
_ENDPOINT: Final = re.compile(r"[!-~]+\Z")


class SseChannel:
    """See the module, and `meshd.bridge.contract.Channel`."""

    def __init__(self, host: Host, upstream: Upstream, listening: Listening) -> None:
        self._host = host
        self._upstream = upstream
        self._url = upstream.url if upstream.base_path else upstream.url + PATH
        self._listening: Listening | None = listening
        self._endpoint = ""
        self._waiting_bytes = 0
        self._is_open = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._may_post = asyncio.Semaphore(POSTS_MAX)
        self._http: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._posting: set[asyncio.Task[None]] = set()

    def start(self, headers: Headers) -> None:
        """See `Channel.start`."""
        self._reading = self._host.loop.create_task(self._read(headers))
        self._host.endings.add(self._reading)
        self._reading.add_done_callback(self._host.endings.discard)

    def send(self, message: bytes, headers: Headers, failed: Callable[[Fault, str], None]) -> bool:
        """See `Channel.send`."""
        if self._waiting_bytes and self._waiting_bytes + len(message) > WAITING_BYTES_MAX:
            return False
        self._waiting_bytes += len(message)
        task = self._host.loop.create_task(self._post(message, headers, failed))
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)
        return True

    def pause(self) -> None:
        """See `Channel.pause`."""
        self._may_read.clear()

    def resume(self) -> None:
        """See `Channel.resume`."""
        self._may_read.set()

    def fail(self, fault: Fault, message: str) -> None:
        """See `Channel.fail`."""
        self._tell(fault, message)
        self.end()

    def end(self) -> None:
        """See `Channel.end`."""
        self._listening = None
        self._may_read.set()
        if self._reading is not None:
            self._reading.cancel()
        for task in tuple(self._posting):
            task.cancel()

    def expire(self) -> None:
        """Its own timeouts are asyncio's."""

    # ------------------------------------------------------------------ the stream

    async def _read(self, headers: Headers) -> None:
        upstream = self._upstream
        timeout = aiohttp.ClientTimeout(total=None, connect=upstream.connect_timeout_s)
        try:
            # No cookies: they would be one client's, sent for another.
            async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
                await self._stream(self._fields(headers, accept="text/event-stream"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._tell(Fault.CONNECT, f"({upstream.host}:{upstream.port}) takes no connection: {error}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._tell(Fault.RESET, f"broke its stream of events off: {error or type(error).__name__}")
        except EventTooLarge:
            self._tell(Fault.GARBAGE, f"sent an event of more than {EVENT_BYTES_MAX >> 20} MB")
        except ValueError as error:
            self._tell(Fault.GARBAGE, str(error))
        finally:
            for task in tuple(self._posting):
                task.cancel()

    async def _stream(self, fields: dict[str, str]) -> None:
        loop, upstream = self._host.loop, self._upstream
        ends_s = loop.time() + upstream.connect_timeout_s
        async with self._http.get(
            self._url, headers=fields, allow_redirects=False, ssl=self._host.ssl_context() or True
        ) as reply:
            if reply.status != 200:
                raise ValueError(f"answered {reply.status} where its stream of events should be ({self._url})")
            if reply.content_type != "text/event-stream":
                raise ValueError(f"has no stream of events at {self._url}, but {reply.content_type}")
            splitter = Splitter(EVENT_BYTES_MAX)
            while True:
                within_s = None if self._endpoint else max(ends_s - loop.time(), 0.0)
                async with asyncio.timeout(within_s):
                    data = await reply.content.readany()
                if not data:
                    raise aiohttp.ClientError("it ended")
                for event in splitter.feed(data):
                    self._event(event)
                    if not self._may_read.is_set():
                        await self._may_read.wait()

    def _event(self, event: bytes) -> None:
        name = name_of(event) or b"message"
        listening = self._listening
        if name == b"endpoint" and not self._endpoint:
            self._endpoint = self._endpoint_of(data_of(event).decode("utf-8", "replace").strip())
            self._is_open.set()
        elif name == b"message" and listening is not None:
            data = data_of(event)
            if data:
                self._host.run(lambda: listening.received(data))

    def _endpoint_of(self, said: str) -> str:
        """Return the address to POST to. Raises ValueError where it is not of the stream's origin."""
        if not _ENDPOINT.match(said) or len(said) > ENDPOINT_CHARACTERS_MAX or "\\" in said:
            raise ValueError("names no usable address to send messages to")
        url = urljoin(self._url, said)
        parts, own = urlsplit(url), urlsplit(self._url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        origin = (own.scheme, own.hostname, self._upstream.port)
        if (parts.scheme, parts.hostname, port) != origin or "@" in parts.netloc:
            raise ValueError(
                f"wants its messages sent to another origin ({parts.scheme}://{parts.netloc}): they are not"
            )
        return url

    # ------------------------------------------------------------------ messages

    async def _post(self, message: bytes, headers: Headers, failed: Callable[[Fault, str], None]) -> None:
        name = self._upstream.name
        try:
            async with self._may_post:
                await self._is_open.wait()
                fields = self._fields(headers, accept="application/json, text/event-stream")
                fields["content-type"] = "application/json"
                async with (
                    asyncio.timeout(SENT_S),
                    self._http.post(
                        self._endpoint,
                        data=message,
                        headers=fields,
                        allow_redirects=False,
                        ssl=self._host.ssl_context() or True,
                    ) as reply,
                ):
                    status = reply.status
            if not 200 <= status < 300:
                self._host.run(lambda: failed(Fault.RESET, f"{name} did not take the message: it answered {status}"))
        except TimeoutError:
            self._host.run(
                lambda: failed(Fault.FIRST_BYTE_TIMEOUT, f"{name} did not take the message within {SENT_S:g} s")
            )
        except (aiohttp.ClientError, OSError) as error:
            text = f"{name} did not take the message: {error}"
            self._host.run(lambda: failed(Fault.RESET, text))
        finally:
            self._waiting_bytes -= len(message)

    def _fields(self, headers: Headers, *, accept: str) -> dict[str, str]:
        fields = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name not in _UNSENT and not name.startswith(b"mcp-")
        }
        return fields | {"accept": accept, "accept-encoding": "identity"}

    def _tell(self, fault: Fault, message: str) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            self._host.run(lambda: listening.ended(Ended(fault, message)))
