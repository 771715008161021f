"""Engines of our own, each on a free port and in a folder of its own, that may be killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from bench.processes import Child, end_process, free_port, is_listening, start, wait_until


class AbsentError(RuntimeError):
    """The engine is not installed here."""


class Engine(Protocol):
    """A server that keeps what it has acknowledged, whatever happens to it."""

    name: str
    url: str

    def start(self) -> None: ...

    def kill(self) -> None: ...

    async def requests(self) -> int:
        """Return how many requests it has served since it was started."""
        ...


class Redis:
    """A Redis that syncs every write."""

    name = "redis"

    def __init__(self, folder: Path, core: int) -> None:
        command = shutil.which("redis-server")
        if command is None:
            raise AbsentError("there is no redis-server here")
        self._folder = folder
        self._core = core
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}"
        self._command = [
            command, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "always",
        ]  # fmt: skip
        self._child: Child

    def start(self) -> None:
        """Start it, on what it kept."""
        self._child = start(self._command, core=self._core, log=self._folder / "redis.log")
        wait_until(lambda: is_listening(self._port), self._child, what="redis-server")

    def kill(self) -> None:
        """End it without a warning."""
        end_process(self._child.process, now=True)

    async def requests(self) -> int:
        """Return the commands that it has processed, but for those within scripts, which come in with them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"INFO commandstats\r\n")
        length = int((await reader.readline())[1:])
        text = (await reader.readexactly(length)).decode()
        writer.close()
        counts = {
            line.split(":")[0]: int(line.split("calls=")[1].split(",")[0]) for line in text.split() if "calls=" in line
        }
        names = ("evalsha", "eval", "mget", "hmget", "hgetall", "get")
        scripted = counts.get("cmdstat_evalsha", 0) + counts.get("cmdstat_eval", 0)
        return scripted if scripted else sum(counts.get(f"cmdstat_{name}", 0) for name in names)


class Nats:
    """A NATS server with JetStream that syncs every write."""

    name = "nats"

    def __init__(self, folder: Path, core: int) -> None:
        # That of the benchmark's requirements knows how to sync; a system's may be too old for it.
        command = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if command is None:
            raise AbsentError("there is no nats-server here")
        self._folder = folder
        self._core = core
        self._port, self._monitor = free_port(), free_port()
        self.url = f"nats://127.0.0.1:{self._port}?synced=true"
        file = folder / "nats.conf"
        file.write_text(
            f'host: 127.0.0.1\nport: {self._port}\nhttp: "127.0.0.1:{self._monitor}"\n'
            f'jetstream {{ store_dir: "{folder}/js", sync_interval: always }}\n'
        )
        self._command = [command, "-c", str(file)]
        self._child: Child

    def start(self) -> None:
        """Start it, on what it kept."""
        self._child = start(self._command, core=self._core, log=self._folder / "nats.log")
        wait_until(lambda: is_listening(self._port), self._child, what="nats-server")

    def kill(self) -> None:
        """End it without a warning."""
        end_process(self._child.process, now=True)

    async def requests(self) -> int:
        """Return the messages that came in."""

        def ask() -> int:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/varz") as reply:
                return int(json.load(reply)["in_msgs"])
            return 0

        return await asyncio.to_thread(ask)


ENGINES: dict[str, type[Redis] | type[Nats]] = {"redis": Redis, "nats": Nats}
