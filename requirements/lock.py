"""Write run.txt, build.txt, compile.txt, dev.txt, bench.txt, proto.txt and embeddings.txt.

What they must hold is what the pyproject files declare. Run by `make lock`, which brings pip-compile. Pins that still
fit are kept; `make lock UPGRADE=1` takes the newest. The files name exact versions and hashes and no registry, so they
serve wherever the same artefacts are offered. `dev` holds everything of `run`, `build` and `compile`; `bench` is
installed on top of it, and `embeddings` in an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
OWN = "meshd-sdk"
OPTIONS = [
    *(
        "--generate-hashes",
        "--allow-unsafe",
        "--strip-extras",
        "--no-header",
        "--no-annotate",
        "--no-config",
        "--quiet",
    ),
    *("--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links", "--no-emit-options"),
]
HEADER = "# Made by `make lock` from pyproject.toml, for Python 3.11. Not to be edited.\n"


def declared() -> dict[str, list[str]]:
    """Return what each file of requirements must hold, as the pyproject files declare it."""
    daemon = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sdk = tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text())
    groups = daemon["dependency-groups"]
    run = [need for need in daemon["project"]["dependencies"] if not need.startswith(OWN)]
    run += sdk["project"]["dependencies"]
    # An image has the drivers of all engines, and no model of language.
    extras = daemon["project"]["optional-dependencies"]
    run += [need for extra in extras if extra != "embeddings" for need in extras[extra]]
    development = run + groups["build"] + groups["dev"]
    # The model's process runs a module of meshd that reads JSON.
    model = extras["embeddings"] + [need for need in run if need.startswith("msgspec")]
    others = {name: groups[name] for name in ("build", "compile", "bench", "proto")}
    return {"run": run, "dev": development, "embeddings": model} | others


def compile_one(name: str, needs: list[str], constraint: str | None) -> None:
    """Resolve `needs` into requirements/<name>.txt, with the versions that `constraint` has chosen already."""
    lines = sorted(needs, key=str.lower)
    if constraint:
        lines.append(f"-c {HERE / constraint}")
    # What a machine has configured for itself (mirrors, local folders) must not choose the artefacts.
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    target = HERE / f"{name}.txt"
    command = [sys.executable, "-m", "piptools", "compile", *OPTIONS, *sys.argv[1:], "--output-file", str(target), "-"]
    subprocess.run(command, input="\n".join(lines), env=environment, stdout=subprocess.DEVNULL, text=True, check=True)
    # pip-compile sets off what it calls unsafe (setuptools) by a comment of its own.
    pins = [line for line in target.read_text().splitlines(keepends=True) if line.strip() and line[0] != "#"]
    target.write_text(HEADER + "".join(pins))


def main() -> None:
    """Write every file; the others take the versions that dev.txt has chosen, but for proto's own environment."""
    needs = declared()
    compile_one("dev", needs.pop("dev"), None)
    compile_one("proto", needs.pop("proto"), None)
    for name, names in needs.items():
        compile_one(name, names, "dev.txt")


if __name__ == "__main__":
    main()
