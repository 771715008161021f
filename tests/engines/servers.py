"""Servers that a test starts for itself, kills and starts again, and a line to one that it can cut."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

START_TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def program(name: str) -> str:
    """Return the path of a program; without it the test is skipped, which `.ci/run` counts as failed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


class Server:
    """One process of an engine, on a free port, in a directory of its own."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.command = list(command)
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, again too, and wait until it listens."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends_s:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                assert self.process.poll() is None, f"{self.command} ended"
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return
        raise AssertionError(f"{self.command} does not listen")

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """Let it accept and never answer, from now on: a thread that runs stops a little after the signal."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        while not all(_state(thread) in ("T", "Z", "X") for thread in threads.iterdir()):
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def _state(thread: Path) -> str:
    """One letter, as the kernel has it; X for a thread that has ended meanwhile."""
    try:
        return (thread / "stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "X"


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    try:
        await server.start()
        yield server
    finally:
        if server.process is not None:
            server.thaw()
        server.kill()


def redis_server(path: Path, *options: str, port: int | None = None) -> Server:
    port = free_port() if port is None else port
    path.mkdir(exist_ok=True)
    where = ["--bind", "127.0.0.1", "--dir", str(path), "--save", ""]
    if "--tls-port" not in options:
        where += ["--port", str(port)]
    return Server([program("redis-server"), *where, *options], port)


def nats_server(path: Path, config: str = "") -> Server:
    port = free_port()
    path.mkdir(exist_ok=True)
    file = path / "nats.conf"
    file.write_text(f'host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: "{path}/js" }}\n{config}')
    return Server([program("nats-server"), "-c", str(file)], port)


class Line:
    """A TCP port that leads to a server, and can be cut, silenced and mended."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_passing = asyncio.Event()
        self._is_passing.set()
        self.port = 0
        self.bytes_passed = 0
        """Both ways, since the start."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._is_passing.wait()
                self.bytes_passed += len(data)
                sink.write(data)
        sink.close()

    def silence(self) -> None:
        """Accept and pass nothing on."""
        self._is_passing.clear()

    def cut(self) -> None:
        """Reset every connection, and take no new one."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def mend(self) -> None:
        """Pass everything on again."""
        self._is_passing.set()
        if self._server is None or not self._server.is_serving():
            await self.open()

    async def close(self) -> None:
        self._is_passing.set()
        self.cut()
        for task in self._pumps:
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


@contextlib.asynccontextmanager
async def line_to(address: str) -> AsyncIterator[Line]:
    line = Line(address)
    await line.open()
    try:
        yield line
    finally:
        await line.close()


def certificate(path: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate that signs itself; return its file, which is its CA too, and its key."""
    path.mkdir(exist_ok=True)
    cert, key = path / f"{name}.pem", path / f"{name}.key"
    kind = "IP" if name[0].isdigit() else "DNS"
    subprocess.run(
        [
            *(
                program("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{name}"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return cert, key
