"""The health check of the image, asked of a real sidecar."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.deploy.test_dockerfile import LAST

if TYPE_CHECKING:
    from tests.end_to_end.sidecar import Sidecar


def _asked(port: str, path: str = "/livez") -> subprocess.CompletedProcess[str]:
    """Run the command as the image has it, against a port and a path; it prints what it has imported."""
    _, *flags, program = json.loads(LAST["HEALTHCHECK"].split("CMD ", 1)[1])
    assert "9464" in program
    assert "/livez" in program
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    program = told + program.replace("9464", port).replace("/livez", path)
    return subprocess.run([sys.executable, *flags, program], capture_output=True, text=True, check=False, timeout=60)


def test_a_sidecar_that_runs_is_healthy_and_one_that_does_not_is_not(sidecar: Sidecar) -> None:
    sidecar.start(None, MESHD_METRICS="127.0.0.1:0")
    assert sidecar.running is not None
    port = str(sidecar.running["metrics"]).rpartition(":")[2]
    done = _asked(port)
    assert done.returncode == 0, done.stderr
    # It is run every few seconds beside each agent, so it may not import what takes a quarter of a second.
    assert {"ssl", "email", "http", "urllib", "asyncio", "meshd"} & set(done.stdout.split()) == set()
    assert _asked(port, "/none").returncode == 1, "an answer that is not 200"
    sidecar.kill()
    assert _asked(port).returncode == 1, "nobody answers"
