"""The compose file as its tests read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from meshd.engines.bus_table import ENGINES
from tests.end_to_end.sidecar import environ
from tests.repository.tree import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

COMPOSE = ROOT / "deploy" / "compose"
FILE = COMPOSE / "compose.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
SIDECARS = ("market-analysis", "risk-assessment", "trade-execution")
HAS_NATS = "nats" in ENGINES
"""This build has a bus on what the file names."""


def sidecar_of(name: str) -> dict[str, Any]:
    return SERVICES[f"{name}-mesh"]


def mounted(service: dict[str, Any]) -> dict[str, Path]:
    """Return what of this folder it is given, files and directories, by where they are mounted."""
    found = {one["target"]: COMPOSE / DOCUMENT["configs"][one["source"]]["file"] for one in service["configs"]}
    volumes = [one.split(":") for one in service.get("volumes", [])]
    return found | {target: COMPOSE / source for source, target, *_ in volumes if source.startswith("./")}


def policies(name: str, directory: Path, change: Callable[[str], str] = str) -> str:
    """Lay a sidecar's policies into a directory, as they are mounted; return the setting that names them."""
    place = directory / f"{name}.policies"
    files = mounted(sidecar_of(name))
    named = [(files[one], place / Path(one).name) for one in sidecar_of(name)["environment"]["MESHD_POLICY"].split(":")]
    for source, target in named:
        for file in sorted(source.iterdir()) if source.is_dir() else [source]:
            copy = target / file.name if source.is_dir() else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(change(file.read_text()))
    return ":".join(str(target) for _, target in named)


def meshd(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `meshd ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "meshd.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ(**env))
