"""The stage of one run: the upstream stand-in, the certificates, and the peers as they are started."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import certificates, proc
from bench.load import h2load, wrk
from bench.load.request import Load, Request
from bench.peers import ONLY_WHERE_NAMED, PEERS
from bench.peers.contract import AbsentError, Address, Peer, Place, Running, Wire
from bench.processes import Child, Cores, NotReadyError, end_process, free_port, is_listening, run, start, wait_until
from bench.results import Sample
from bench.upstream.bodies import COUNTERS_PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import Options

DIRECT = "direct"


def brief(error: BaseException) -> str:
    """The first line of a message and the last one of the log in it, if there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


class Stage:
    """Starts the upstream at once, peers when they are asked for; `close` ends all."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cores = Cores.of_this_machine()
        self.folder = Path(tempfile.mkdtemp(prefix="meshd-bench-"))
        self.certificates = self._certificates()
        self.versions: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self.running: dict[str, Running] = {}
        self.began_s = time.monotonic()
        self.ports = {wire: free_port() for wire in Wire}
        self.upstream = self._start_upstream()
        self._number = 0

    def _certificates(self) -> certificates.Certificates | None:
        try:
            return certificates.make(self.folder)
        except subprocess.CalledProcessError:
            return None

    def _start_upstream(self) -> Child:
        pem = self.certificates
        command = [sys.executable, "-m", "bench.upstream", *(str(port) for port in self.ports.values())]
        command += [str(pem.certificate), str(pem.key)] if pem else []
        child = start(command, core=self.cores.upstream, log=self.folder / "upstream.log")
        ports = [port for wire, port in self.ports.items() if pem or wire is not Wire.TLS]
        wait_until(lambda: all(map(is_listening, ports)), child, what="the upstream stand-in")
        return child

    def say(self, text: str) -> None:
        """One line of progress, with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.began_s:5.0f} s] {text}", file=sys.stderr, flush=True)

    def place(self, name: str) -> Place:
        """A new folder for a process, and all that it must know."""
        self._number += 1
        folder = self.folder / f"{self._number}-{name}"
        folder.mkdir()
        return Place(folder, self.ports, self.certificates.ca if self.certificates else None, self.cores.proxy)

    def wanted(self) -> list[Peer]:
        """The peers that are asked for and installed, meshd first; says which are absent."""
        asked = set(self.options.peers)
        found: list[Peer] = []
        for peer in PEERS:
            needs_name = peer.name in ONLY_WHERE_NAMED
            is_asked = peer.name in asked or (not needs_name and not asked - ONLY_WHERE_NAMED)
            if peer.name != "meshd" and not is_asked:
                continue
            if peer.name in self.absent:
                continue
            try:
                self.versions[peer.name] = self.versions.get(peer.name) or peer.version()
                found.append(peer)
            except AbsentError as error:
                self.absent[peer.name] = str(error)
                self.say(f"absent: {peer.name}: {error}")
        return found

    def get(self, peer: Peer) -> Running | None:
        """A peer that runs, started where it does not; None where it cannot be (then it is absent, with the reason)."""
        if peer.name in self.absent:
            return None
        if peer.name not in self.running:
            try:
                self.running[peer.name] = peer.start(self.place(peer.name))
            except (AbsentError, NotReadyError, OSError) as error:
                self.absent[peer.name] = f"did not start: {brief(error)}"
                self.say(f"absent: {peer.name}: did not start: {error}")
                return None
        return self.running[peer.name]

    def direct(self) -> Running:
        """The upstream itself as if it were a proxy."""
        addresses = {wire: Address(port) for wire, port in self.ports.items()}
        return Running(DIRECT, self.upstream, addresses, 0.0)

    def counters(self) -> dict[str, int]:
        """What the upstream has seen so far."""
        url = f"http://127.0.0.1:{self.ports[Wire.HTTP]}{COUNTERS_PATH}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            counters: dict[str, int] = json.load(reply)
        return counters

    def measured(self, running: Running, load: Callable[[], Load]) -> Sample:
        """Run a load and book the CPU that the proxy's processes used meanwhile."""
        pids = running.pids()
        cpu_before, core_before = proc.cpu_ns(pids), proc.busy_ticks(self.cores.proxy)
        seen = load()
        cpu = proc.cpu_ns(pids) - cpu_before
        busy, ticks = (b - a for a, b in zip(core_before, proc.busy_ticks(self.cores.proxy), strict=True))
        own_ticks = cpu / 1e7
        foreign = max(0.0, (busy - own_ticks) / ticks) if ticks else 0.0
        return Sample(seen.count, seen.errors, seen.wall_s, cpu, foreign, seen.generator, seen.latencies_s)

    def calls(self, request: Request, connections: int, seconds: int) -> Load:
        """HTTP/1.1 load, by wrk where there is one."""
        if wrk.is_installed():
            return wrk.load(request, connections=connections, seconds=seconds, folder=self.folder, core=self.cores.load)
        return self.own("calls", request, connections, seconds, seconds=seconds)

    def unary(self, request: Request, connections: int, streams: int, seconds: int) -> Load:
        """HTTP/2 load, by h2load where there is one."""
        if h2load.is_installed():
            return h2load.load(
                request,
                connections=connections,
                streams=streams,
                seconds=seconds,
                folder=self.folder,
                core=self.cores.load,
            )
        return self.own("unary", request, connections, streams, seconds, seconds=seconds)

    def own(self, module: str, request: Request, *arguments: float, seconds: float) -> Load:
        """Run a load generator of ours. Raises NotReadyError where it fails."""
        file = request.save(self.folder / f"{module}.json")
        command = [sys.executable, "-m", f"bench.load.{module}", str(file), *map(str, arguments)]
        values: dict[str, Any] = json.loads(run(command, core=self.cores.load, timeout_s=seconds + 60))
        return Load(**values)

    def end_peers(self) -> None:
        """End all proxies, so that the next row begins afresh."""
        for running in self.running.values():
            running.end()
        self.running.clear()

    def close(self) -> None:
        """End everything."""
        self.end_peers()
        end_process(self.upstream.process)
