"""`meshd state` with a real daemon: values as they are, conflicts in words, and plain errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from meshd.cli import main
from tests.end_to_end.sidecar import ROOT, Sidecar, environ

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path_factory.mktemp("state") / "home")
    made.start("agent: ann\ntenant: acme\n", MESHD_API="127.0.0.1:0")
    yield made
    made.kill()


def run(sidecar: Sidecar, *arguments: str, stdin: bytes = b"") -> Result:
    unset = dict.fromkeys([name for name in os.environ if name.startswith("MESHD_")])
    env = unset | {"MESHD_HOME": str(sidecar.home)}
    return CliRunner(env=env).invoke(main, ["state", *arguments], input=stdin)


def told(sidecar: Sidecar, *arguments: str, stdin: bytes = b"") -> str:
    result = run(sidecar, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_put_get_and_history(sidecar: Sidecar, tmp_path: Path) -> None:
    assert told(sidecar, "put", "mesh/one", '{"a": 1}').startswith("mesh/one@1  ")
    assert told(sidecar, "get", "mesh/one") == '{"a": 1}'
    file = tmp_path / "value"
    file.write_bytes(b"\x00\xff")
    binary = ("--content-type", "application/octet-stream")
    told(sidecar, "put", "mesh/one", "--file", str(file), "--base", "1", *binary)
    assert run(sidecar, "get", "mesh/one").stdout_bytes == b"\x00\xff"
    told(sidecar, "put", "mesh/one", "--file", "-", "--base", "2", stdin=b"[3]")
    assert told(sidecar, "get", "mesh/one", "--version", "1") == '{"a": 1}'
    absent = run(sidecar, "history", "mesh/none")
    assert (absent.exit_code, absent.stderr) == (3, "there is no mesh/none\n")
    lines = told(sidecar, "history", "mesh/one").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["mesh/one@3", "mesh/one@2", "mesh/one@1"]
    assert all("  ann in wf-" in line for line in lines)
    found = json.loads(told(sidecar, "get", "mesh/one", "--json"))
    assert (found["version"], found["contentType"], found["writer"]) == ("3", "application/json", "ann")


def test_a_conflict_is_told_in_words(sidecar: Sidecar) -> None:
    told(sidecar, "put", "mesh/two", "1")
    refused = run(sidecar, "put", "mesh/two", "2")
    assert refused.exit_code == 4
    assert "nothing was written: mesh/two@1" in refused.output
    assert "; " not in refused.output, "it was written in another workflow: clocks say nothing"
    assert told(sidecar, "get", "mesh/two") == "1"
    told(sidecar, "put", "mesh/seen", "1", "--workflow", "w")
    refused = run(sidecar, "put", "mesh/seen", "2", "--workflow", "w")
    assert refused.output.endswith("; this workflow knows what its writer knew\n")
    absent = run(sidecar, "get", "mesh/none")
    assert (absent.exit_code, absent.output) == (3, "there is no mesh/none\n")
    absent = run(sidecar, "get", "mesh://state/mesh/two@7")
    assert (absent.exit_code, absent.output) == (3, "there is no mesh/two@7\n")
    absent = run(sidecar, "get", "mesh://state/mesh/none@0")
    assert (absent.exit_code, absent.output) == (3, "there is no mesh/none\n")


def test_short_names_belong_to_the_workflow(sidecar: Sidecar) -> None:
    assert told(sidecar, "put", "plan", "1", "--workflow", "w").startswith("workflow/w/plan@1")
    assert told(sidecar, "get", "workflow/w/plan", "--workflow", "w") == "1"
    assert told(sidecar, "put", "plan", "1", "--scope", "tenant").startswith("tenant/acme/plan@1")
    assert told(sidecar, "put", "plan", "1", "--scope", "agent").startswith("agent/ann/plan@1")
    refused = run(sidecar, "get", "workflow/w/plan", "--workflow", "other")
    assert refused.exit_code == 1
    assert "it belongs to the workflow w" in refused.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("get", "../x"), "key must be"),
        (("get", "mesh/x", "--scope", "mesh"), "leave out scope"),
        (("get", "x", "--scope", "planet"), "scope is one of"),
        (("put", "mesh/x"), "either VALUE or --file"),
        (("put", "mesh/x", "{"), "that is no JSON"),
        (("put", "mesh/x", "NaN"), "NaN is no JSON"),
        (("put", "mesh/x", "[-Infinity]"), "that is no JSON"),
        (("put", "mesh/x", '{"a": {"b": 1, "b": 2}}'), "'b' stands there twice"),
        (("put", "mesh/x", "[" * 20_000 + "]" * 20_000), "that is no JSON"),
        (("put", "mesh/x", "--file", "/nowhere"), "cannot be read"),
        (("put", "mesh/x", "1", "--as", "bob"), "No agent bob has a place at this sidecar"),
    ],
)
def test_nonsense(sidecar: Sidecar, arguments: tuple[str, ...], words: str) -> None:
    result = run(sidecar, *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_json_in_another_encoding_is_none(sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "value.json").write_bytes('{"a": 1}'.encode("utf-16"))
    refused = run(sidecar, "put", "mesh/x", "--file", str(tmp_path / "value.json"))
    assert (refused.exit_code, "that is no JSON" in refused.output) == (2, True)


def test_without_a_daemon(tmp_path: Path) -> None:
    result = CliRunner(env={"MESHD_HOME": str(tmp_path)}).invoke(main, ["state", "get", "mesh/x"])
    assert result.exit_code == 1
    assert "no daemon runs" in result.output


def test_watch_tells_of_what_comes(sidecar: Sidecar) -> None:
    told(sidecar, "put", "mesh/watched", "1")
    command = [sys.executable, "-m", "meshd.cli", "state", "watch", "mesh/watched"]
    env = environ(MESHD_HOME=str(sidecar.home))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("mesh/watched@1  ")
        told(sidecar, "put", "mesh/watched", "2", "--base", "1")
        assert watching.stdout.readline().startswith("mesh/watched@2  ")
        watching.terminate()


def test_watch_goes_on_when_the_daemon_is_killed(tmp_path: Path) -> None:
    policy = "agent: ann\n"
    own = Sidecar(tmp_path / "home")
    own.start(policy, MESHD_API="127.0.0.1:0")
    command = [sys.executable, "-m", "meshd.cli", "state", "watch", "mesh/watched"]
    env = environ(MESHD_HOME=str(own.home))
    told(own, "put", "mesh/watched", "1")
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT, env=env, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            assert watching.stdout.readline().startswith("mesh/watched@1  ")
            own.kill()
            assert watching.stderr.readline().startswith("waiting: ")
            own.start(policy, MESHD_API="127.0.0.1:0")
            told(own, "put", "mesh/watched", "2", "--base", "1")
            assert watching.stdout.readline().startswith("mesh/watched@2  ")
            watching.terminate()
    finally:
        own.kill()
