"""`meshd route` on documents: every candidate, why it is passed over, and the choice. And what `explain` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshd.cli import main

POLICY = """
agent: planner
upstreams:
  market: {url: http://m, kind: agent, description: "Analyses markets.", labels: {ai.acme.intent: market_analysis}}
  billing: {url: http://b, kind: agent, description: "Invoices.", intents: [refund a customer]}
  llm: {url: http://l, kind: llm, dialect: openai}
rules:
  - {match: {target: billing, agent: planner}, deny: people only}
"""
COMPOSE = """
services:
  auditor:
    image: x
    labels: {ai.acme.intent: "technical_audit,code_review", ai.acme.x: y}
  writer: {labels: ["ai.acme.intent=write_reports", "other"]}
  market: {labels: {ai.acme.intent: price_watch}}
  llm: {labels: {ai.acme.intent: chat}}
  Bad_Name: {labels: {ai.acme.intent: bad}}
  none: {image: y}
  odd: 7
  odd2: {labels: 7}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    return str(tmp_path / "policy.yaml"), str(tmp_path / "compose.yaml")


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, ["route", *arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_policy_alone(files: tuple[str, str]) -> None:
    text = run("--policy", files[0], "market", "analysis")
    assert text.splitlines()[0].startswith("1.00  market")
    assert "PASSED OVER, policy: it may not be called here (rule rule-1)" in text
    assert "threshold 0.3, margin 0.05, fan_out 1, fallback none" in text
    assert "A call of planner for 'market analysis' goes to market: it is named." in text
    assert "llm" not in text


def test_who_asks_makes_a_difference(files: tuple[str, str]) -> None:
    assert "is refused (403 not_allowed)" in run("--policy", files[0], "refund a customer")
    assert "goes to billing" in run("--policy", files[0], "refund a customer", "--agent", "clerk")


def test_as_json(files: tuple[str, str]) -> None:
    found: dict[str, Any] = json.loads(run("--policy", files[0], "analyse some markets", "--json"))
    assert (found["choice"], found["targets"], found["agent"]) == ("chosen", ["market"], "planner")
    first, second = found["candidates"]
    assert (first["name"], first["shared"]) == ("market", ["analys", "market"])
    assert second["barred"] == "policy"
    assert second["score"] < first["score"]


def test_a_compose_file(files: tuple[str, str]) -> None:
    assert "goes to auditor: it is named" in run("--compose", files[1], "code review")
    assert "goes to writer" in run("--compose", files[1], "write some reports")
    both = run("--compose", files[1], "--policy", files[0], "price watch")
    assert "goes to market: it is named" in both
    for name in ("Bad_Name", "odd"):
        assert name not in run("--compose", files[1], "chat")


@pytest.mark.parametrize(
    "text", ["", "7", "a: [", "services: 7", "services:\n  a: {labels: !!python/object:os.x {}}", "\x00"]
)
def test_what_is_no_compose_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(text)
    assert "compose.yaml: " in run("--compose", str(path), "x", exit_code=1)


def test_what_is_no_intent(files: tuple[str, str]) -> None:
    assert "does not say what it wants" in run("--policy", files[0], " ", exit_code=2)
    assert "longer than 1000" in run("--policy", files[0], "x" * 2000, exit_code=2)
    assert "control characters" in run("--policy", files[0], "a\x1b[31m", exit_code=2)
    assert "Missing argument" in run("--policy", files[0], exit_code=2)


def test_a_policy_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("intents: {fallback: nobody}\n")
    assert '1:21: there is no upstream "nobody"' in run("--policy", str(path), "x", exit_code=1)


def test_no_daemon(tmp_path: Path) -> None:
    assert "Error" in run("--home", str(tmp_path), "x", exit_code=1)


def test_explain_says_where_words_lead(files: tuple[str, str], tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"method": "POST", "url": "/intent/market%20analysis/run", "body": {}}))
    result = CliRunner().invoke(main, ["explain", files[0], str(request), "--json"])
    assert result.exit_code == 0, result.output
    steps = {step["name"]: step for step in json.loads(result.output)["steps"]}
    assert "agent market" in steps["address"]["text"]
    assert "intent-target market, intent-score 1.000, intent-choice named" in steps["address"]["text"]
    request.write_text(json.dumps({"method": "POST", "url": "/intent/refund%20a%20customer/run", "body": {}}))
    result = CliRunner().invoke(main, ["explain", files[0], str(request)])
    assert "billing (1.00) would, but it may not be called here" in " ".join(result.output.split())


def test_explain_of_several(tmp_path: Path) -> None:
    policy, request = tmp_path / "policy.yaml", tmp_path / "request.json"
    policy.write_text(
        "upstreams:\n  a: {url: http://a, kind: agent, intents: [x1]}\n"
        "  b: {url: http://b, kind: agent, intents: [x1]}\n"
        "intents: {fan_out: 2}\n"
    )
    request.write_text(json.dumps({"method": "POST", "url": "/intent/x1/run", "body": {}}))
    result = CliRunner().invoke(main, ["explain", str(policy), str(request)])
    assert "the same for a, b: a call of its own to each" in " ".join(result.output.split())
    assert "The call is answered by meshd." in result.output


@pytest.mark.parametrize(
    ("agent", "words", "targets"),
    [
        ("clerk", "my card was charged twice", ["billing"]),
        ("planner", "my card was charged twice", ["desk"]),
        ("planner", "how big is the demand for solar panels", ["market"]),
        ("planner", "technical audit", ["audit"]),
        ("planner", "book a flight", ["desk"]),
    ],
)
def test_the_policy_that_shows_it(agent: str, words: str, targets: list[str]) -> None:
    policy = Path(__file__).resolve().parents[2] / "policies" / "intents.yaml"
    assert json.loads(run("--policy", str(policy), "--agent", agent, words, "--json"))["targets"] == targets


def test_a_label_is_a_text_and_not_what_unfolds(tmp_path: Path) -> None:
    bomb = ["services: {x: {labels: {a0: &a0 [x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "compose.yaml"
    path.write_text(", ".join(bomb) + ", ai.acme.intent: *a11}}}\n")
    assert "no agent to choose" in run("--compose", str(path), "x")
