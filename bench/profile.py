"""Where the time of an HTTP LLM call goes: `perf` on the running meshd, its system calls and its Python frames."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bench import calls
from bench.peers import PEERS
from bench.processes import NotReadyError, run

if TYPE_CHECKING:
    from bench.stage import Stage

_SECONDS = 5


def show(stage: Stage) -> int:
    """Load meshd for some seconds, and print what perf or py-spy saw. Returns 1 where neither is installed."""
    running = stage.get(PEERS[0])
    if running is None:
        print(stage.absent["meshd"])
        return 1
    request = calls.chat(running)
    calls.probe(running, request)
    stage.calls(request, 32, 1)
    pid = str(running.pids()[-1])
    perf = shutil.which("perf")
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if not perf and not spy:
        print("neither perf (Debian: linux-perf) nor py-spy (pip install py-spy) is installed")
        return 1
    load = threading.Thread(target=stage.calls, args=(request, 32, _SECONDS + 1))
    load.start()
    try:
        if perf:
            print(_perf(perf, pid, stage))
        if spy:
            raw = stage.folder / "frames.txt"
            command = [spy, "record", "-p", pid, "-d", str(_SECONDS - 2), "-f", "raw", "-o", str(raw), "-r", "500"]
            run(command, core=stage.cores.load, timeout_s=60)
            print(frames(raw.read_text()))
    except NotReadyError as error:
        print(error)
    load.join()
    return 0


def _perf(perf: str, pid: str, stage: Stage) -> str:
    data = stage.folder / "perf.data"
    record = [perf, "record", "-q", "-F", "499", "-g", "-p", pid, "-o", str(data), "--", "sleep", str(_SECONDS - 2)]
    run(record, core=stage.cores.load, timeout_s=60)
    shared = [perf, "report", "-q", "--stdio", "-i", str(data), "--no-children", "-g", "none", "--percent-limit", "0.5"]
    by_library = run([*shared, "--sort", "dso"], core=stage.cores.load, timeout_s=120)
    by_symbol = run([*shared, "--sort", "dso,symbol"], core=stage.cores.load, timeout_s=120)
    return f"by library\n{by_library}\nby function\n{by_symbol}"


def frames(raw: str, shown: int = 40) -> str:
    """Return the Python functions with the most samples of their own, from py-spy's collapsed stacks."""
    own: dict[str, int] = {}
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if count.isdigit():
            top = stack.rpartition(";")[2]
            own[top] = own.get(top, 0) + int(count)
    total = sum(own.values()) or 1
    ranked = sorted(own.items(), key=lambda item: -item[1])[:shown]
    return "\n".join(f"{count / total:6.1%}  {name}" for name, count in ranked)
