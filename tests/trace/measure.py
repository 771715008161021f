"""Prints what the trace costs, and how fast it is read: `make trace-measure`. A measurement, not a test.

What is appended is a call's own events, as they are written before it goes out and when it has ended. What work takes
is the thread's own CPU; how long somebody waits is time. CPU of a daemon is by the kernel's books, of one that keeps a
trace and one that keeps none, one round each in turn.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from pathlib import Path
from typing import Final

from bench.proc import cpu_ns
from meshd.call import Ask, Call, Direction, Kind, Target, Usage
from meshd.outcome import Fault, Outcome, Verdict
from meshd.trace import kinds
from meshd.trace.opening import DIRECTORY, open_trace
from meshd.trace.reading import Reader
from meshd.trace.recorder import Recorder
from meshd.trace.verifying import verify
from meshd_sdk.context import Context
from tests.end_to_end.sidecar import Sidecar, environ

EVENTS: Final = 100_000
WRITERS: Final = 64
SYNCED: Final = 6_400
ROUNDS: Final = 7
CALLS: Final = 3_200
PIPELINED: Final = 32
BODY: Final = b"x" * 1300
REPLY: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def chat(number: int, workflow: str = "wf") -> Call:
    """An LLM call of 1.3 kB, as the proxy makes them."""
    call = Call(
        f"0123456789ab-{number}", Direction.OUTBOUND, "POST", "/v1/chat/completions", "", [], 1.0, 1_800_000_000.0
    )
    call.target, call.agent, call.attempt, call.body = Target(Kind.LLM, "openai", "gpt-4o"), "researcher", 1, BODY
    call.ask = Ask("chat", "gpt-4o", False, 1300, 4096)
    call.context = Context(workflow, "researcher", account=f"workflow/{workflow}")
    return call


def ended() -> Outcome:
    return Outcome(
        Verdict.SUCCESS, 1.5, 200, Fault.NONE, is_forwarded=True, is_terminal=True, usage=Usage(320, 130), taken_s=0.4
    )


def per_call(recorder: Recorder) -> None:
    """What one call costs: two events, and the digest of its body."""
    call, outcome = chat(1), ended()

    def once() -> None:
        recorder.forwarded(call)
        recorder.attempted(call, outcome)

    call.body = None
    bare_us = min(timeit.repeat(once, timer=time.thread_time, number=10_000, repeat=7)) / 10_000 * 1e6
    call.body = BODY
    whole_us = min(timeit.repeat(once, timer=time.thread_time, number=10_000, repeat=7)) / 10_000 * 1e6
    print(f"a call, before it goes out and after it ended      {whole_us:8.2f} us ({bare_us:.2f} without its digest)")
    print(f"bytes of an event, on average                      {recorder.log.bytes_written / recorder.log.events:8.0f}")


def unsynced(recorder: Recorder) -> None:
    """Events a second, and how long one takes, new segments included."""
    calls = [chat(number, f"wf-{number % 50}") for number in range(EVENTS // 2)]
    outcome, times = ended(), []
    clock, begun, begun_cpu = time.perf_counter, time.perf_counter(), time.thread_time()
    for call in calls:
        before = clock()
        recorder.forwarded(call)
        times.append(clock() - before)
        recorder.attempted(call, outcome)
    took_s, cpu_s = clock() - begun, time.thread_time() - begun_cpu
    times.sort()
    print(
        f"events a second, unsynced                          {EVENTS / took_s:8,.0f} (aim 50,000); "
        f"{EVENTS / cpu_s:,.0f} in a second of CPU"
    )
    print(
        f"an append before forwarding: p50, p99, most        {times[len(times) // 2] * 1e6:8.1f} us, "
        f"{times[len(times) * 99 // 100] * 1e6:.1f} us, {times[-1] * 1e6:.0f} us"
    )


async def synced(recorder: Recorder) -> None:
    """Group commit: each writer appends, and waits until that is on disk."""
    appends: list[float] = []
    waits: list[float] = []

    async def write(writer: int) -> None:
        outcome = ended()
        for number in range(SYNCED // WRITERS):
            call = chat(number, f"wf-{writer}")
            begun = time.perf_counter()
            recorder.forwarded(call)
            appends.append(time.perf_counter() - begun)
            await recorder.whole()
            waits.append(time.perf_counter() - begun)
            recorder.attempted(call, outcome)

    begun = time.perf_counter()
    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    took_s = time.perf_counter() - begun
    appends.sort()
    waits.sort()
    print(f"with group commit, {WRITERS} writers: calls a second       {SYNCED / took_s:8,.0f}")
    print(f"  append p99 (aim 1,000 us)                        {appends[len(appends) * 99 // 100] * 1e6:8.1f} us")
    print(
        f"  until it is on disk: p50, p99                    {waits[len(waits) // 2] * 1e6:8.0f} us, "
        f"{waits[len(waits) * 99 // 100] * 1e6:.0f} us"
    )
    lone = []
    for number in range(200):
        begun = time.perf_counter()
        recorder.forwarded(chat(number))
        await recorder.whole()
        lone.append(time.perf_counter() - begun)
    lone.sort()
    print(f"  one writer alone: p50, p99                       {lone[100] * 1e6:8.0f} us, {lone[198] * 1e6:.0f} us")


def verified(home: Path) -> None:
    count, took_s, cpu_s = min((_timed(home) for _ in range(3)), key=lambda one: one[1])
    print(
        f"records verified a second                          {count / took_s:8,.0f} (aim 200,000); "
        f"{count / cpu_s:,.0f} in a second of CPU"
    )


def _timed(home: Path) -> tuple[int, float, float]:
    begun, begun_cpu = time.perf_counter(), time.thread_time()
    found = verify(home / DIRECTORY)
    assert found.is_sound, found.problems[:3]
    return found.records, time.perf_counter() - begun, time.thread_time() - begun_cpu


def shown(home: Path) -> None:
    """Show a small workflow and a large one, each in a process of its own, and compare the memory that they took."""
    recorder = open_trace(home)
    for number in range(EVENTS // 2):
        call = chat(number, "large")
        recorder.forwarded(call)
        recorder.attempted(call, ended())
        if number < 50:
            recorder.note(kinds.STATE, "small", ("k", number, "put"))
    recorder.close()
    Reader(home / DIRECTORY).workflows()
    for options in ([], ["--timeline"], ["--json"], ["--export", "otlp"]):
        small, large = (_run([workflow, *options], home) for workflow in ("small", "large"))
        name = " ".join(options) or "as a tree"
        print(
            f"{EVENTS:,} events {name:<16} in {large[1]:5.1f} s     {large[0] / 1e6:8.1f} MB, "
            f"{(large[0] - small[0]) / 1e6:.1f} MB more than 50 events; the log has {_size(home) / 1e6:.0f} MB"
        )


def _run(arguments: list[str], home: Path) -> tuple[int, float]:
    """Return the most memory of its own that a process took, in bytes, and its seconds."""
    watched = (
        "import sys, runpy, resource\n"
        "sys.argv = ['meshd', 'trace', *sys.argv[1:]]\n"
        "from meshd.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "kb = {line.split(':')[0]: line.split()[1] for line in lines if line.startswith('Rss')}\n"
        "print(int(kb['RssAnon']) * 1024, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", watched, *arguments, "--home", str(home)]
    begun = time.perf_counter()
    done = subprocess.run(command, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return int(done.stderr.split()[-1]), time.perf_counter() - begun


def _size(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / DIRECTORY).glob("*.seg"))


def _serve(server: socket.socket) -> None:
    def answer(one: socket.socket) -> None:
        data = b""
        with one:
            while piece := one.recv(65_536):
                data += piece
                count = data.count(b"\r\n\r\n")
                data = data.rpartition(b"\r\n\r\n")[2] if count else data
                one.sendall(REPLY * count)

    while True:
        one, _ = server.accept()
        threading.Thread(target=answer, args=(one,), daemon=True).start()


def of_a_daemon(folder: Path) -> None:
    """CPU of a daemon for one plain HTTP call, without a trace, with one, and with one that syncs."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    policy = f'upstreams:\n  up: {{url: "http://127.0.0.1:{server.getsockname()[1]}", kind: host}}\n'
    policy += "limits: {turns: {ladder: note}}\n"
    daemons = {mode: Sidecar(folder / mode).start(policy, MESHD_TRACE=mode) for mode in ("off", "fast")}
    try:
        costs: dict[str, list[float]] = {mode: [] for mode in daemons}
        for turn in range(ROUNDS + 1):
            for mode, daemon in daemons.items():
                assert daemon.process is not None
                before = cpu_ns([daemon.process.pid])
                _calls(daemon.port, turn)
                if turn:
                    costs[mode].append((cpu_ns([daemon.process.pid]) - before) / CALLS / 1000)
        middle = {mode: statistics.median(found) for mode, found in costs.items()}
        more = middle["fast"] - middle["off"]
        print(
            f"CPU of a daemon for a plain call                   {middle['off']:8.1f} us without a trace, "
            f"{middle['fast']:.1f} with: {more:.1f} us ({more / middle['off']:.0%})"
        )
    finally:
        for daemon in daemons.values():
            daemon.kill()


def _calls(port: int, turn: int) -> None:
    """Make calls, many at a time unanswered, so that the daemon and not the turns of its peers is what is measured."""
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answered = one.makefile("rb")
        for number in range(CALLS // PIPELINED):
            # Of other paths each: who asks the same again and again is slowed down.
            rest = f"HTTP/1.1\r\nhost: localhost\r\nx-meshd-workflow: wf-{turn}-{number}\r\n\r\n"
            one.sendall("".join(f"GET /up/{number}/{more} {rest}" for more in range(PIPELINED)).encode())
            for _ in range(PIPELINED):
                line = answered.readline()
                assert b" 200 " in line, line
                while answered.readline() != b"\r\n":
                    pass
                answered.read(2)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    is_compiled = not str(sys.modules["meshd.trace.log"].__file__).endswith(".py")
    print(f"{'compiled' if is_compiled else 'not compiled'}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="meshd-trace-") as name:
        folder = Path(name)
        homes = [folder / part for part in ("call", "fast", "durable", "shown")]
        recorder = open_trace(homes[0])
        per_call(recorder)
        recorder.close()
        recorder = open_trace(homes[1])
        unsynced(recorder)
        recorder.close()
        verified(homes[1])
        recorder = open_trace(homes[2], is_durable=True)
        asyncio.run(synced(recorder))
        recorder.close()
        shown(homes[3])
        of_a_daemon(folder)


if __name__ == "__main__":
    main()
