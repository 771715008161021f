"""What a release says of itself agrees with what it is: versions, locked requirements, imports at start."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.tree import ROOT

DAEMON = tomllib.loads((ROOT / "pyproject.toml").read_text())
SDK = tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text())
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)(?:\s*;[^\\]*)?\s*\\$")

HEAVY = (
    "grpc",
    "pydantic",
    "google.protobuf",
    "opentelemetry",
    "aiohttp",
    "sqlite3",
    "tiktoken",
    "prometheus_client",
    "hiredis",
    "asyncpg",
)


def locked(name: str) -> dict[str, str]:
    """Return name to version as requirements/<name>.txt pins them."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {canonicalize_name(hit[1]): hit[2] for line in lines if (hit := PINNED.match(line))}


def needs(name: str) -> list[Requirement]:
    """Return what the pyproject files declare for requirements/<name>.txt."""
    groups = DAEMON["dependency-groups"]
    run = [need for need in DAEMON["project"]["dependencies"] if not need.startswith("meshd-sdk")]
    run += SDK["project"]["dependencies"]
    extras = DAEMON["project"]["optional-dependencies"]
    run += [need for extra in extras if extra != "embeddings" for need in extras[extra]]
    development = run + groups["build"] + groups["dev"]
    model = extras["embeddings"] + [need for need in run if need.startswith("msgspec")]
    declared = {"run": run, "dev": development, "embeddings": model}
    declared |= {name: groups[name] for name in ("build", "compile", "bench", "proto")}
    return [Requirement(need) for need in declared[name]]


@pytest.mark.parametrize("name", ["run", "build", "compile", "dev", "bench", "proto", "embeddings"])
def test_the_lock_holds_what_is_declared(name: str) -> None:
    pins = locked(name)
    missing = [
        str(need)
        for need in needs(name)
        if (version := pins.get(canonicalize_name(need.name))) is None or version not in need.specifier
    ]
    assert missing == [], "run `make lock`"


@pytest.mark.parametrize("name", ["run", "build", "compile", "dev", "bench", "proto", "embeddings"])
def test_every_pin_has_a_hash_and_nothing_else_stands_there(name: str) -> None:
    requirement = r"[A-Za-z0-9._-]+==[^\s\\;]+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    body = re.sub(r"(?m)^#.*\n", "", text).strip()
    assert re.fullmatch(rf"{requirement}(?:\n{requirement})*", body)


def test_an_image_is_compiled_by_what_a_wheel_is() -> None:
    hook = DAEMON["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    assert set(DAEMON["dependency-groups"]["compile"]) <= set(hook["dependencies"])
    with_types = {Requirement(need).name for need in hook["dependencies"]} - {"mypy", "setuptools"}
    assert {canonicalize_name(name) for name in with_types} <= set(locked("run"))


@pytest.mark.parametrize("name", ["run", "build", "compile"])
def test_dev_holds_the_same_versions(name: str) -> None:
    dev = locked("dev")
    assert {pin: version for pin, version in locked(name).items() if dev.get(pin) != version} == {}


def test_both_distributions_have_one_version() -> None:
    version = DAEMON["project"]["version"]
    assert SDK["project"]["version"] == version
    assert f"meshd-sdk=={version}" in DAEMON["project"]["dependencies"]


def test_the_changelog_knows_the_version() -> None:
    heads = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    assert heads[0] == DAEMON["project"]["version"]


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from meshd.cli import main\n"
        "sys.argv = ['meshd', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "LOADED"


def test_the_sdk_imports_without_its_dependencies() -> None:
    program = (
        "import sys\n"
        "for name in ('grpc', 'google', 'google.protobuf'):\n    sys.modules[name] = None\n"
        "import meshd_sdk.context\n"
        "outside = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print('MESHD' if 'meshd' in outside else 'ALONE')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ALONE"
