"""Where the time of an HTTP LLM call goes: `perf` on the running meshd, its system calls and its Python frames."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bench import calls, proc
from bench.peers import PEERS
from bench.processes import NotReadyError, run

if TYPE_CHECKING:
    from collections.abc import Callable

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
    process = running.pids()[0]
    print(threads(process, lambda: stage.calls(request, 32, 2).count))
    pid = str(process)
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
            command = [spy, "record", "-p", pid, "-d", str(_SECONDS - 2), "-f", "raw", "-o", str(raw)]
            run([*command, "-r", "500", "--function", "--threads"], core=stage.cores.load, timeout_s=60)
            print(frames(raw.read_text()))
    except NotReadyError as error:
        print(error)
    load.join()
    return 0


def _perf(perf: str, pid: str, stage: Stage) -> str:
    data = stage.folder / "perf.data"
    record = [perf, "record", "-q", "-F", "499", "-p", pid, "-o", str(data), "--", "sleep", str(_SECONDS - 2)]
    run(record, core=stage.cores.load, timeout_s=60)
    shared = [perf, "report", "-q", "--stdio", "-i", str(data), "--percent-limit", "0.5"]
    by_library = run([*shared, "--sort", "dso"], core=stage.cores.load, timeout_s=120)
    by_symbol = run([*shared, "--sort", "dso,symbol"], core=stage.cores.load, timeout_s=120)
    text = f"by library\n\n{by_library}\nby function\n\n{by_symbol}"
    return "\n".join(line.rstrip(" -") for line in text.splitlines()) + "\n"


def threads(pid: int, load: Callable[[], int]) -> str:
    """Run a load without a profiler, and return the CPU of each thread for each call."""
    before = proc.threads_cpu_ns(pid)
    count = load() or 1
    spent = {tid: ns - before.get(tid, 0) for tid, ns in proc.threads_cpu_ns(pid).items()}
    lines = ["by thread: CPU us for each call"]
    lines += [
        f"{ns / 1000 / count:8.1f}  {'main' if tid == pid else f'thread {tid}'}" for tid, ns in spent.items() if ns
    ]
    return "\n".join([*lines, ""])


def frames(raw: str, shown: int = 45) -> str:
    """Return where the main thread was, from py-spy's collapsed stacks: by file, and by function.

    `own` is the share of samples in the function itself, `whole` with what it calls.
    """
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *calls_ = stack.split(";")
        if not count.isdigit() or not calls_ or "MainThread" not in thread:
            continue
        own[calls_[-1]] += int(count)
        files[calls_[-1].partition("(")[2].partition(":")[0].rstrip(")")] += int(count)
        for function in set(calls_):
            whole[function] += int(count)
    total = sum(own.values()) or 1
    lines = ["by file, own time"]
    lines += [f"{count / total:6.1%}  {name}" for name, count in files.most_common(shown)]
    lines += ["", "by function: own, whole"]
    lines += [f"{count / total:6.1%} {whole[name] / total:6.1%}  {name}" for name, count in own.most_common(shown)]
    return "\n".join(lines)
