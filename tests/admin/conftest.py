"""Both ports of a daemon, over real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from meshd.admin.server import start
from tests.admin.daemon import ANY_PORT, Daemon, Ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[Ports]:
    daemon = Daemon()
    servers = await start(daemon, daemon.telemetry, state_dir=tmp_path, metrics=ANY_PORT, admin=ANY_PORT)
    async with aiohttp.ClientSession() as session:
        yield Ports(daemon, servers, session)
    await servers.close()
