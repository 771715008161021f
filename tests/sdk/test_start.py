"""What a program pays for importing the SDK, and what it brings along: nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

import pytest

from tests.end_to_end.sidecar import environ

HEAVY = ("grpc", "google", "pydantic", "aiohttp", "requests", "httpx")


def run(code: str) -> str:
    """Return what a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environ(), capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import meshd_sdk",
        "from meshd_sdk import Agent, Ctx, Drop, Event, MeshError, NoSidecar, Refused, Reply, Retry",
        "import meshd_sdk.sync",
        "from meshd_sdk import Agent; a = Agent('a'); a.tool(lambda: 1) if 0 else None; a.on('x')(print)",
    ],
)
def test_neither_grpc_nor_protobuf_is_imported_before_there_is_a_sidecar(code: str) -> None:
    listed = f"; import sys; print([one for one in sys.modules if one.split('.')[0] in {HEAVY!r}])"
    assert run(code + listed) == "[]"


def test_asyncio_is_not_imported_with_the_top_level() -> None:
    assert run("import meshd_sdk, sys; print('asyncio' in sys.modules)") == "False"


def test_without_a_sidecar_nothing_more_is_imported() -> None:
    code = (
        "import asyncio, sys\n"
        "from meshd_sdk import Agent\n"
        "async def main():\n"
        "    async with Agent('a', api='127.0.0.1:9', without='run') as agent:\n"
        "        await agent.ctx.publish('x', 1)\n"
        "asyncio.run(main())\n"
        f"print([one for one in sys.modules if one.split('.')[0] in {HEAVY!r}])"
    )
    assert run(code) == "[]"


def test_there_are_two_dependencies() -> None:
    needed = {one.split(">")[0].split("=")[0] for one in requires("meshd-sdk") or ()}
    assert needed == {"grpcio", "protobuf"}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(ImportError):
        from meshd_sdk import Nonsense  # type: ignore[attr-defined]  # noqa: F401
