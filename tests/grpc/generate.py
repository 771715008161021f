"""Write the code of testing.proto. Run with the environment of requirements/proto.txt, as proto/generate.py is:

.make/proto/bin/python tests/grpc/generate.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generate(folder: Path) -> None:
    """Write the generated files below `folder`, under the path that they have here."""
    outs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outs, "tests/grpc/testing.proto"]
    subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    generate(ROOT)
