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
    """Return the files of its configs, by where they are mounted."""
    return {one["target"]: COMPOSE / DOCUMENT["configs"][one["source"]]["file"] for one in service["configs"]}


def policies(name: str, directory: Path, change: Callable[[str], str] = str) -> Path:
    """Lay a sidecar's policies into a directory, as they are mounted."""
    place = directory / f"{name}.policies"
    place.mkdir()
    for target, file in mounted(sidecar_of(name)).items():
        assert Path(target).parent == Path(sidecar_of(name)["environment"]["MESHD_POLICY"])
        (place / Path(target).name).write_text(change(file.read_text()))
    return place


def meshd(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `meshd ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "meshd.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ(**env))
