"""Servers that a test starts for itself, kills and starts again, and a line to one that it can cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiormq
import asyncpg
import pytest

from tests.ports import free_port

START_TIMEOUT_S = 20.0


def program(name: str) -> str:
    """Return the path of a program; without it the test is skipped, which `.ci/run` counts as failed."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = os.pathsep.join(["/usr/sbin", "/usr/local/sbin", *map(str, newest_first)])
    path = shutil.which(name) or shutil.which(name, path=folders)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


class Server:
    """One process of an engine, on a free port, in a directory of its own."""

    start_timeout_s = START_TIMEOUT_S

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.command = list(command)
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, again too, and wait until it listens."""
        self.process = self.popen()
        ends_s = time.monotonic() + self.start_timeout_s
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

    def popen(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

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


def as_postgres(path: Path) -> list[str]:
    """Return what runs a command as somebody else than root, whom PostgreSQL refuses; `path` becomes theirs."""
    if os.getuid() != 0:
        return []
    shutil.chown(path, "postgres", "postgres")
    return [program("setpriv"), "--reuid=postgres", "--regid=postgres", "--clear-groups"]


class PostgresServer(Server):
    """A server with a user `me`, in a directory that everybody may enter: with a password, or trusting all."""

    start_timeout_s = 60.0

    def __init__(
        self, path: Path, *, password_file: Path | None = None, files: Sequence[Path] = (), **more: str
    ) -> None:
        """`files` are copied to where the server looks for them; `more` are settings of postgresql.conf."""
        data = path / "data"
        data.mkdir()
        prefix = as_postgres(data)
        asks = ["-A", "trust"] if password_file is None else ["-A", "scram-sha-256", "--pwfile", str(password_file)]
        made = [*prefix, program("initdb"), "-D", str(data), "-U", "me", *asks, "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True)
        for file in files:
            copied = Path(shutil.copy(file, data))
            if prefix:
                shutil.chown(copied, "postgres", "postgres")
            copied.chmod(0o600)
        port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
        settings |= {"max_connections": "20"} | more
        options = [part for one, value in settings.items() for part in ("-c", f"{one}={value}")]
        super().__init__([*prefix, program("postgres"), "-D", str(data), *options], port)

    def _signal(self, number: int) -> None:
        """Send it to the first process and to all that it has started, each of which leads a group of its own."""
        assert self.process is not None
        first = self.process.pid
        os.kill(first, signal.SIGSTOP)  # it starts no more
        others = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for one in (*map(int, others), first):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def start(self) -> None:
        """Start it, and wait until it lets clients in: it listens before that."""
        ends_s = time.monotonic() + self.start_timeout_s
        while True:
            try:
                await super().start()
                break
            except AssertionError:  # what a killed one had started has to leave its memory first
                assert time.monotonic() < ends_s
                await asyncio.sleep(0.1)
        while True:
            try:
                await (await asyncpg.connect(host="127.0.0.1", port=self.port, user="me", database="postgres")).close()
                return
            except asyncpg.InvalidPasswordError:
                return  # it lets in whoever knows it
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() >= ends_s:
                    raise
                await asyncio.sleep(0.05)


class RabbitServer(Server):
    """A node of its own, which a script starts: both are a group of processes."""

    start_timeout_s = 90.0

    def __init__(self, path: Path) -> None:
        port = free_port()
        path.mkdir(exist_ok=True)
        self._name = f"meshd{port}@localhost"
        config = path / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
        self._environment = {
            "HOME": str(path),
            "PATH": os.environ.get("PATH", ""),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(path / "plugins"),
            "RABBITMQ_LOG_BASE": str(path / "log"),
            "RABBITMQ_MNESIA_BASE": str(path / "mnesia"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_PID_FILE": str(path / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin"))
        if not scripts:
            pytest.skip("rabbitmq-server is not installed")
        self._scripts = scripts[-1]
        super().__init__([str(self._scripts / "rabbitmq-server")], port)

    def popen(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            # The node is a child of the script, and goes on listening until it has gone: a start would take it for the
            # new one, which could not have the port.
            while self._is_listening():
                time.sleep(0.01)

    def _is_listening(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def freeze(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    async def remember(self) -> None:
        """Return when a restart will find the streams: RabbitMQ 3.10 writes down some seconds late that it has any."""
        connection = await aiormq.connect(f"amqp://{self.address}/")
        channel = await connection.channel()
        await channel.queue_declare("first", durable=True, arguments={"x-queue-type": "stream"})
        await connection.close()
        (names,) = Path(self._environment["HOME"]).glob("mnesia/*/coordination/*/names.dets")
        while b"rabbit_stream_coordinator" not in names.read_bytes():
            await asyncio.sleep(0.05)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl for this node."""
        command = [str(self._scripts / "rabbitmqctl"), "-n", self._name, *arguments]
        done = subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout


class Line:
    """A TCP port that leads to a server, and can be cut, silenced, held and mended, or lose one reply."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_passing = asyncio.Event()
        self._is_passing.set()
        self._losing: tuple[bytes, ...] = ()
        self._holding: tuple[bytes, ...] = ()
        self.is_held = asyncio.Event()
        self.is_reply_lost = False
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
        for source, sink, is_reply in ((reader, back, False), (there, writer, True)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink, is_reply))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not is_reply and any(one in data for one in self._holding):
                    self._holding = ()
                    self.silence()
                    self.is_held.set()
                await self._is_passing.wait()
                if is_reply and self.is_reply_lost:
                    self._abort()
                    return
                if not is_reply and any(one in data for one in self._losing):
                    self.is_reply_lost = True
                self.bytes_passed += len(data)
                sink.write(data)
        sink.close()

    def lose_reply(self, *to: bytes) -> None:
        """Pass what holds any of these on, and reset every connection when the server answers. `hear` ends that."""
        self._losing = to

    def hear(self) -> None:
        """Lose no more replies."""
        self._losing, self.is_reply_lost = (), False

    def hold(self, *what: bytes) -> None:
        """Become silent where any of these is to be passed on, and set `is_held`. `mend` passes it on."""
        self._holding = what
        self.is_held.clear()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def silence(self) -> None:
        """Accept and pass nothing on."""
        self._is_passing.clear()

    def cut(self) -> None:
        """Reset every connection, and take no new one."""
        if self._server is not None:
            self._server.close()
        self._abort()

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
