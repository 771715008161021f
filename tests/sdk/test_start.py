"""What a program pays for importing the SDK, and what it brings along: nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

import pytest

import meshd_sdk
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


# What costs milliseconds to import, and what it is needed for: none of that is done by importing.
LATER = {
    "asyncio": "connecting",
    "concurrent": "threads and the sync face",
    "hashlib": "tokens and digests",
    "http": "nothing",
    "importlib.util": "instrument()",
    "logging": "the first line that is logged",
    "meshd_sdk.context": "reading a token",
    "meshd_sdk.instrumenting": "instrument()",
    "platform": "nothing",
    "signal": "run()",
    "socket": "connecting",
    "ssl": "nothing",
    "subprocess": "nothing",
    "threading": "threads and the sync face",
    "urllib": "instrument()",
    "uuid": "nothing",
}


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("import meshd_sdk", {"json", "base64", "meshd_sdk.agent", "meshd_sdk.errors"}),
        ("from meshd_sdk import current, using, carried, delegating, Current", {"json", "base64", "meshd_sdk.agent"}),
        ("from meshd_sdk import Agent", set()),
        ("from meshd_sdk import Agent, Ctx, Event, Drop, Retry, Reply, NoSidecar, Refused", set()),
    ],
)
def test_what_is_not_needed_yet_is_not_imported(code: str, more: set[str]) -> None:
    # Without `site`: what the environment's own start imports is none of ours.
    command = (
        f"import sys; before = set(sys.modules); sys.path[:0] = {sys.path!r}; {code}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "meshd_sdk.current" in loaded
    assert {name for name in {*LATER, *more} if name in loaded} == set()


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    assert run("import meshd_sdk.current, meshd_sdk.sync; from meshd_sdk import current; print(current())") == "None"


def test_every_name_of_the_package_is_there() -> None:
    for name in meshd_sdk.__all__:
        assert getattr(meshd_sdk, name) is not None
    assert set(meshd_sdk.__all__) <= set(dir(meshd_sdk))


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
