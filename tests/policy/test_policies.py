"""The documents that are shipped load, are valid by the exported schema, and do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from meshd.call import Kind, Target
from meshd.policy import packaged
from meshd.policy.compiled import Policy
from meshd.policy.document import load
from meshd.policy.reading import plain, read_tree
from meshd.policy.schema import json_schema

FOLDER = Path(__file__).parents[2] / "policies"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def policy(name: str) -> Policy:
    return load([FOLDER / f"{name}.yaml"])


def test_there_are_documents() -> None:
    assert {"quickstart", "strict", "governance"} <= set(NAMES)
    assert packaged.names() == tuple(NAMES)
    assert packaged.packaged().name == "quickstart.yaml"
    with pytest.raises(FileNotFoundError, match="quickstart"):
        packaged.packaged("nothing")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_every_rule_sets_something(name: str) -> None:
    loaded = policy(name)
    assert loaded.upstreams
    for warning in loaded.warnings:
        assert re.search("in shadow|no approvers|covers the tools", warning), warning
    assert any(rule.budget is not None for rule in loaded.rules)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_by_the_exported_schema(name: str) -> None:
    tree, problems = read_tree((FOLDER / f"{name}.yaml").read_bytes(), name)
    assert not problems
    document = json.loads(json.dumps(plain(tree)))
    jsonschema.Draft202012Validator(json.loads((FOLDER / "schema.json").read_text())).validate(document)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "governance"])
def test_it_names_its_schema_and_says_what_it_is_for(name: str) -> None:
    first, *rest = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    assert rest[1].startswith("# ")


def llm(name: str, model: str = "m") -> Target:
    return Target(Kind.LLM, name, model)


def test_quickstart() -> None:
    plan = policy("quickstart").plan(llm("openai"), "agent", "chat")
    assert [(budget.tokens, budget.per, budget.mode) for budget in plan.budgets] == [(500_000, "workflow", "fast")]
    assert plan.breaker is not None
    assert plan.retry is not None
    # What is written out is what holds anyway.
    assert plan.breaker.model_dump() == type(plan.breaker)().model_dump()
    assert plan.retry.model_dump() == type(plan.retry)().model_dump()
    assert plan.allow is None


def test_strict_denies_by_default() -> None:
    strict = policy("strict")
    assert not strict.limits.names_workflows
    assert not strict.expose_amounts
    assert strict.limits.unattributed_tokens == 0
    small = strict.plan(llm("openai", "gpt-5-mini"), "agent", "chat")
    assert all(budget.mode == "durable" for budget in small.budgets)
    assert small.allow is not None
    assert (small.allow.denied, small.allow.models, small.allow.tools) == (None, ("gpt-*-mini", "gpt-*-nano"), ())
    inbound = strict.plan(Target(Kind.AGENT, "app"), "agent", "POST /")
    assert inbound.allow is not None
    assert inbound.allow.denied is None
    other = strict.plan(Target(Kind.HOST, "elsewhere"), "agent", "GET /")
    assert other.allow is not None
    assert other.allow.denied is not None


def test_allow_tools() -> None:
    tools = policy("allow-tools")
    billing = Target(Kind.TOOL, "billing")
    delete, get, post = (
        tools.plan(billing, "analyst", f"{verb} /api/invoices/7").allow for verb in ("DELETE", "GET", "POST")
    )
    assert delete is not None
    assert get is not None
    assert post is not None
    assert delete.denied is not None
    assert get.tools == ("billing",)
    assert post.tools is not None
    assert "billing" not in post.tools


def test_shadow_first() -> None:
    plan = policy("shadow-first").plan(llm("openai"), "agent", "chat")
    assert [(budget.tokens, budget.is_shadow) for budget in plan.budgets] == [(1_000_000, False), (500_000, True)]
    assert plan.allow is not None
    assert plan.allow.is_shadow


def test_local_models() -> None:
    local = policy("local-models")
    route = local.plan(llm("openai", "gpt-5-mini"), "agent", "chat").route
    assert route is not None
    assert route.upstream in local.upstreams
    assert local.plan(llm("openai", "gpt-5"), "agent", "chat").route is None
    upstream = local.upstreams["openai"]
    assert (upstream.key_header, upstream.key_prefix, upstream.key_env) == (
        b"authorization",
        b"Bearer ",
        "OPENAI_API_KEY",
    )
    retry = local.plan(llm("vllm"), "agent", "chat").retry
    assert retry is not None
    assert retry.attempts == 0


def test_fallback() -> None:
    document = policy("fallback")
    chain = document.plan(llm("openai"), "agent", "chat").chain
    assert chain is not None
    assert [link.upstream for link in chain.to] == ["anthropic", "anthropic", None, None]
    assert document.plan(llm("openai"), "agent", "embeddings").chain is None
    long = document.plan(llm("anthropic", "claude-haiku-5"), "agent", "chat").chain
    assert long is not None
    assert long.on == ("context",)


def test_agents_mesh() -> None:
    mesh = policy("agents-mesh")
    assert mesh.upstreams["writer"].is_peer
    assert not mesh.upstreams["translator"].is_peer
    assert not mesh.upstreams["translator"].sends_trace
    translator = Target(Kind.AGENT, "translator")
    allowed, denied = (mesh.plan(translator, "planner", f"POST /{path}").allow for path in ("translate", "admin"))
    assert allowed is not None
    assert denied is not None
    assert allowed.denied is None
    assert denied.denied is not None


def test_the_committed_schema_is_fresh() -> None:
    assert (FOLDER / "schema.json").read_text() == json.dumps(json_schema(), indent=2) + "\n", (
        "run: meshd schema > policies/schema.json"
    )


@pytest.mark.parametrize(
    "document",
    [
        {"limit": {}},
        {"limits": {"hops": "many"}},
        {"limits": {"deadline": "10 minutes"}},
        {"limits": None},
        {"rules": [{"match": {"kind": "lm"}, "deny": "x"}]},
        {"rules": [{"match": {"target": []}, "deny": "x"}]},
        {"rules": [{"budget": {}}]},
        {"upstreams": {"a": {}}},
        {"upstreams": {"A": {"url": "http://x"}}},
        {"agent": "No Name"},
    ],
)
def test_the_schema_finds_what_an_editor_can_find(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(document))


@pytest.mark.parametrize(
    "document",
    [
        {"rules": [{"allow": {"models": "gpt-*", "tools": ["a"]}, "match": {"target": "openai", "kind": ["llm"]}}]},
        {"limits": {"deadline": 3, "request_body": "8MB", "unattributed_tokens": "50k"}},
        {"rules": [{"retry": {"on": ["connect"], "backoff": "1s"}, "breaker": {"open": "1m"}}]},
        {
            "rules": [
                {"fallback": {"to": [{"reply": "x"}]}, "approval": {"quorum": 2}, "idempotency": {"required": True}}
            ]
        },
    ],
)
def test_the_schema_takes_what_loads(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(document)
