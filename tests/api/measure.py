"""Prints what a session costs: `python -m tests.api.measure`. A plain grpc.aio client on loopback, the daemon apart.

The client runs in this process and the daemon in its own, so each has a core where there are two.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio

from meshd_sdk.v1 import events_pb2 as ev
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1 import session_pb2_grpc
from tests.api.session_peer import Peer

ROUNDS = 2000
WARM = 200
SESSIONS = 50
POLICY = "agent: manager\nupstreams: {}\n"


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown(name: str, times_s: list[float], cpu: float) -> str:
    """Return one row."""
    times = sorted(times_s[WARM:])
    p50, p99 = statistics.median(times) * 1e6, times[int(len(times) * 0.99)] * 1e6
    return f"{name:32} p50 {p50:7.0f} us   p99 {p99:7.0f} us   daemon CPU {cpu * 1e6 / len(times_s):6.0f} us"


async def open_peer(port: str, name: str) -> Peer:
    peer = Peer(grpc.aio.insecure_channel(port))
    await peer.hello(name, credit=64)
    return peer


async def publish_to_ack(peer: Peer, pid: int) -> str:
    times, before = [], cpu_s(pid)
    for number in range(ROUNDS):
        began = time.perf_counter()
        event = ev.Event(topic="task.assigned", data=b'{"question": "why do bees dance?"}')
        await peer.send(publish=pb.Publish(id=number + 1, request=ev.PublishRequest(event=event)))
        reply = await peer.next("published")
        assert not reply.status.code, reply
        times.append(time.perf_counter() - began)
    return shown("publish to acknowledgement", times, cpu_s(pid) - before)


async def call_round_trip(caller: Peer, callee: Peer, pid: int) -> str:
    async def serve() -> None:
        while True:
            await callee.answer(await callee.next("call"), b'{"ok": true}')

    serving = asyncio.create_task(serve())
    times, before = [], cpu_s(pid)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        reply = await caller.ask("callee", "tool", b'{"q": 1}')
        assert not reply.status.code, reply
        times.append(time.perf_counter() - began)
    serving.cancel()
    return shown("call from agent to agent", times, cpu_s(pid) - before)


async def refused_call(caller: Peer, pid: int) -> str:
    times, before = [], cpu_s(pid)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await caller.ask("nobody", "tool", b"{}")
        times.append(time.perf_counter() - began)
    return shown("call refused (unknown target)", times, cpu_s(pid) - before)


async def memory(port: str, pid: int) -> list[str]:
    """Return the daemon's growth with many sessions, over one connection each and over one for all."""
    rows = []
    for kind in ("a connection each", "one connection for all"):
        before = rss_bytes(pid)
        shared = grpc.aio.insecure_channel(port)
        held = []
        for _ in range(SESSIONS):
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = shared if kind.startswith("one") else grpc.aio.insecure_channel(port, options)
            stream = session_pb2_grpc.SessionServiceStub(channel).Connect()
            await stream.write(pb.ConnectRequest(hello=pb.Hello(revision=1, credit=16, agent={"name": "many"})))
            await stream.read()
            held.append((channel, stream))
        grown = rss_bytes(pid) - before
        rows.append(f"{SESSIONS} sessions, {kind:24} {grown / SESSIONS / 1024:7.1f} KiB of the daemon each")
        for _, stream in held:
            await stream.write(pb.ConnectRequest(seq=1, goodbye=pb.Goodbye()))
    return rows


async def measure(bus: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "policy.yaml").write_text(POLICY)
        environment = {
            **os.environ, "MESHD_HOME": folder, "MESHD_POLICY": str(home / "policy.yaml"), "MESHD_LISTEN": ":0",
            "MESHD_ADMIN": ":0", "MESHD_METRICS": ":0", "MESHD_API": "127.0.0.1:0", "MESHD_BUS": bus,
            "MESHD_LOG": "error",
        }  # fmt: skip
        daemon = subprocess.Popen(
            [sys.executable, "-m", "meshd.cli", "run"], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            path = home / "api.sock"
            while not path.exists():
                await asyncio.sleep(0.05)
            port = f"unix:{path}"
            caller, callee = await open_peer(port, "caller"), await open_peer(port, "callee")
            print(f"bus {bus}, over the unix socket, {ROUNDS} rounds")
            print(await publish_to_ack(caller, daemon.pid))
            print(await call_round_trip(caller, callee, daemon.pid))
            print(await refused_call(caller, daemon.pid))
            for row in await memory(port, daemon.pid):
                print(row)
        finally:
            daemon.terminate()
            daemon.wait(60)


if __name__ == "__main__":
    for engine in ("memory:", "sqlite:"):
        asyncio.run(measure(engine))
