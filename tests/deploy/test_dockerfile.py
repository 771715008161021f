"""What the image promises, read from its Dockerfile: no container engine is needed."""

from __future__ import annotations

import fnmatch
import json
import re
from typing import NamedTuple

import pytest

from tests.repository.tree import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
EXACT = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")


class Step(NamedTuple):
    """One instruction: its word in capitals and what follows it."""

    word: str
    rest: str


def stages(text: str) -> list[list[Step]]:
    """Return the instructions of each stage; every stage begins with its FROM."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found: list[list[Step]] = []
    for line in joined.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            found.append([])
        found[-1].append(Step(word.upper(), rest.strip()))
    return found


def sources(step: Step) -> list[str]:
    """Return what a COPY takes from the build context; nothing where it takes from another stage."""
    words = step.rest.split()
    if any(word.startswith("--from=") for word in words):
        return []
    return [word for word in words if not word.startswith("--")][:-1]


def commands() -> list[str]:
    """Return what is run in the last stage."""
    return [one.strip() for step in STAGES[-1] if step.word == "RUN" for one in step.rest.split("&&")]


def is_let_in(path: str, rules: list[str]) -> bool:
    """Say whether the ignore file lets a path into the build context: the last rule that fits it decides."""
    is_in = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            is_in = rule.startswith("!")
    return is_in


STAGES = stages(DOCKERFILE.read_text())
LAST = {step.word: step.rest for step in STAGES[-1]}


def test_every_base_is_an_exact_version_with_its_digest() -> None:
    bases = [stage[0].rest.split()[0] for stage in STAGES]
    assert len(bases) >= 2
    assert [base for base in bases if not EXACT.fullmatch(base)] == []


@pytest.mark.parametrize("base", ["python", "python:latest", "python:3.11-slim", "python:3.11.16-slim-bookworm"])
def test_a_loose_base_would_be_noticed(base: str) -> None:
    assert not EXACT.fullmatch(base)


def test_it_runs_as_a_user_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", LAST["USER"])
    words = [step.word for step in STAGES[-1]]
    assert "RUN" not in words[words.index("USER") :]


def test_what_is_copied_is_there_and_let_into_the_build() -> None:
    rules = [line for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split() if line != "*"]
    copied = [source for stage in STAGES for step in stage if step.word == "COPY" for source in sources(step)]
    assert "meshd" in copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if not is_let_in(source, ["*", *rules])] == []
    assert not is_let_in("tests", ["*", *rules])


def test_copies_between_stages_name_a_stage() -> None:
    names = {match[1] for stage in STAGES if (match := re.search(r" AS (\S+)$", stage[0].rest))}
    taken = {match for stage in STAGES for step in stage for match in re.findall(r"--from=(\S+)", step.rest)}
    assert taken
    assert taken <= names


def test_only_hashed_packages_are_installed() -> None:
    installs = [
        command
        for stage in STAGES
        for step in stage
        if step.word == "RUN"
        for command in step.rest.split("&&")
        if re.search(r"\bpip\b.* install\b|\bpip install\b", command)
    ]
    assert len(installs) >= 3
    assert [command for command in installs if "--require-hashes" not in command and "--no-index" not in command] == []


@pytest.mark.parametrize("word", ["ENTRYPOINT", "CMD", "VOLUME"])
def test_no_shell_is_needed_to_run(word: str) -> None:
    assert all(isinstance(part, str) for part in json.loads(LAST[word]))


def test_its_health_is_asked_without_a_shell() -> None:
    command = json.loads(LAST["HEALTHCHECK"].split("CMD ", 1)[1])
    assert command[:-1] == ["python", "-I", "-S", "-c"]


def test_python_finds_bytecode_of_all_that_it_imports() -> None:
    """The base has none of the standard library, and PYTHONDONTWRITEBYTECODE keeps it so: 0.3 s for each start."""
    (compiled,) = (line for line in commands() if "compileall" in line)
    minor = re.match(r"python:(\d+\.\d+)\.", STAGES[-1][0].rest)
    assert minor is not None
    assert compiled.split()[-1] == f"/usr/local/lib/python{minor[1]}"
    assert "compileall" not in str(STAGES[:-1]), "what is compiled elsewhere does not come along"


def test_the_state_is_its_users_alone() -> None:
    """A directory that COPY makes has mode 0755, whatever its source had; a volume without files gets what it finds."""
    user, state = LAST["USER"].replace(":", " -g "), json.loads(LAST["VOLUME"])[0]
    assert f"install -d -o {user} -m 0700 {state}" in commands()
    assert not [step for step in STAGES[-1] if step.word in ("COPY", "ADD") and step.rest.endswith(state)]


def test_the_image_has_no_second_pip() -> None:
    text = DOCKERFILE.read_text()
    assert "-m venv --without-pip " in text
    assert "/opt/meshd/bin/pip" not in text


def test_the_version_is_that_of_the_project() -> None:
    version = re.search(r'(?m)^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert f'org.opencontainers.image.version="{version[1]}"' in LAST["LABEL"]


def test_state_is_written_only_where_a_volume_is() -> None:
    written = re.findall(r"(?:MESHD_HOME|TMPDIR)=(\S+)", LAST["ENV"])
    assert len(written) == 2
    assert set(written) == set(json.loads(LAST["VOLUME"]))
    assert "PYTHONDONTWRITEBYTECODE=1" in LAST["ENV"]


def test_the_image_is_compiled_and_what_compiles_stays_behind() -> None:
    build = [f"{step.word} {step.rest}" for step in STAGES[0]]
    assert "ARG COMPILE=1" in build
    assert any("MESHD_COMPILE=$COMPILE MESHD_PGO=$PGO" in step and "--no-build-isolation" in step for step in build)
    assert any("gcc" in step for step in build)
    assert not any("gcc" in step.rest or "/opt/build" in step.rest for stage in STAGES[1:] for step in stage)
