"""`meshd check` and `meshd schema`, and that asking for help loads next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from meshd.cli import COMMANDS, main

BAD = "agent: no\nlimit: {}\nrules: [{match: {target: nobody}, deny: x}]\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_a_good_document(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("rules: [{match: {kind: llm}, budget: {tokens: 5}, shadow: true}]")
    result = run("check", str(path))
    assert result.exit_code == 0
    assert result.stdout == f"{path}: fine. 10 upstreams, 1 rule, 2 warnings\n"
    assert "no budget is set" in result.stderr
    assert f'warning: {path}:1:9: "rule-1" is in shadow' in result.stderr


def test_what_there_is_one_of_is_counted_as_one(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("upstreams: {a: {url: 'http://127.0.0.1:1', kind: agent}}")
    assert run("check", str(path)).stdout == f"{path}: fine. 1 upstream, 0 rules, 0 warnings\n"


def test_every_problem_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(BAD)
    result = run("check", str(path))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:1:8", f"{path}:2:1", f"{path}:3:26"]
    assert result.stderr == "3 problems\n"


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(BAD)
    bad = run("check", "--json", str(path))
    assert bad.exit_code == 1
    said = json.loads(bad.stdout)
    assert not said["ok"]
    assert said["problems"][1] == {
        "path": str(path),
        "line": 2,
        "column": 1,
        "message": 'unknown key "limit"; did you mean "limits"?',
    }
    path.write_text("agent: a\n")
    good = run("check", "--json", str(path), "--upstream", "x=http://127.0.0.1:1,dialect=openai")
    assert good.exit_code == 0
    said = json.loads(good.stdout)
    assert said["ok"]
    assert said["agent"] == "a"
    assert said["upstreams"]["x"] == {"kind": "llm", "dialect": "openai", "url": "http://127.0.0.1:1"}


def test_keys_that_are_not_enforced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.policy.document.UNENFORCED", (("match", "model"),))
    path = tmp_path / "p.yaml"
    path.write_text("rules: [{match: {model: x}, deny: x}]")
    assert run("check", str(path)).exit_code == 1
    accepted = run("check", "--accept-unenforced", str(path))
    assert accepted.exit_code == 0
    assert "rules.match.model is not enforced" in accepted.stderr


@pytest.mark.parametrize(
    "arguments", [("nowhere.yaml",), ("/dev/null/x",), (".",), ("-",), ("--upstream", "x", "/dev/null")]
)
def test_nonsense_is_a_problem_and_no_traceback(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("check", *arguments)
    assert result.exit_code == 1
    assert ":1:1: " in result.stdout


def test_without_a_file_it_says_how_it_is_used() -> None:
    result = run("check")
    assert result.exit_code == 2
    assert "FILE..." in result.stderr


def test_schema() -> None:
    assert json.loads(run("schema").stdout)["title"] == "meshd policy"
    assert run("schema", "--markdown").stdout.startswith("### The document")


def test_unknown_command() -> None:
    assert run("nothing").exit_code == 2


def test_help_and_version_load_neither_server_nor_models() -> None:
    for option in ("--help", "--version"):
        code = (
            "import sys\nfrom meshd.cli import main\n"
            f"try:\n    main([{option!r}], standalone_mode=False)\nexcept SystemExit:\n    pass\n"
            "heavy = {'grpc', 'pydantic', 'aiohttp', 'uvloop', 'yaml', 'opentelemetry', 'sqlite3', 'asyncio'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert name in run("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert run(name, "--help").exit_code == 0
