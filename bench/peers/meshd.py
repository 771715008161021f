"""meshd with its whole default policy on.

Every call shows a context token that this sidecar signed, and is judged by hop limit, routing, allow-list, budget
(fast mode, reserved and settled, of a total that no run exhausts) and breaker, with retries armed; counters and
histograms count it, and spans of one call in ten leave to a collector.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from bench.peers.contract import ALL_WIRES, AbsentError, Address, Place, Running, Wire, first_line
from bench.processes import ROOT, free_port, start, wait_until
from bench.upstream.bodies import MODEL, MODEL_BILLED_IN_FULL

AGENT = "bench"
TOKENS = 1_000_000_000_000
CONTEXT_HEADER = "x-meshd-context"
_UPSTREAM = {Wire.HTTP: "llm", Wire.TLS: "llm-tls", Wire.H2: "unary"}


def command() -> list[str]:
    """Return how meshd is started here: the installed command, or the package. Raises AbsentError."""
    installed = Path(sys.executable).parent / "meshd"
    if installed.exists():
        return [str(installed)]
    found = shutil.which("meshd")
    if found:
        return [found]
    if (ROOT / "meshd" / "cli" / "__main__.py").exists():
        return [sys.executable, "-m", "meshd.cli"]
    raise AbsentError("no meshd command (pip install -e .)")


def policy(place: Place, *, rules: int = 1, tokens: int = TOKENS, mode: str = "fast") -> dict[str, object]:
    """Return the document of the benchmark. `rules` counts those that match nothing here, plus the one that does."""
    upstreams: dict[str, dict[str, object]] = {
        "llm": {"url": f"http://127.0.0.1:{place.upstream[Wire.HTTP]}", "kind": "llm", "dialect": "openai"},
        "unary": {"url": f"http://127.0.0.1:{place.upstream[Wire.H2]}", "kind": "agent", "protocol": "h2"},
    }
    if place.ca:
        url = f"https://127.0.0.1:{place.upstream[Wire.TLS]}"
        upstreams["llm-tls"] = {"url": url, "kind": "llm", "dialect": "openai", "tls": {"ca": str(place.ca)}}
    others: list[object] = [
        {"name": f"other-{i}", "match": {"kind": "llm", "model": f"other-{i}-*"}, "budget": {"tokens": 1000 + i}}
        for i in range(1, rules)
    ]
    here = {
        "name": "here",
        "match": {"kind": ["llm", "agent"]},
        "allow": {"models": [MODEL, MODEL_BILLED_IN_FULL], "tools": ["web_search"], "targets": [*upstreams]},
        "budget": {"tokens": tokens, "per": "workflow", "mode": mode},
        "breaker": {"consecutive": 5, "open": "15s"},
        "retry": {"attempts": 2},
    }
    # 1,000 connections to the upstream must fit, as they do in every other peer's configuration.
    # Every call of a run is the same, which is a loop: it is judged as any, and let pass.
    limits = {"hops": 16, "connections_per_peer": 4096, "turns": {"ladder": "note"}}
    for upstream in upstreams.values():
        upstream["pool"] = {"connections": 4096, "pending": 4096}
    return {"agent": AGENT, "limits": limits, "upstreams": upstreams, "rules": [*others, here]}


def tokens(key_file: Path, workflows: int) -> list[str]:
    """Return a signed context token for each of as many workflows, as the sidecar itself would issue them.

    Raises AbsentError where the SDK or the key file cannot be read.
    """
    try:
        from meshd.mesh_key import MeshKeys
        from meshd_sdk.context import Audience, Context, mint
    except ImportError as error:
        raise AbsentError(f"no context codec: {error}") from None
    keyring = MeshKeys(key_file).ring
    expires_s = int(time.time()) + 24 * 3600
    made = []
    for number in range(workflows):
        name = f"bench-{number}"
        context = Context(workflow=name, agent=AGENT, hops=1, path=("caller",), account=f"workflow/{name}")
        token = mint(context, keyring, audience=Audience.LOCAL, expires_s=expires_s, nonce=os.urandom(8))
        made.append(token.decode())
    return made


class Meshd:
    """meshd."""

    name = "meshd"
    wires = ALL_WIRES

    def version(self) -> str:
        """As it says, compiled or not."""
        return first_line([*command(), "--version"]).partition(" ")[2]

    def start(self, place: Place) -> Running:
        """With the document of the benchmark, and a state directory of its own."""
        return self.start_with(place, policy(place), place.folder / "meshd-home")

    def start_with(self, place: Place, document: dict[str, object], home: Path) -> Running:
        """With another document or state directory."""
        home.mkdir(parents=True, exist_ok=True)
        file = home / "bench-policy.yaml"
        file.write_text(json.dumps(document))  # JSON is YAML
        port, metrics = free_port(), free_port()
        key = home / "mesh.key"
        env = {
            "MESHD_HOME": str(home),
            "MESHD_METRICS": f"127.0.0.1:{metrics}",
            "MESHD_ADMIN": f"127.0.0.1:{free_port()}",
            "MESHD_INBOUND": f"127.0.0.1:{free_port()}",
            "MESHD_API": f"127.0.0.1:{free_port()}",
            "MESHD_OTLP_ENDPOINT": f"http://127.0.0.1:{place.upstream[Wire.HTTP]}",
            "MESHD_SAMPLE_RATIO": "0.1",
        }
        arguments: list[str | Path] = ["run", "--policy", file, "--listen", f"127.0.0.1:{port}", "--mesh-key", key]
        child = start([*command(), *arguments], core=place.core, log=home / "meshd.log", env=env)
        ready_s = wait_until(lambda: _is_ready(metrics), child, what=self.name)
        addresses = {
            wire: Address(port, authority="unary.mesh") if wire is Wire.H2 else Address(port, f"/{name}")
            for wire, name in _UPSTREAM.items()
            if wire is not Wire.TLS or place.ca
        }
        running = Running(self.name, child, addresses, ready_s, metrics_port=metrics, key_file=key)
        running.headers[CONTEXT_HEADER] = tokens(key, 1)[0]
        return running


def _is_ready(metrics: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{metrics}/readyz", timeout=2) as reply:
        return bool(reply.status == 200)
    return False
