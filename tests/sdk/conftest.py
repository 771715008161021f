"""Real sidecars for real agents, and a link between them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent
from tests.end_to_end.sidecar import Sidecar
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

# Tests of credit and of broken connections flood one edge with bare numbers on purpose.
POLICY = """
governance:
  max_tokens_per_workflow: 50000
"""
PATIENCE_S = 30.0
"""A guard against a hang: no test depends on it."""


class Link:
    """A port of loopback that leads to another one, until it is cut."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.port = 0
        self.is_down = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Link:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        for one, other in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._copy(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """End every connection at once, in the middle of whatever is said."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()


class Own(Sidecar):
    """A sidecar that its test ends and starts again, always on one port."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.api_port = free_port()

    @property
    def api(self) -> str:
        return f"127.0.0.1:{self.api_port}"

    def up(self) -> None:
        """Start it, and wait until it is there."""
        self.start(POLICY, MESHD_API=self.api)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for the tests that do it no harm; each uses names of its own."""
    one = Sidecar(tmp_path_factory.mktemp("sdk") / "home").start(POLICY, MESHD_API="127.0.0.1:0")
    yield one
    one.kill()


@pytest.fixture
def api(shared: Sidecar) -> str:
    """Where its API listens."""
    assert shared.running is not None
    return str(shared.running["api"])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    """A sidecar of the test's own."""
    one = Own(tmp_path / "home")
    one.up()
    yield one
    one.kill()


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Agent]:
    """Make agents with an environment that says nothing; of the shared sidecar where no other is named."""

    def make(name: str, **options: Any) -> Agent:
        if "api" not in options:
            options["api"] = request.getfixturevalue("api")
        return Agent(name, **({"environ": {}} | options))

    return make


@pytest.fixture
async def link(own: Own) -> AsyncIterator[Link]:
    """A link to the test's own sidecar."""
    one = await Link(own.api_port).start()
    yield one
    await one.close()


async def soon(is_so: Callable[[], Any], what: str = "") -> Any:
    """Return the first true value of `is_so()`."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := is_so()):
            await asyncio.sleep(0.005)
        return found
