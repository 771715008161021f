"""The demo of events as a whole: at one sidecar on the embedded bus, and at three on real servers."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from meshd.engines.bus_table import ENGINES
from tests.demo.program import left_running, read_until, start
from tests.engines.servers import Server, nats_server, redis_server, running
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

CLAIMS = 17
LINES = (
    "hop 3: trade-execution hears risk.assessed",
    "the same event again: the bus has it already",
    "the exchange's books: 1 order",
    "refused, key_reused",
    "made from version 1, version 2 is there, by risk-assessment",
    "40 were bought, not 100",
    "handed to the supervisor after 3 rounds",
    "stopped after 3 rounds",
    "The chain is whole",
    "found, and named: record ",
)


def play(directory: Path, *arguments: str) -> str:
    """Play it to its end, and return what it wrote."""
    directory.mkdir()
    process = start(directory, *arguments, module="demo.events")
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "FAIL" not in out
    assert re.search(rf"^{CLAIMS} claims held, 0 did not", out, re.MULTILINE)
    for line in LINES:
        assert line in out
    assert left_running(directory) == []
    assert list(directory.iterdir()) == []
    return out


def test_every_claim_holds_on_the_embedded_bus(tmp_path: Path) -> None:
    out = play(tmp_path / "demo")
    assert "1 meshd, 4 agents" in out
    assert "the clocks relate: equal" in out


def server_of(engine: str, directory: Path) -> Server:
    return redis_server(directory) if engine == "redis" else nats_server(directory)


@pytest.mark.parametrize("engine", ["redis", "nats"])
async def test_every_claim_holds_with_three_sidecars_on_a_server(tmp_path: Path, engine: str) -> None:
    if engine not in ENGINES:
        pytest.skip(f"this build has no bus on {engine}")
    async with running(server_of(engine, tmp_path / "server")) as server:
        url = f"{engine}://{server.address}"
        out = await asyncio.to_thread(play, tmp_path / "demo", "--bus", url)
        # Once more on the same server: groups and topics are known there by now.
        await asyncio.to_thread(play, tmp_path / "again", "--bus", url)
    assert "3 meshd, 4 agents" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, module="demo.events")
    read_until(process, "3  The view")
    assert len(left_running(tmp_path)) > 5
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == 128 + number, out
    assert left_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_said_in_words(tmp_path: Path) -> None:
    process = start(tmp_path, "--bus", f"redis://127.0.0.1:{free_port()}", module="demo.events")
    out, _ = process.communicate()
    assert process.returncode == 1, out
    assert "is it running, on that port?" in out
    assert "Traceback" not in out
    assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bus", "pigeon://loft"], "no bus called pigeon"),
        (["--bus", "redis://h/0?speed=9"], "knows no option 'speed'"),
        (["--store", "redis://127.0.0.1:6379"], "--store is for the three sidecars"),
        (["--bus", "amqp://127.0.0.1"], "RabbitMQ keeps no store, and the sidecars share one"),
        (["--bus", "redis://127.0.0.1", "--store", "amqp://127.0.0.1"], "RabbitMQ keeps no store"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_what_it_cannot_do_is_said_at_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    process = start(tmp_path, *arguments, module="demo.events")
    out, _ = process.communicate()
    assert process.returncode == 2
    assert said in out
    assert list(tmp_path.iterdir()) == []


def test_a_bus_that_nobody_is_at_ends_it_with_words(tmp_path: Path) -> None:
    process: subprocess.Popen[str] = start(tmp_path, "--bus", "redis://127.0.0.1:1/0", module="demo.events")
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "127.0.0.1:1" in out
    assert left_running(tmp_path) == []
