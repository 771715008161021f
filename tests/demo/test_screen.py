"""What the demo writes, and what it does with nonsense on its command line."""

from __future__ import annotations

import io

import pytest

from demo.__main__ import parse
from demo.checks import Checks
from demo.screen import Screen
from demo.world import AGENTS, POLICY, PROVIDERS, Options, policy_text

NAMES = (*PROVIDERS, "shop", "toolbox", *AGENTS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_where_lines_stay_there_are_no_codes_and_no_passing_states() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.title("T")
    screen.live("passing")
    screen.step("done")
    screen.table(("name", "n"), [("a", 1000), ("bcdef", 7)])
    assert stream.getvalue() == "\nT\n  done\n  name       n\n  a      1,000\n  bcdef      7\n"


def test_on_a_terminal_a_passing_state_is_replaced() -> None:
    stream = Terminal()
    screen = Screen(stream)
    screen.live("passing")
    screen.step("done")
    assert stream.getvalue().index("passing") < stream.getvalue().index("\r\x1b[2K  done")


def test_a_claim_that_does_not_hold_is_kept_for_the_end() -> None:
    stream = io.StringIO()
    checks = Checks(Screen(stream))
    checks.claim(True, "this holds")
    checks.claim(False, "this does not", 42)
    assert (checks.held, checks.broken) == (1, ["this does not"])
    assert "FAIL  this does not: found 42" in stream.getvalue()


@pytest.mark.parametrize(
    "arguments", [["--budget", "0"], ["--budget", "-1"], ["--budget", "9e9"], ["--llm", "x"], ["y"]]
)
def test_nonsense_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    assert exit_info.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_key_alone_never_spends_money(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    assert not parse([]).is_real
    assert parse(["--llm", "openai"]).is_real


def test_the_real_provider_needs_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        parse(["--llm", "openai"])
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_the_policy_gets_the_ports_and_the_budget_of_the_run() -> None:
    ports = {name: 40_000 + index for index, name in enumerate(NAMES)}
    text = policy_text(ports, Options(budget=7777), "ab" * 32)
    assert f'visitor: {{key: "sha256:{"ab" * 32}"}}' in text
    assert "127.0.0.1:74" not in text
    assert all(f"127.0.0.1:{port}" in text for port in ports.values())
    assert "tokens: 7777" in text
    assert "tokens: 6000" in POLICY.read_text()


def test_only_the_llm_that_is_asked_for_becomes_the_real_one() -> None:
    text = policy_text({name: 40_000 + index for index, name in enumerate(NAMES)}, Options(llm="openai"))
    assert text.count("https://api.openai.com") == 1
    assert 'openai: {url: "https://api.openai.com", kind: llm, dialect: openai}' in text
