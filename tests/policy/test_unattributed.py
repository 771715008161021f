"""How many tokens calls without a workflow may spend, where the document does not say."""

from __future__ import annotations

import pytest

from meshd.policy.document import DocumentFile, parse


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ("{}", 100_000),
        ("governance: {max_tokens_per_workflow: 5000}", 5_000),
        ("governance: {max_tokens_per_workflow: 5000}\nlimits: {unattributed_tokens: 70k}", 70_000),
        ("rules: [{name: a, match: {kind: llm}, budget: {tokens: 2000}}]", 2_000),
        ("rules: [{name: a, match: {kind: llm}, budget: {tokens: 2000, per: agent}}]", 100_000),
        ("rules: [{name: a, match: {kind: llm}, budget: {tokens: 2000}, shadow: true}]", 100_000),
        ("rules: [{name: a, match: {kind: llm}, budget: {tokens: 900k}}]", 100_000),
    ],
)
def test_no_more_than_a_workflow_has(document: str, tokens: int) -> None:
    policy = parse([DocumentFile("policy.yaml", document.encode())])
    assert policy.limits.unattributed_tokens == tokens
