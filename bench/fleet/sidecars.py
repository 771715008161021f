"""The sidecars of the fleet: processes with a state directory each, and one mesh key."""

from __future__ import annotations

import json
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bench.peers.meshd import command, tokens
from bench.processes import Child, end_process, free_port, start, wait_until

if TYPE_CHECKING:
    from pathlib import Path

MODEL: Final = "gpt-4o-mini"
AGENT: Final = "bench"
"""As the tokens name it that `bench.peers.meshd` signs."""


class Sidecar:
    """One meshd."""

    def __init__(self, number: int, folder: Path, core: int, store: str, provider: int, budget: int) -> None:
        self.port, self._metrics = free_port(), free_port()
        self._folder = folder / f"sidecar-{number}"
        self._folder.mkdir()
        self._core = core
        self._key = folder / "mesh.key"
        self._child: Child | None = None
        document = {
            "agent": AGENT,
            "upstreams": {"llm": {"url": f"http://127.0.0.1:{provider}", "kind": "llm", "dialect": "openai"}},
            "limits": {"connections_per_peer": 8192, "turns": {"ladder": "note"}},
            "rules": [{"match": {"kind": "llm"}, "budget": {"tokens": budget}, "retry": {"attempts": 0}}],
        }
        for upstream in document["upstreams"].values():  # type: ignore[attr-defined]
            upstream["pool"] = {"connections": 4096, "pending": 8192}
        file = self._folder / "policy.yaml"
        file.write_text(json.dumps(document))
        self._arguments = [
            "run", "--policy", str(file), "--listen", f"127.0.0.1:{self.port}", "--mesh-key", str(self._key),
            "--store", store,
        ]  # fmt: skip
        self._environment = {
            "MESHD_HOME": str(self._folder),
            "MESHD_METRICS": f"127.0.0.1:{self._metrics}",
            "MESHD_ADMIN": f"127.0.0.1:{free_port()}",
            "MESHD_INBOUND": f"127.0.0.1:{free_port()}",
            "MESHD_API": f"127.0.0.1:{free_port()}",
        }

    def start(self) -> None:
        """Start it, on what it kept."""
        self._child = start(
            [*command(), *self._arguments], core=self._core, log=self._folder / "meshd.log", env=self._environment
        )

    def wait(self) -> None:
        """Return when it is ready. Raises NotReadyError."""
        assert self._child is not None
        wait_until(self._is_ready, self._child, what=f"the sidecar in {self._folder}", timeout_s=60.0)

    def _is_ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
        return False

    def kill(self) -> None:
        """End it without a warning."""
        if self._child is not None:
            end_process(self._child.process, now=True)
            self._child = None

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")


def workflow_token(folder: Path) -> str:
    """Return a context token of one workflow, signed by the fleet's key."""
    return tokens(folder / "mesh.key", 1)[0]
