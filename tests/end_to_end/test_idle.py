"""What an idle sidecar has imported: its memory is that of its imports, and they grow unseen.

Ready and probed, without a call, a scrape or a question of an operator: each of these may bring what it needs.
docs/benchmarks.md says what each costs. The figure is the benchmark's (`make bench ARGS="--rows rss-idle"`); here only
names are compared, which are the same on every machine.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.end_to_end.sidecar import environ, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.sidecar import Sidecar

AT_IDLE = {
    "annotated_types", "click", "httptools", "meshd", "meshd_sdk", "msgspec", "ngh2", "pydantic", "pydantic_core",
    "typing_extensions", "typing_inspection", "uvloop", "yaml",
}  # fmt: skip
"""Packages that every sidecar needs: policy, wires, loop, command line."""
NOT_AT_IDLE = {
    # Of the standard library, what is large and what only something that is switched on needs.
    "concurrent.futures.process", "ftplib", "html", "http.client", "http.cookies", "http.server",
    "logging.handlers", "multiprocessing", "pickle", "pydoc", "smtplib", "tkinter", "unittest", "urllib.request", "xml",
    # Of meshd's own, likewise: other engines, the API's services, the admin port's routes, the exporter, the ways
    # of the features that a policy must ask for.
    "meshd.admin.app", "meshd.admin.doors", "meshd.api.grpc_server", "meshd.api.json_http", "meshd.api.http_protocol",
    "meshd.approvals.webhook", "meshd.bridge.sse", "meshd.embedding.model", "meshd.engines.nats",
    "meshd.engines.redis", "meshd.engines.postgres", "meshd.engines.bus_kafka", "meshd.policy.schema",
    "meshd.telemetry.otlp", "meshd_sdk.v1",
}  # fmt: skip
WHAT_TO_DO = (
    "An idle sidecar imports more than it needs, and every sidecar pays for it in memory. Import it where it is first "
    "used, when the policy or the feature is set up and never on the way of a call; one that every sidecar needs from "
    "its start on belongs into AT_IDLE, with what it costs in docs/benchmarks.md, Idle memory."
)
TELLS = """
import os, signal, sys
def tell(*_):
    with open(os.environ["MODULES"] + ".new", "w") as file:
        print(*sys.modules, file=file)
    os.rename(os.environ["MODULES"] + ".new", os.environ["MODULES"])
signal.signal(signal.SIGUSR1, tell)
"""


def test_an_idle_sidecar_has_imported_what_it_needs(sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TELLS)
    told = tmp_path / "modules"
    path = os.pathsep.join([str(tmp_path / "site"), environ()["PYTHONPATH"]])
    sidecar.start(None, PYTHONPATH=path, MODULES=str(told))
    for asked in ("/livez", "/readyz", "/readyz/outbound"):
        assert sidecar.get(asked)[0] == 200
    assert sidecar.process is not None
    os.kill(sidecar.process.pid, signal.SIGUSR1)
    until(told.exists)
    imported = set(told.read_text().split())
    tops = {name.partition(".")[0] for name in imported}
    # What Cython, mypyc and the site's own hooks leave there is no package's.
    packages = {name for name in tops - set(sys.stdlib_module_names) if not name.startswith(("_", "cython_"))}
    unknown = packages - AT_IDLE - {"sitecustomize", "meshd__mypyc"}
    assert not unknown, f"{sorted(unknown)}: {WHAT_TO_DO}"
    early = {name for name in imported if any(name == one or name.startswith(f"{one}.") for one in NOT_AT_IDLE)}
    assert not early, f"{sorted(early)}: {WHAT_TO_DO}"
    assert tops >= AT_IDLE, "what is no longer needed need not be listed"
