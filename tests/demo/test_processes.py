"""Nothing that the demo starts outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.processes import Process, ProcessError, hold_port

_READY = "import json; print(json.dumps({'event': 'ready', 'port': 1}), flush=True); "
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def process(events: list[Any]) -> Process:
    return Process("it", events.append)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_gone(pid: int) -> bool:
    """It has ended; that nobody has reaped it yet does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_ready_and_later_events_are_heard_and_other_lines_kept() -> None:
    events: list[Any] = []
    it = process(events)
    code = _READY + "print('a line', flush=True); print(json.dumps({'event': 'e', 'n': 2}), flush=True); input()"
    await it.start(["-c", code], os.environ)
    assert (await it.wait_ready())["port"] == 1
    while not events:
        await asyncio.sleep(0)
    await it.stop()
    assert events == [{"event": "e", "n": 2}]
    assert "a line" in it.tail
    assert not it.is_running


async def test_one_that_ends_too_early_says_what_it_wrote() -> None:
    it = process([])
    await it.start(["-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], os.environ)
    with pytest.raises(ProcessError, match=r"status 3\n.*no such thing"):
        await it.wait_ready()
    await it.stop()


async def test_the_whole_group_ends_even_where_a_child_of_it_ignores_the_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("demo.processes._STOP_TIMEOUT_S", 0.05)
    events: list[Any] = []
    it = process(events)
    child = _STUBBORN + "import json, os; print(json.dumps({'event': 'child', 'pid': os.getpid()}), flush=True); "
    child += "time.sleep(600)"
    code = f"{_STUBBORN}import subprocess, sys; it = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += f"{_READY} it.wait()"
    await it.start(["-c", code], os.environ)
    await it.wait_ready()
    while not events:
        await asyncio.sleep(0)
    await it.stop()
    assert not is_alive(it.pid)
    # Reparented and killed: it is gone as soon as somebody has reaped it.
    while not is_gone(events[0]["pid"]):
        await asyncio.sleep(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_children_end_with_a_demo_that_is_killed_outright() -> None:
    child = _READY + "import time; time.sleep(600)"
    code = f"""
import asyncio, os
from demo.processes import Process
async def main():
    it = Process('it', print)
    await it.start(['-c', {child!r}], os.environ)
    await it.wait_ready()
    print(it.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    while not is_gone(pid):
        await asyncio.sleep(0)


def test_held_ports_differ_and_are_free_afterwards() -> None:
    held = [hold_port() for _ in range(4)]
    ports = {holder.getsockname()[1] for holder in held}
    for holder in held:
        holder.close()
    assert len(ports) == 4
