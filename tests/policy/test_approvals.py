"""Approvals that nobody could give, or that nothing would ask for, are named at load with line and column."""

from __future__ import annotations

import pytest

from meshd.call import Kind, Target
from meshd.policy.document import DocumentFile, LoadError, parse

HASH = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
HEAD = (
    "upstreams:\n"
    '  openai: {url: "https://api.openai.com"}\n'
    '  billing: {url: "http://127.0.0.1:9", kind: tool}\n'
    f'approvers: {{ana: {{key: "{HASH}"}}, ben: {{key: "{OTHER}"}}}}\n'
)
TOOL = "rules: [{match: {kind: tool}, approval: "


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (TOOL + "{approvers: [anna]}}]", "5:", 'no approver "anna"; did you mean'),
        (TOOL + "{quorum: 3}}]", "5:", "3 must allow it, and 2 could"),
        ("owner: ana\n" + TOOL + "{quorum: 2}}]", "6:", 'the owner "ana" may not'),
        (TOOL + "{above_tokens: 5}}]", "5:", "fits neither"),
        ("rules: [{match: {kind: llm}, approval: {}}]", "5:", "asks for none"),
        ("approvals: {above_tokens: 5}", "5:", "says nothing without"),
        ("approvals: {webhook: nonsense}", "5:", "http or https URL"),
        ('approvals: {webhook: "ftp://a"}', "5:", "http or https URL"),
        ('approvals: {webhook: "https://u:p@a"}', "5:", "sign with webhook_key"),
        ('approvals: {webhook: "https://a b"}', "5:", "http or https URL"),
        ("approvals: {page: nonsense}", "5:", "http or https URL"),
        ('approvals: {page: "javascript://a/{id}"}', "5:", "http or https URL"),
        ('approvals: {page: "https://u:p@a/{id}"}', "5:", "people sign in at the page"),
        ("approvals: {webhook_key: {env: A}}", "5:", "no webhook to sign for"),
        ('approvals: {webhook: "https://a", webhook_key: {}}', "5:", "either env or file"),
        ("approvals: {topic: 'a b'}", "5:", "words of letters"),
    ],
)
def test_what_is_wrong_is_named(text: str, place: str, words: str) -> None:
    with pytest.raises(LoadError) as caught:
        parse([DocumentFile("p.yaml", (HEAD + text).encode())])
    (problem,) = [str(one) for one in caught.value.problems]
    assert problem.startswith(f"p.yaml:{place}")
    assert words in problem


def test_a_key_is_one_persons() -> None:
    text = HEAD.replace(OTHER, HASH)
    with pytest.raises(LoadError, match="the key of ana too"):
        parse([DocumentFile("p.yaml", text.encode())])


def test_an_owner_alone_can_allow_nothing() -> None:
    text = f'owner: ana\napprovers: {{ana: {{key: "{HASH}"}}}}\ngovernance: {{human_in_the_loop_required: true}}\n'
    with pytest.raises(LoadError, match="agent's owner"):
        parse([DocumentFile("p.yaml", text.encode())])


@pytest.mark.parametrize("text", ["governance: {human_in_the_loop_required: true}", "rules: [{approval: {}}]"])
def test_without_approvers_it_loads_and_warns(text: str) -> None:
    loaded = parse([DocumentFile("p.yaml", text.encode())])
    assert any("meshd approvals key NAME" in one for one in loaded.warnings)


@pytest.mark.parametrize(
    ("text", "tokens", "microdollars"),
    [
        ("governance: {max_tokens_per_workflow: 50k, human_in_the_loop_required: true}", 25_000, None),
        ("governance: {max_dollars_per_workflow: 4, human_in_the_loop_required: true}", None, 2_000_000),
        ("governance: {human_in_the_loop_required: true}", None, None),
        ("governance: {human_in_the_loop_required: true}\nrules: [{match: {kind: llm}, budget: {tokens: 8}}]", 4, None),
        (
            (
                "governance: {max_tokens_per_workflow: 50k, human_in_the_loop_required: true}\n"
                "approvals: {above_tokens: 7, above_dollars: 2}"
            ),
            7,
            2_000_000,
        ),
    ],
)
def test_the_short_form_asks_above_half_of_the_budget(text: str, tokens: int, microdollars: int) -> None:
    loaded = parse([DocumentFile("p.yaml", (HEAD + text).encode())])
    approval = loaded.plan(Target(Kind.LLM, "openai", "m"), "a", "chat").approval
    assert approval is not None
    assert approval.is_short
    assert (approval.above_tokens, approval.above_dollars) == (tokens, microdollars)
