"""A server that is made for its first connection: who comes meanwhile, who leaves, and what it is to fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from meshd.admin.late import LateServer, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.both_loops

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Loading:
    """Loads when a test lets it."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.times = 0
        self.fails = 0

    def __call__(self) -> Callable[[], Any]:
        self.times += 1
        self.may.wait(60)
        if self.times <= self.fails:
            raise ImportError("not today")
        return self.make

    def make(self) -> Any:
        async def hello(_: web.Request) -> web.Response:
            return web.Response(text="hello\n")

        app = web.Application()
        app.router.add_get("/", hello)
        return web.AppRunner(app), lambda server: server()


async def served(loading: Loading) -> tuple[LateServer, asyncio.Server, int]:
    late = LateServer(loading)
    listening = await asyncio.get_running_loop().create_server(late.protocol, "127.0.0.1", 0)
    return late, listening, listening.sockets[0].getsockname()[1]


async def ended(reader: asyncio.StreamReader) -> bool:
    """Say whether the other side ends the connection, as it may, and says nothing before."""
    try:
        return await asyncio.wait_for(reader.read(), 60) == b""
    except ConnectionError:
        return True


async def gone(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Say whether the connection ends within this time."""
    try:
        return await asyncio.wait_for(reader.read(1), within_s) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_all_that_come_meanwhile_are_served_and_it_is_loaded_once() -> None:
    loading = Loading()
    late, listening, port = await served(loading)
    peers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    for _, writer in peers:
        writer.write(GET)
    await until(lambda: late.connections == 5 and loading.times == 1)
    loading.may.set()
    for reader, writer in peers:
        assert await reader.readuntil(b"hello\n")
        writer.write(GET)
        assert await reader.readuntil(b"hello\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    assert await reader.readuntil(b"hello\n")
    assert (late.connections, loading.times) == (6, 1)
    listening.close()
    await late.close()
    await late.close()
    assert await reader.read() == b""


async def test_who_leaves_meanwhile_is_forgotten() -> None:
    loading = Loading()
    late, listening, port = await served(loading)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    await until(lambda: loading.times == 1)
    (waiting,) = late._waiting
    waiting.abort()
    await until(lambda: not late.connections)
    loading.may.set()
    reader, other = await asyncio.open_connection("127.0.0.1", port)
    other.write(GET)
    assert await reader.readuntil(b"hello\n")
    assert late.connections == 1
    listening.close()
    await late.close()


async def test_what_cannot_be_loaded_ends_the_connection_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    loading = Loading()
    loading.fails = 1
    loading.may.set()
    late, listening, port = await served(loading)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    assert await ended(reader)
    assert "not today" in caplog.text
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    assert await reader.readuntil(b"hello\n")
    listening.close()
    await late.close()


async def test_closing_while_it_loads_ends_who_waits() -> None:
    loading = Loading()
    late, listening, port = await served(loading)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    await until(lambda: loading.times == 1)
    listening.close()
    closing = asyncio.ensure_future(late.close())
    await asyncio.sleep(0)
    loading.may.set()
    await closing
    assert await ended(reader)
    assert isinstance(late.protocol(), Waiting)


async def test_who_never_speaks_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.admin.late.FIRST_BYTES_S", 0.05)
    late, listening, port = await served(Loading())
    reader, _ = await asyncio.open_connection("127.0.0.1", port)
    assert await ended(reader)
    assert not late.connections
    listening.close()
    await late.close()


async def test_who_has_spoken_is_not_cut_off_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.admin.late.FIRST_BYTES_S", 0.05)
    loading = Loading()
    late, listening, port = await served(loading)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    await until(lambda: loading.times == 1)
    assert not await gone(reader, 0.2)
    loading.may.set()
    assert await reader.readuntil(b"hello\n")
    listening.close()
    await late.close()


async def test_what_cannot_be_spoken_on_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    loading = Loading()
    loading.may.set()

    def broken(_: web.Server) -> asyncio.Protocol:
        raise RuntimeError("no tongue")

    late, listening, port = await served(lambda: lambda: (loading.make()[0], broken))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    assert await ended(reader)
    assert "no tongue" in caplog.text
    listening.close()
    await late.close()


async def test_who_asks_too_much_at_once_is_held_back_from_the_first_on() -> None:
    loading, transports, may = Loading(), list[Any](), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        transports.append(request.transport)
        await may.wait()
        return web.Response(text="hello\n")

    app = web.Application()
    app.router.add_get("/", slow)
    late, listening, port = await served(lambda: (loading(), lambda: (web.AppRunner(app), lambda server: server()))[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET * 6_000)
    await until(lambda: loading.times == 1)
    loading.may.set()
    await until(lambda: bool(transports))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not transports[0].is_reading()
    may.set()
    for _ in range(6_000):
        await reader.readuntil(b"hello\n")
    listening.close()
    await late.close()


def test_clients_of_a_daemon_that_has_served_still_know_the_systems_roots() -> None:
    program = (
        "import ssl, meshd.admin.app, meshd.api.http_protocol, aiohttp.connector as client\n"
        "known = client._SSL_CONTEXT_VERIFIED.cert_store_stats()\n"
        "assert known == ssl.create_default_context().cert_store_stats(), known\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
