"""The provider and the sidecar, each a process that can be started, told, stopped and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.peers.meshd import command
from bench.processes import Child, Cores, end_process, free_port, is_listening, start, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence


class Row(NamedTuple):
    """One figure."""

    what: str
    figure: str
    goal: str = ""
    is_met: bool | None = None
    """None where there is no goal."""


class Stage:
    """One provider and one sidecar at a time, in a folder of their own."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long one run of a measure takes."""
        self.seconds = seconds
        self.folder = Path(tempfile.mkdtemp(prefix="meshd-outage-"))
        self.cores = Cores.of_this_machine()
        self.provider_port = free_port()
        self.port = self._metrics = 0
        self._provider: Child | None = None
        self._sidecar: Child | None = None
        self._runs = 0

    # ------------------------------------------------------------------ the provider

    def provide(self, **behaviour: Any) -> None:
        """Start the provider anew, to behave so."""
        self.kill_provider()
        arguments = [sys.executable, "-m", "bench.outage.provider", str(self.provider_port)]
        self._provider = start(arguments, core=self.cores.upstream, log=self.folder / "provider.log")
        wait_until(lambda: is_listening(self.provider_port), self._provider, what="the provider")
        self.tell(**behaviour)

    def tell(self, **behaviour: Any) -> None:
        """Let the provider behave otherwise from now on."""
        body = json.dumps(behaviour).encode()
        address = f"http://127.0.0.1:{self.provider_port}/control"
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=5):
            pass

    def counts(self) -> dict[str, int]:
        """What the provider has counted since its start."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.provider_port}/counts", timeout=5) as reply:
            return dict(json.load(reply))

    def stop_provider(self) -> None:
        """Let it take connections and say nothing more."""
        assert self._provider is not None
        os.kill(self._provider.pid, signal.SIGSTOP)

    def kill_provider(self) -> None:
        """Let nobody listen any more."""
        if self._provider is not None:
            with suppress(ProcessLookupError):
                os.kill(self._provider.pid, signal.SIGCONT)
            end_process(self._provider.process, now=True)
            self._provider = None

    # ------------------------------------------------------------------ the sidecar

    def sidecar(
        self,
        rule: dict[str, Any] | None = None,
        *,
        others: dict[str, Any] | None = None,
        rules: Sequence[dict[str, Any]] = (),
        **upstream: Any,
    ) -> None:
        """Start a fresh sidecar, with one rule and further keys of its upstream; `others` are further upstreams, and
        `rules` go before that one."""
        self.end_sidecar()
        self._runs += 1
        home = self.folder / f"sidecar-{self._runs}"
        home.mkdir()
        self.port, self._metrics = free_port(), free_port()
        address = f"http://127.0.0.1:{self.provider_port}"
        policy = {
            "agent": "bench",
            "limits": {"unattributed_tokens": 10**12},
            "upstreams": {"llm": {"url": address, "kind": "llm", "dialect": "openai", **upstream}, **(others or {})},
            "rules": [*rules, *([{"name": "here", "match": {"kind": "llm"}, **rule}] if rule else [])],
        }
        (home / "policy.yaml").write_text(json.dumps(policy))
        arguments = ["run", "--policy", str(home / "policy.yaml"), "--listen", f"127.0.0.1:{self.port}"]
        self._sidecar = start(
            [*command(), *arguments],
            core=self.cores.proxy,
            log=home / "meshd.log",
            env={
                "MESHD_HOME": str(home),
                "MESHD_METRICS": f"127.0.0.1:{self._metrics}",
                "MESHD_ADMIN": f"127.0.0.1:{free_port()}",
                "MESHD_INBOUND": f"127.0.0.1:{free_port()}",
                "MESHD_API": f"127.0.0.1:{free_port()}",
            },
        )
        wait_until(self._is_ready, self._sidecar, what="meshd", timeout_s=60.0)

    def _is_ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
        return False

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")

    def end_sidecar(self) -> None:
        if self._sidecar is not None:
            end_process(self._sidecar.process, now=True)
            self._sidecar = None

    def close(self) -> None:
        """End both, and leave nothing behind."""
        self.end_sidecar()
        self.kill_provider()
        shutil.rmtree(self.folder, ignore_errors=True)
