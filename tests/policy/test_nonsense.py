"""Whatever a document holds, it is a policy or a LoadError whose problems have places."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Kind, Target
from meshd.policy.compiled import Policy
from meshd.policy.document import DocumentFile, LoadError, Overrides, parse
from meshd.policy.model import Document
from meshd.policy.problem import Problem
from meshd.policy.schema import json_schema


def words() -> list[str]:
    """Return every key and choice that the schema knows, so that the fuzz gets past the first check."""
    found = {
        "openai",
        "writer",
        "*",
        "gpt-*",
        "30s",
        "8MB",
        "50k",
        "http://127.0.0.1:1",
        "https://[::1]/a",
        "on",
        "~",
        "<<",
    }

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.update(node.get("properties", {}))
            found.update(choice for choice in node.get("enum", []) if isinstance(choice, str))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(json_schema())
    return sorted(found)


WORD = st.sampled_from(words()) | st.text(max_size=8)
LEAF = WORD | st.none() | st.booleans() | st.integers() | st.floats() | st.dates()
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=5), max_leaves=25
)


def strategy_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return trees of the right shape, most of the time."""
    return st.one_of(kind, TREE)


UPSTREAM = st.fixed_dictionaries(
    {"url": st.sampled_from(["http://127.0.0.1:1", "https://api.openai.com/v1", "http://169.254.169.254"]) | WORD},
    optional={"kind": WORD, "dialect": WORD, "unmetered": st.booleans(), "key": TREE, "pool": TREE, "tls": TREE},
)
MATCH = st.dictionaries(
    st.sampled_from(["target", "kind", "agent", "model", "operation", "tool"]), WORD | st.lists(WORD)
)
RULE = st.fixed_dictionaries(
    {},
    optional={
        "name": WORD,
        "match": strategy_of(MATCH),
        "deny": WORD,
        "shadow": st.booleans(),
        "allow": TREE,
        "route": st.dictionaries(st.sampled_from(["upstream", "model"]), WORD),
        "budget": st.dictionaries(st.sampled_from(["tokens", "per", "mode"]), WORD | st.integers()),
        "breaker": TREE,
        "retry": TREE,
        "fallback": TREE,
    },
)
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "agent": WORD,
        "governance": TREE,
        "limits": TREE,
        "errors": TREE,
        "hosts_allowed": TREE,
        "upstreams": strategy_of(st.dictionaries(WORD, strategy_of(UPSTREAM), max_size=4)),
        "rules": strategy_of(st.lists(strategy_of(RULE), max_size=4)),
    },
)


def check(data: bytes, *, accept_unenforced: bool = False, overrides: tuple[str, ...] = ()) -> None:
    policy: Policy | None = None
    problems: list[Problem] = []
    try:
        policy = parse(
            [DocumentFile("f", data)],
            accept_unenforced=accept_unenforced,
            overrides=Overrides(upstreams=overrides),
        )
    except LoadError as error:
        problems = error.problems
    if policy is None:
        assert problems
        assert all(problem.line >= 1 and problem.column >= 1 and problem.message for problem in problems)
        assert all("\n" not in problem.message for problem in problems)
    else:
        for name, upstream in policy.upstreams.items():
            policy.plan(Target(upstream.kind, name, "gpt-4"), policy.agent, "chat").hit()
            policy.plan(Target(upstream.kind, name), "x", "DELETE /a").hit()
        policy.plan(Target(Kind.HOST, "x"), "", "")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))


@given(st.lists(st.sampled_from([*words(), ":", ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ",", '"', "'", "&a ", "*a", "!", "?", "|", ">", "#", "%", "@", "\t", "---"]), max_size=40))  # fmt: skip # noqa: E501
def test_any_run_of_words(parts: list[str]) -> None:
    check("".join(parts).encode())


@given(TREE, st.booleans())
def test_any_tree(tree: Any, accept_unenforced: bool) -> None:
    check(
        yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"), accept_unenforced=accept_unenforced
    )


@given(DOCUMENT, st.booleans(), st.lists(st.text(max_size=30) | st.just("local=http://127.0.0.1:1"), max_size=2))
def test_anything_that_looks_like_a_policy(tree: Any, accept_unenforced: bool, overrides: list[str]) -> None:
    data = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    check(data, accept_unenforced=accept_unenforced, overrides=tuple(overrides))


@given(st.sampled_from(sorted(Document.model_fields)), TREE)
def test_any_value_of_any_section(section: str, tree: Any) -> None:
    check(yaml.safe_dump({section: tree}, allow_unicode=True).encode("utf-8", "surrogatepass"))
