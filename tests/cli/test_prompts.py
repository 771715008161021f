"""`meshd prompts` without a daemon: what is refused before anybody is asked, and tests of a folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from meshd.cli import main, prompts_checking

if TYPE_CHECKING:
    from pathlib import Path

SUITE = """
prompt: greet
cases:
  - name: polite
    variables: {name: Bo, count: 3, is_late: true}
    text: {equals: "Hello Bo, 3 true.", max_tokens: 20}
"""


def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(main, ["prompts", *arguments], input=stdin, catch_exceptions=False)
    return done.exit_code, done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "greet").mkdir(parents=True)
    (root / "greet" / "1.0.0.md").write_text("Hello {{name}}, {{count}} {{is_late}}.\n")
    (root / "greet" / "labels.yaml").write_text("production: 1.0.0\n")
    return root


def test_a_folder_is_tested_without_a_daemon(folder: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    assert run("test", str(suite), "--dir", str(folder)) == (0, "ok   polite  (greet@1.0.0)\n\n1 of 1 cases hold\n")
    suite.write_text(SUITE.replace("Hello Bo", "Hello Al"))
    status, said = run("test", str(suite), "--dir", str(folder), "--json")
    assert status == 1
    assert "not 'Hello Al, 3 true.'" in json.loads(said)["cases"][0]["failures"][0]
    suite.write_text(SUITE.replace("name: Bo, ", ""))
    status, said = run("test", str(suite), "--dir", str(folder))
    assert (status, "no value is given for name" in said) == (1, True)
    (folder / "greet" / "1.1.0.md").write_text("{{")
    status, said = run("test", str(suite), "--dir", str(folder))
    assert (status, "1.1.0.md:1:1" in said) == (1, True)


def test_an_expression_without_end_is_ended_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "suite.yaml"
    endless = SUITE.replace("name: Bo", f"name: {'a' * 64}").replace('equals: "Hello Bo, 3 true."', "matches: [M]")
    suite.write_text(endless.replace("M", "'^Hello a+, [0-9] true', '(?<=3) true'"))
    assert run("test", str(suite), "--dir", str(folder))[0] == 0
    suite.write_text(endless.replace("M", "'^Hello', '^Bye'"))
    status, said = run("test", str(suite), "--dir", str(folder))
    assert (status, said.count("the text is not matched by '^Bye'"), said.count("by '^Hello'")) == (1, 1, 0)
    monkeypatch.setattr(prompts_checking, "FITTING_S", 0.1)
    suite.write_text(endless.replace("M", "'^Hello (a+)+b'"))
    status, said = run("test", str(suite), "--dir", str(folder))
    assert status == 1
    assert "the text cannot be checked: over 0.1 s are not enough for '^Hello (a+)+b': 'Hello aaa" in said


def test_an_expression_without_end_is_ended_though_nobody_waits_for_it() -> None:
    asked = json.dumps(["(a+)+b", "a" * 64]).encode()
    command = [sys.executable, "-I", "-S", "-c", prompts_checking._FITS, "0.1"]
    done = subprocess.run(command, input=asked, check=False, timeout=30)
    assert done.returncode == -signal.SIGALRM


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "prompt"),
        ("prompt: greet\ncases: []", "no cases"),
        ("prompt: greet\ncases:\n  - name: a\n", "checks nothing"),
        ("prompt: greet\ncases:\n  - name: a\n    text: {}\n", "checks nothing"),
        ("prompt: greet\ncases:\n  - name: a\n    text: {contains: []}\n", "checks nothing"),
        ("prompt: greet\ncases:\n  - name: a\n    text: {equals: x, equals: y}\n", "suite.yaml:4:23: 'equals' stands"),
        ("prompt: greet\ncases:\n  - name: a\n    text: {contain: [x]}\n", "suite.yaml:4:12: "),
        ("prompt: greet\ncases:\n  - name: a\n    text:\n      max_tokens: many\n", "suite.yaml:5:19: "),
        ("prompt: greet\ncases:\n  - name: a\n    text: {matches: ['(']}\n", "no regular expression"),
        ("prompt: Greet\ncases:\n  - name: a\n    text: {equals: x}\n", "no name"),
        ("prompt: greet?x=y\ncases:\n  - name: a\n    text: {equals: x}\n", "no prompt such as"),
        ("prompt: [\n", "suite.yaml:2:1: it is not YAML"),
        ("- a", "object"),
        ("prompt: greet\ncases:\n  - name: a\n    answer: {model: m}\n", "upstream"),
        ("prompt: greet\ncases:\n  - name: a\n    answer: {model: m}\n", "suite.yaml:4:13: "),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, text: str, word: str) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(text)
    status, said = run("test", str(suite))
    assert (status, word in said) == (2, True), said
    suite.write_bytes(b"prompt: \xff")
    assert run("test", str(suite))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "word"),
    [
        (("add", "greet", "1.0.0", "-"), "a\n{{", 1, "2:1: "),
        (("add", "greet", "latest", "-"), "x", 1, "no version"),
        (("add", "greet", "1.0.0", "/nowhere/at/all"), "", 2, "No such file"),
        (("add", "greet", "1.0.0", "-"), "x", 1, "no daemon runs"),
        (("show", "Greet"), "", 2, "NAME is of"),
        (("show", "greet"), "", 1, "no daemon runs"),
        (("promote", "greet", "1.0.0", "--share", "0"), "", 2, "share"),
        (("promote", "../x", "1.0.0"), "", 2, "NAME is of"),
        (("rollback", "greet"), "", 1, "no daemon runs"),
        (("nonsense",), "", 2, "No such command"),
        ((), "", 1, "no daemon runs"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], stdin: str, status: int, word: str
) -> None:
    monkeypatch.setenv("MESHD_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("MESHD_LISTEN", "")
    got, said = run(*arguments, stdin=stdin)
    assert (got, word in said) == (status, True), said


def test_explain_says_which_version_it_would_be(folder: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"prompts: {{dir: {json.dumps(str(folder))}}}\n")
    request = tmp_path / "call.json"
    content = "prompt://greet?name=Bo&count=1&is_late=no"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    request.write_text(json.dumps({"url": "/openai/v1/chat/completions", "body": body}))
    done = CliRunner().invoke(main, ["explain", str(policy), str(request)], catch_exceptions=False)
    assert "greet@production is greet@1.0.0" in done.output
    (folder / "greet" / "labels.yaml").write_text("production: 9.0.0\n")
    checked = CliRunner().invoke(main, ["check", str(policy)], catch_exceptions=False)
    assert "there is no version 9.0.0" in checked.output
    done = CliRunner().invoke(main, ["explain", str(policy), str(request)], catch_exceptions=False)
    assert "404 prompt_unresolved" in done.output
