"""Where agents reach the API: one port and one unix socket, on which the first bytes tell what is spoken.

`PRI * HTTP/2.0` is gRPC: the connection is spliced to a grpcio server behind a private socket, which is started with
the first of them. Anything else is HTTP/1.1, answered by aiohttp, which is imported with the first of those. So a
daemon whose agents do not use the API pays for neither of them, nor for protobuf.

Who may come: over TCP whoever is on this machine, for the address is loopback; over the unix socket this user and root.
A page in a browser is kept out by Host and Origin; over HTTP/2 without TLS no browser speaks at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshd.admin.hosts import HostRule
from meshd.admin.late import LateServer
from meshd.api.services import SERVICES, Offer
from meshd.api.socket_file import PATH_BYTES_MAX, SocketFileError, is_alive, listening, mark_of, peer_uid, remove
from meshd.api.splice import End, joined
from meshd.config import Address, cannot_listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web

    from meshd.admin.late import Make
    from meshd.api.grpc_server import GrpcServer
    from meshd.api.json_http import JsonDoor
    from meshd.api.mesh import Mesh
    from meshd.api.services import Service

FIRST_BYTES_S: Final = 10.0
"""How long a connection may take until it is known what is spoken on it."""
IDLE_S: Final = 15.0
"""Of a connection of HTTP/1.1: until its first head, and between two requests."""
CONNECTIONS_MAX: Final = 512
SHUTDOWN_S: Final = 2.0
FILE_NAME: Final = "api.sock"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_GRPC_FILE: Final = "grpc.sock"
_PRIVATE: Final = ".api-"

_log = logging.getLogger("meshd.api")


class DoorError(Exception):
    """The API cannot be served; the message says why, and what to set."""


def require_loopback(address: Address) -> None:
    """Raise DoorError for an address that others than this machine can reach: the API asks for no password."""
    host = address.host.lower()
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise DoorError(
            f"MESHD_API {address}: the API listens on loopback alone, such as 127.0.0.1:7402, since whoever reaches it "
            "may spend from the workflows of this sidecar; `off` has none"
        )


class Door:
    """The API of one sidecar."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        home: Path,
        services: Sequence[Service] = SERVICES,
        first_bytes_s: float = FIRST_BYTES_S,
        idle_s: float = IDLE_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """`home` is the state directory, where the unix socket is put."""
        self.mesh = mesh
        self.address: Address | None = None
        """Where it listens over TCP, once it does."""
        self.path: Path | None = None
        """Where its unix socket is; None where there is none."""
        self.first_bytes_s = first_bytes_s
        self.connections: set[asyncio.BaseProtocol] = set()
        """Those that are not aiohttp's: they have not spoken yet, or speak gRPC."""
        self._home = home
        self._services = tuple(services)
        self._idle_s = idle_s
        self._connections_max = connections_max
        self._servers: list[asyncio.Server] = []
        self._hosts = HostRule((), are_addresses_allowed=False)
        self._json: JsonDoor | None = None
        self._http = LateServer(self._load_http)
        self._offer: Offer | None = None
        self._grpc: GrpcServer | None = None
        self._private: Path | None = None
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mark = (0, 0)

    async def start(self, address: Address) -> None:
        """Listen at an address of loopback, and on the unix socket. Raises DoorError."""
        require_loopback(address)
        self._hosts = HostRule((address.host,), are_addresses_allowed=False)
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: Entrance(self), address.host, address.port, backlog=128)
        except OSError as error:
            why = cannot_listen(error, "--api or MESHD_API (`off` for none)")
            raise DoorError(f"the API's address {address} cannot be listened on: {why}") from None
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = Address(host, port)
        path = self._home / FILE_NAME
        try:
            one = listening(path)
        except SocketFileError as error:
            _log.warning("the API has no unix socket, only its port: %s", error)
            return
        self._servers.append(await loop.create_unix_server(lambda: Entrance(self, is_unix=True), sock=one))
        self.path, self._mark = path, mark_of(path)

    # ------------------------------------------------------------------ connections

    @property
    def is_full(self) -> bool:
        """There are as many connections as may be."""
        return len(self.connections) + self._http.connections >= self._connections_max

    def speak_http(self, transport: Any, first: bytes) -> None:
        """Hand a connection to aiohttp, with what has come on it."""
        self._http.take(transport, first)

    def _load_http(self) -> Make:
        from aiohttp import web

        from meshd.api.http_protocol import HttpProtocol
        from meshd.api.json_http import JsonDoor

        def make() -> tuple[web.AppRunner, Callable[[web.Server], asyncio.Protocol]]:
            self._json = JsonDoor(self.mesh, self._hosts, self.offer)
            runner = web.AppRunner(self._json.app(), shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
            return runner, lambda server: HttpProtocol(server, asyncio.get_running_loop(), self._idle_s)

        return make

    def speak_grpc(self, transport: Any, first: bytes) -> None:
        """Splice a connection to the grpcio server."""
        near = End()
        near.transport = transport
        self.connections.add(near)
        near.ended = lambda: self.connections.discard(near)
        # Now, and not in the task: what comes before that begins would be lost.
        transport.pause_reading()
        transport.set_protocol(near)
        task = asyncio.get_running_loop().create_task(self._splice(near, first))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _splice(self, near: End, first: bytes) -> None:
        far = End()
        joined(near, far)  # before it is connected: the server speaks first
        try:
            server = await self.grpc()
            await asyncio.get_running_loop().create_unix_connection(lambda: far, os.fspath(server.path))
        except Exception:  # noqa: BLE001 - whatever it is, the connection must end
            _log.exception("a gRPC connection could not be taken")
            near.abort()
            return
        if near.is_ending:
            far.close()
            return
        far.transport.write(first)
        near.transport.resume_reading()

    async def offer(self) -> Offer:
        """Return the services, made when they are first asked for: importing protobuf takes a while, so in a thread."""
        async with self._starting:
            return await self._offered()

    async def _offered(self) -> Offer:
        if self._offer is None:
            self._offer = await asyncio.to_thread(Offer, self.mesh, self._services)
        return self._offer

    async def grpc(self) -> GrpcServer:
        """Return the grpcio server, started when it is first needed."""
        async with self._starting:
            if self._grpc is None:
                offer = await self._offered()
                made = await asyncio.to_thread(_grpc_server)
                path = self._private_directory() / _GRPC_FILE
                server: GrpcServer = made(self.mesh, offer, path)
                await server.start()
                self._grpc = server
            return self._grpc

    def _private_directory(self) -> Path:
        """Return a directory that is this user's alone: below the state directory, unless that path is too long."""
        parent: Path | None = self._home
        if len(os.fsencode(self._home)) + 32 > PATH_BYTES_MAX:
            parent = None
        for left in self._home.glob(f"{_PRIVATE}*"):
            if not is_alive(left / _GRPC_FILE):
                shutil.rmtree(left, ignore_errors=True)  # of a daemon that was killed
        self._private = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=parent))
        return self._private

    # ------------------------------------------------------------------ the end

    def stop(self) -> None:
        """Accept no more; what is connected stays."""
        for server in self._servers:
            server.close()
        if self.path is not None:
            remove(self.path, self._mark)

    async def drain(self, grace_s: float) -> None:
        """Let what runs end, for at most `grace_s` seconds; new requests on old connections are told to go away."""
        self.stop()
        grpc, self._grpc = self._grpc, None
        faces = [grpc.drain(grace_s)] if grpc is not None else []
        await asyncio.gather(self._drain_http(grace_s), *faces)

    async def _drain_http(self, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                # Who came while it was loaded came before the drain: such a request is under way as any other.
                await self._http.handed_over()
                if self._json is not None:
                    await self._json.drain(grace_s)

    async def close(self) -> None:
        """End everything now. Closing twice is fine."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        grpc, self._grpc = self._grpc, None
        if grpc is not None:
            await grpc.drain(0.0)
        if self._json is not None:
            await self._json.close()
        await self._http.close()
        for one in tuple(self.connections):
            if isinstance(one, Entrance | End):
                one.abort()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)


def _grpc_server() -> type[GrpcServer]:
    from meshd.api.grpc_server import GrpcServer

    return GrpcServer


class Entrance(asyncio.Protocol):
    """Stands on a new connection until it is known what is spoken there."""

    __slots__ = ("_door", "_first", "_is_unix", "_timer", "_transport")

    def __init__(self, door: Door, *, is_unix: bool = False) -> None:
        self._door = door
        self._is_unix = is_unix
        self._first = b""
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._door.is_full or (self._is_unix and peer_uid(transport) not in (0, os.geteuid())):
            self.abort()
            return
        self._door.connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(self._door.first_bytes_s, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            return  # refused, and not gone yet
        first = self._first + data
        if len(first) < len(_PREFACE) and _PREFACE.startswith(first):
            self._first = first
            return
        self._leave()
        if first.startswith(_PREFACE):
            self._door.speak_grpc(self._transport, first)
        else:
            self._door.speak_http(self._transport, first)

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._door.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()
