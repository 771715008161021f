"""What a policy says of prices and budgets: read exactly, or refused with a place and a way out."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from meshd.call import Kind, Target
from meshd.policy.compiled import Policy
from meshd.policy.document import DocumentFile, LoadError, Overrides, parse
from meshd.policy.schema import json_schema

UPSTREAMS = """\
upstreams:
  openai: {url: "https://api.openai.com"}
  local: {url: "http://127.0.0.1:11434", kind: llm, dialect: openai, prices: {"*": {input: 0, output: 0}}}
  anthropic: {url: "https://api.anthropic.com"}
"""


def read(*texts: str, **overrides: Any) -> Policy:
    files = [DocumentFile(f"{number}.yaml", text.encode()) for number, text in enumerate(texts)]
    return parse(files, overrides=Overrides(**overrides))


def problems(text: str) -> list[str]:
    with pytest.raises(LoadError) as info:
        read(text)
    return [f"{problem.line}:{problem.column}: {problem.message}" for problem in info.value.problems]


def test_the_short_form_in_dollars() -> None:
    (budget,) = read("governance: {max_dollars_per_workflow: 5.25}").plan(_target("openai", "x"), "a", "chat").budgets
    assert (budget.tokens, budget.dollars, budget.per, budget.rule) == (None, 5_250_000, "workflow", "governance")


def test_the_short_form_in_both() -> None:
    policy = read('governance: {max_tokens_per_workflow: 50k, max_dollars_per_workflow: "$5"}')
    (budget,) = policy.plan(_target("openai", "x"), "a", "chat").budgets
    assert (budget.tokens, budget.dollars, budget.queue_s) == (50_000, 5_000_000, 2.0)
    assert not any("no budget is set" in warning for warning in policy.warnings)


def test_dollars_alone_are_a_budget() -> None:
    policy = read("governance: {max_dollars_per_workflow: 5}")
    assert not any("no budget is set" in warning for warning in policy.warnings)
    assert policy.limits.unattributed_tokens == 100_000


def test_the_first_price_that_fits_holds_the_upstreams_first() -> None:
    book = read(UPSTREAMS + 'prices: {"gpt-*": {input: 7, output: 8}, "gpt-4o": {input: 1, output: 1}}').prices
    found = book.find("openai", "gpt-4o")
    assert found is not None
    assert (found.standard.input, found.source) == (7_000_000, "prices of the policy")
    local = book.find("local", "gpt-4o")
    assert local is not None
    assert (local.is_free, local.source) == (True, "upstreams.local.prices of the policy")
    shipped = book.find("openai", "claude-opus-5-5")
    assert shipped is not None
    assert shipped.source.startswith("anthropic's list as of 20")
    assert book.find("openai", "nothing-known") is None


def test_an_address_from_the_command_line_keeps_the_prices() -> None:
    policy = read(UPSTREAMS, upstreams=("local=http://127.0.0.1:9,dialect=openai",))
    assert policy.upstreams["local"].port == 9
    found = policy.prices.find("local", "llama3")
    assert found is not None
    assert found.is_free


def test_a_price_says_all_that_it_can() -> None:
    text = """
prices:
  mine:
    input: 1
    cached_input: 0.1
    cache_write: "1.25"
    cache_write_long: 2
    output: $5
    priority: 1.75
    long: {above: 200k, input: 2, cached_input: 0.2, output: 7.5}
"""
    price = read(text).prices.find("openai", "mine")
    assert price is not None
    assert price.standard.all == (1_000_000, 100_000, 1_250_000, 2_000_000, 5_000_000)
    assert (price.priority, price.long_above) == (1750, 200_000)


def test_a_price_that_says_little_is_the_dearer_one() -> None:
    price = read("prices: {mine: {input: 3, output: 4}}").prices.find("openai", "mine")
    assert price is not None
    assert price.standard.all == (3_000_000, 3_000_000, 3_000_000, 3_000_000, 4_000_000)


def test_prices_of_several_files_are_united() -> None:
    book = read("prices: {a: {input: 1, output: 1}}", "prices: {b: {input: 2, output: 2}}").prices
    assert book.find("x", "a") is not None
    assert book.find("x", "b") is not None
    with pytest.raises(LoadError, match="set already"):
        read("prices: {a: {input: 1, output: 1}}", "prices: {a: {input: 2, output: 2}}")


LESS = "{m: {input: 2, output: 2, long: {above: 9, input: 1, output: 2}}}"
PRICE = "prices: {{m: {{input: {0}, output: 1}}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PRICE.format("-1"), "1:21: must be from $0"),
        (PRICE.format("'-1'"), "1:21: expected US dollars"),
        (PRICE.format(".nan"), "1:21: expected US dollars"),
        (PRICE.format("true"), "1:21: expected US dollars"),
        (PRICE.format("1e6"), "1:21: must be from $0 to $100000"),
        (PRICE.format("0.0000001"), "1:21:"),
        (PRICE.format("[1]"), "1:21: expected US dollars"),
        ("prices: {m: {input: 1}}", '1:13: the key "output" is missing'),
        ("prices: {m: {input: 1, output: 1, priority: 0.5}}", "1:45: expected a factor from 1 to 100"),
        ("prices: {m: {input: 1, output: 1, priority: 2.0001}}", "1:45: expected a factor"),
        ("prices: {m: {input: 1, ouput: 1}}", '1:24: unknown key "ouput"; did you mean "output"?'),
        ("prices: {'a b': {input: 1, output: 1}}", "1:17: expected a model's name without spaces"),
        ("prices: {7: {input: 1, output: 1}}", "1:10: a name must be a text"),
        (f"prices: {LESS}", "1:10: a long input cannot cost"),
        ("upstreams: {a: {url: 'http://x', kind: tool, prices: " + LESS + "}}", "1:55: a long input cannot cost"),
        ("governance: {max_dollars_per_workflow: 0}", "1:40: must be greater than or equal to 1"),
        ("governance: {max_dollars_per_workflow: 5 dollars}", "1:40: expected an amount of US dollars"),
        ("governance: {max_dollars_per_workflow: 0.1234567}", "1:40:"),
        ("governance: {max_dollars_per_workflow: 200000000}", "1:40: must be from $0 to $100000000"),
        ("tenant: Acme Inc", "1:9: expected a name"),
    ],
)
def test_what_is_no_price_and_no_amount(text: str, message: str) -> None:
    found = problems(text)
    assert any(problem.startswith(message) for problem in found), found


LLM = "target: openai"


@pytest.mark.parametrize(
    ("budget", "match", "message"),
    [
        ("per: agent", LLM, "6:13: budget sets no limit: it needs tokens or dollars"),
        ("tokens: 1, per: tenant", LLM, "6:30: this document names no tenant"),
        ("tokens: 1, window: 0h", LLM, '6:33: expected a window such as "1h"'),
        ("tokens: 1, window: 0", LLM, "6:33: expected a text, not 0"),
        ("tokens: 1, window: 1 hour", LLM, "6:33: expected a window"),
        ("tokens: 1, warn_at: 0", LLM, "6:34: expected a share of the limit above 0"),
        ("tokens: 1, warn_at: 1.5", LLM, "6:34: expected a share"),
        ("tokens: 1, warn_at: 80", LLM, "6:34: expected a share"),
        ("tokens: 1, degrade: {at: 0.9}", LLM, '6:34: the key "to" is missing'),
        ("dollars: -1", LLM, "6:23: must be from $0"),
        ("dollars: 1", f"{LLM}, model: mystery", '6:23: the price of "mystery" on openai is not known'),
        ("dollars: 1, tokens: 9", f"{LLM}, model: [gpt-4o, mystery]", '6:23: the price of "mystery" on openai'),
        ("dollars: 1, degrade: {at: 0.9, to: mystery}", LLM, '6:49: the price of "mystery" on openai is not known'),
        ("tokens: 1, degrade: {at: 0.9, to: gpt-4o}", f"{LLM}, model: gpt-4o", "6:48: this rule is for"),
        ("tokens: 1, degrade: {at: 0.9, to: gpt-4o}", "kind: llm", "6:48: this rule fits upstreams that speak"),
        ("tokens: 1, degrade: {at: 0.9, to: 'a b'}", LLM, "6:48:"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_meant(budget: str, match: str, message: str) -> None:
    found = problems(f"{UPSTREAMS}rules:\n  - budget: {{{budget}}}\n    match: {{{match}}}\n")
    assert any(problem.startswith(message) for problem in found), found


@pytest.mark.parametrize(
    ("rule", "refusing"),
    [
        ("{match: {kind: llm}, allow: {models: [gpt-4o]}}", "rule-2"),
        ("{name: no-minis, match: {model: '*-mini'}, deny: too small}", "no-minis"),
        ("{match: {kind: llm}, allow: {targets: anthropic}}", "rule-2"),
        ("{match: {kind: llm}, allow: {models: ['*-mini', gpt-4o]}}", ""),
        ("{match: {kind: llm}, allow: {models: [gpt-4o]}, shadow: true}", ""),
        ("{match: {model: gpt-4o}, allow: {models: [gpt-4o]}}", ""),
        ("{match: {agent: intern}, allow: {models: [gpt-4o]}}", ""),
        ("{match: {kind: llm}, allow: {tools: [a]}}", ""),
    ],
)
def test_a_cheaper_model_that_is_not_allowed(rule: str, refusing: str) -> None:
    text = (
        f"{UPSTREAMS}rules:\n  - {{match: {{target: openai}}, budget: {{dollars: 1, degrade: "
        f"{{at: 0.9, to: gpt-4o-mini}}}}}}\n  - {rule}\n"
    )
    if not refusing:
        read(text)
        return
    assert problems(text) == [f'6:75: "gpt-4o-mini" on openai is not allowed by "{refusing}"']


def test_a_budget_of_zero_loads_and_is_warned_of() -> None:
    policy = read(f"{UPSTREAMS}rules: [{{match: {{kind: llm}}, budget: {{dollars: 0}}}}]")
    assert any("a budget of zero allows nothing" in warning for warning in policy.warnings)


def test_a_glob_may_name_models_without_a_price() -> None:
    """Which models fit is not known before they are asked for."""
    read(f"{UPSTREAMS}rules: [{{match: {{target: openai, model: 'my-*'}}, budget: {{dollars: 1}}}}]")


WHOLE = """
tenant: acme
prices: {"my-*": {input: 0.15, output: 0.6, priority: 2, long: {above: 1k, input: 1, output: 1}}}
upstreams: {openai: {url: "https://x", prices: {m: {input: 0, output: "0"}}}}
governance: {max_dollars_per_workflow: "$5.00"}
rules:
  - match: {target: openai}
    budget: {tokens: 1k, dollars: 0.5, per: tenant, window: month, warn_at: 0.8, degrade: {at: 1, to: my-small}}
"""


def test_all_of_it_is_valid_by_the_schema() -> None:
    import yaml

    read(WHOLE)
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(yaml.safe_load(WHOLE))) == []


@pytest.mark.parametrize(
    "document",
    [
        {"prices": {"m": {"input": -1, "output": 1}}},
        {"prices": {"a b": {"input": 1, "output": 1}}},
        {"prices": {"m": {"input": 1}}},
        {"rules": [{"budget": {"per": "agent"}}]},
        {"rules": [{"budget": {"tokens": 1, "window": "0h"}}]},
        {"rules": [{"budget": {"tokens": 1, "warn_at": 2}}]},
        {"rules": [{"budget": {"dollars": "5 dollars"}}]},
    ],
)
def test_the_schema_finds_what_it_can(document: dict[str, Any]) -> None:
    assert list(jsonschema.Draft202012Validator(json_schema()).iter_errors(document))


def _target(name: str, model: str) -> Target:
    return Target(Kind.LLM, name, model)
