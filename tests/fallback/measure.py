"""How long a failover takes: from a call to the answer of its substitute, while the breaker of its target is open.

    python -m tests.fallback.measure [CALLS]

A real sidecar, a provider that is well, and one that nobody hears from. Printed for each kind of link, beside a call
that goes to the well provider at once: the difference is what the failover costs.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar
from tests.fallback.conftest import KEYS, chained, document
from tests.ports import free_port

CALLS = 300
AIM_MS = 50.0
"""Guarantees, part 4."""
BREAKS = 5
"""Failures that open a breaker."""


def timed(
    connection: http.client.HTTPConnection, upstream: str, model: str, dialect: str = "openai"
) -> tuple[float, str]:
    """Return the milliseconds that one call took, and what served it."""
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    body = json.dumps({"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "go"}]})
    started_s = time.perf_counter()
    connection.request("POST", f"/{upstream}{path}", body, {"content-type": "application/json"})
    reply = connection.getresponse()
    reply.read()
    assert reply.status == 200, reply.status
    return (time.perf_counter() - started_s) * 1000, reply.getheader("x-meshd-served-by") or "the target itself"


def main() -> int:
    """Measure and print; 1 where the aim is missed."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    provider, dead = Provider(), free_port()
    links = {
        "same-dialect": {"upstream": "backup"},
        "translated": {"upstream": "claude", "model": "c"},
        "text": {"reply": "busy"},
    }
    rules = [chained("openai", name, link) for name, link in links.items()]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(Path(folder) / "home")
        try:
            sidecar.start(document(provider.url, dead, *rules), **KEYS)
            connection = http.client.HTTPConnection("127.0.0.1", sidecar.port)
            print(f"{'link':14} {'served by':22} {'p50 ms':>8} {'p99 ms':>8} {'most ms':>8}  of {calls}, breaker open")
            for upstream, model in (("well", "direct"), *(("openai", name) for name in links)):
                for _ in range(BREAKS + 1):
                    _, served = timed(connection, upstream, model)
                took = sorted(timed(connection, upstream, model)[0] for _ in range(calls))
                p99 = took[int(len(took) * 0.99) - 1]
                print(f"{model:14} {served:22} {statistics.median(took):8.2f} {p99:8.2f} {took[-1]:8.2f}")
                worst = max(worst, p99)
            print(f"aim: p99 under {AIM_MS:g} ms: {'met' if worst < AIM_MS else 'MISSED'}")
        finally:
            sidecar.kill()
            provider.close()
    return int(worst >= AIM_MS)


if __name__ == "__main__":
    sys.exit(main())
