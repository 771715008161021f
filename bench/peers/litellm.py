"""LiteLLM's proxy, one worker, as its quick start has it. Only where asked for: it gets an environment of its own."""

from __future__ import annotations

import secrets
import subprocess
import sys
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING

from bench.peers.contract import AbsentError, Address, Place, Running, Wire
from bench.processes import ROOT, environment, free_port, start, wait_until
from bench.upstream.bodies import MODEL

if TYPE_CHECKING:
    from pathlib import Path

_ENVIRONMENT = ROOT / ".bench" / "litellm"
_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
"""


class LiteLlm:
    """LiteLLM."""

    name = "litellm"
    wires = frozenset({Wire.HTTP})

    def version(self) -> str:
        """Its version, after installing it into `.bench/litellm` where it is not there yet."""
        python = _ENVIRONMENT / "bin" / "python"
        if not (_ENVIRONMENT / "bin" / "litellm").exists():
            _ENVIRONMENT.parent.mkdir(exist_ok=True)
            (_ENVIRONMENT.parent / ".gitignore").write_text("*\n")
            for command in (
                [sys.executable, "-m", "venv", _ENVIRONMENT],
                [python, "-m", "pip", "install", "--quiet", "litellm[proxy]"],
            ):
                done = subprocess.run([str(p) for p in command], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise AbsentError(f"litellm could not be installed: {done.stderr[-300:]}")
        code = "from importlib.metadata import version; print(version('litellm'))"
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            raise AbsentError(f"litellm does not run: {done.stderr[-300:]}")
        return done.stdout.strip()

    def start(self, place: Place) -> Running:
        """One worker; it takes some seconds."""
        port = free_port()
        file = place.folder / "litellm.yaml"
        file.write_text(_CONFIG.format(model=MODEL, upstream=place.upstream[Wire.HTTP]))
        command: list[str | Path] = [
            _ENVIRONMENT / "bin" / "litellm",
            "--config",
            file,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        key = f"sk-{secrets.token_hex(32)}"  # it does not start without one
        env = environment(
            {
                "LITELLM_MASTER_KEY": key,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
                "PYTHONPATH": "",
            }
        )
        child = start([*command, "--num_workers", "1"], core=place.core, log=place.folder / "litellm.log", env=env)

        def is_ready() -> bool:
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2) as reply,
            ):
                return bool(reply.status == 200)
            return False

        ready_s = wait_until(is_ready, child, what=self.name, timeout_s=120.0)
        return Running(self.name, child, {Wire.HTTP: Address(port)}, ready_s, {"authorization": f"Bearer {key}"})
