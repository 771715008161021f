"""The examples in TypeScript, built."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.sidecar import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = ROOT / "examples" / "typescript"


@pytest.fixture(scope="session")
def built(require_engine: Callable[[str], str]) -> str:
    """Build the examples, and return the path of node."""
    node, npm = require_engine("node"), require_engine("npm")
    if not (EXAMPLE / "node_modules" / "@modelcontextprotocol" / "client").is_dir():
        pytest.skip("the examples' packages are not there: run `npm ci` in examples/typescript")
    subprocess.run([npm, "run", "build"], cwd=EXAMPLE, check=True, capture_output=True, timeout=120)
    return node
