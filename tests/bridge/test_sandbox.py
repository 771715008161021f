"""What a started server cannot do: each is tried by a real process in a real sandbox."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from meshd.bridge import telling
from tests.bridge.conftest import BAD, READ, document, needs_bwrap
from tests.bridge.raw import Raw
from tests.proxy.harness import until


@pytest.fixture(autouse=True)
def _needs_bwrap() -> None:
    needs_bwrap()


async def test_files_that_are_not_named_are_not_there(started: Any, tmp_path: Path) -> None:
    secret, shown, changed = tmp_path / "secret", tmp_path / "shown", tmp_path / "changed"
    for folder in (secret, shown, changed):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    settings = {"read": [*READ, str(shown)], "write": [str(changed)], "cwd": str(shown)}
    made = await started(str(BAD), "fine", sandbox="auto", **settings)
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said(f"read:{secret}/file") == "FileNotFoundError"
        assert await raw.said("read:/etc/shadow") == "FileNotFoundError"
        assert await raw.said(f"list:{tmp_path}") == "changed shown"
        assert await raw.said(f"read:{shown}/file") == "shown"
        assert await raw.said(f"write:{shown}/file") == "OSError"
        assert await raw.said("write:/usr/bin/x") == "OSError"
        assert await raw.said(f"write:{changed}/file") == "written"
        assert (changed / "file").read_text() == "written"
        assert await raw.said("write:/tmp/mine") == "written"
        assert await raw.said("cwd") == str(shown)


async def test_no_capability_and_no_other_process_is_seen(started: Any) -> None:
    made = await started(str(BAD), "fine", sandbox="bwrap")
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said("ids") == "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n"
        assert int(await raw.said("processes")) <= 3


@pytest.mark.parametrize("network", [False, True])
async def test_no_network_unless_it_is_named(started: Any, network: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = await started(str(BAD), "fine", sandbox="bwrap", network=network)
        async with Raw(made.port) as raw:
            await raw.open()
            said = await raw.said(f"dial:{listener.getsockname()[1]}")
    assert said == ("connected" if network else "ConnectionRefusedError")


@pytest.mark.parametrize("mode", ["none", "bwrap"])
async def test_the_environment_is_what_the_policy_names(
    started: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-meshds-own")
    monkeypatch.setenv("MESHD_STORE", "redis://:password@here")
    monkeypatch.setenv("GIVEN", "this")
    made = await started(str(BAD), "fine", sandbox=mode, env={"NAMED": "that"}, env_from=["GIVEN"])
    async with Raw(made.port) as raw:
        await raw.open()
        found = json.loads(await raw.said("environ"))
    # Python adds LC_CTYPE itself in a C locale, and bubblewrap PWD.
    assert set(found) - {"LC_CTYPE", "PWD"} == {"PATH", "HOME", "NAMED", "GIVEN"}
    assert (found["NAMED"], found["GIVEN"]) == ("that", "this")


@pytest.mark.parametrize("mode", ["none", "bwrap"])
async def test_memory_and_files_are_limited(started: Any, mode: str) -> None:
    made = await started(str(BAD), "fine", sandbox=mode, memory="200MB", files=64)
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said("allocate:50000000") == "50000000"
        assert await raw.said("allocate:400000000") == "MemoryError"
        assert await raw.said("open:500") == "OSError"


async def test_what_is_meshds_own_is_not_shown(started: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mesh.key").write_text("key")
    (tmp_path / "tls.key").write_text("key")
    made = await started(str(BAD), "fine", sandbox="bwrap", read=[*READ, str(tmp_path)])
    made.proxy.hidden = (str(home), str(tmp_path / "tls.key"))
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said(f"read:{home}/mesh.key") == "FileNotFoundError"
        assert await raw.said(f"read:{tmp_path}/tls.key") in ("", "PermissionError")
    made = await started(str(BAD), "fine", sandbox="bwrap", read=[*READ, str(home)])
    made.proxy.hidden = (str(home),)
    assert "holds what is meshd's own" in await _told(made)


async def _told(made: Any) -> str:
    async with Raw(made.port) as raw:
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
        return str((await raw.post(message))[1]["error"]["message"])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"read": ["/tmp"]}, r"is not to be seen in the sandbox. Add read: ["),
        ({"read": [*READ, "/no/such/folder"]}, "there is no /no/such/folder here"),
        ({"command": ["no-such-program"]}, "there is no program no-such-program"),
        ({"command": ["./server"]}, "is a path from nowhere"),
        ({"cwd": "/var"}, "cwd: /var is not to be seen"),
        ({"env_from": ["NOT_SET_ANYWHERE"]}, "the environment of meshd has no NOT_SET_ANYWHERE"),
        ({"sandbox": "runsc"}, "cannot start a server in gVisor's runsc"),
        ({"sandbox": "none", "cwd": "/no/such"}, "there is no folder /no/such"),
    ],
)
async def test_what_cannot_be_started_says_why(started: Any, settings: dict[str, Any], why: str) -> None:
    made = await started(str(BAD), "fine", **{"sandbox": "bwrap"} | settings)
    told = await _told(made)
    assert told.startswith("files cannot be started: ")
    assert why in told


async def test_without_bubblewrap_nothing_runs(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    made = await started(str(BAD), "fine", sandbox="auto")
    told = await _told(made)
    assert "bubblewrap, which is not installed" in told
    assert "sandbox: none" in told


async def test_a_bubblewrap_that_cannot_is_found_out(
    started: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = await started(str(BAD), "fine", sandbox="auto")
    told = await _told(made)
    assert "bubblewrap cannot make a sandbox here: bwrap: No permissions" in told


HALF_MADE = """#!/bin/sh
case "$*" in *true) exit 0; esac
sleep 1000 < /dev/null > /dev/null 2>&1 &
echo $! > {file}.new
mv {file}.new {file}
exec sleep 1000
"""
"""What bubblewrap is while it makes a sandbox: the process within waits for it, and does not end with it."""


async def test_a_sandbox_that_is_ended_while_it_is_made_leaves_nothing(
    started: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, file = tmp_path / "bwrap", tmp_path / "within"
    fake.write_text(HALF_MADE.format(file=file))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = await started(str(BAD), "fine", sandbox="bwrap", start_timeout=20)
    async with Raw(made.port) as raw:
        asked = asyncio.ensure_future(raw.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}))
        await until(file.exists)
        within = int(file.read_text())
        assert _is_alive(within)
        made.ahead_s += 21
        assert "said nothing within 20 s of its start" in (await asked)[1]["error"]["message"]
    await until(lambda: not _is_alive(within))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_how_each_is_confined_is_logged(mesh: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "meshd.bridge")
    for settings, said in (
        ({"sandbox": "bwrap"}, "files is started for its clients: in bubblewrap, without a network"),
        ({"sandbox": "none"}, "NOT SANDBOXED"),
        ({"sandbox": "runsc"}, "files cannot be started, and its calls fail"),
    ):
        made = await mesh(document(str(BAD), **settings))
        caplog.clear()
        telling.tell(made.proxy.policy, ())
        await until(lambda: caplog.messages)
        assert said in caplog.messages[0]
