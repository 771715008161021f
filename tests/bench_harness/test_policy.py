"""The policy that is timed: it must load as it stands, and set every filter that the benchmark claims to run."""

import json
from pathlib import Path

import pytest

from bench.peers import meshd as ours
from bench.peers.contract import Place, Wire
from meshd.call import Kind, Target
from meshd.mesh_key import MeshKeys
from meshd.policy.document import load
from meshd_sdk.context import Audience, verify


def place(folder: Path) -> Place:
    ca = folder / "ca.pem"
    ca.write_text("")
    return Place(folder, {Wire.HTTP: 1111, Wire.TLS: 2222, Wire.H2: 3333}, ca, 0)


@pytest.mark.parametrize("rules", [1, 100, 1000])
def test_a_call_of_the_benchmark_meets_every_filter(tmp_path: Path, rules: int) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps(ours.policy(place(tmp_path), rules=rules)))
    policy = load([file])
    plan = policy.plan(Target(Kind.LLM, "llm", ours.MODEL), ours.AGENT, "chat")
    assert plan.budgets
    assert plan.budgets[0].tokens == ours.TOKENS
    assert plan.budgets[0].mode == "fast"
    assert plan.allow is not None
    assert plan.breaker is not None
    assert plan.retry is not None
    assert len(policy.rules) == rules
    assert {upstream.connections_max for upstream in policy.upstreams.values()} == {4096}


def test_a_grpc_call_meets_every_filter_that_has_something_to_judge(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps(ours.policy(place(tmp_path))))
    plan = load([file]).plan(Target(Kind.AGENT, "unary"), ours.AGENT, "POST /bench.Echo/Unary")
    assert plan.budgets
    assert plan.allow is not None
    assert plan.allow.targets is not None
    assert plan.breaker is not None
    assert plan.retry is not None


def test_tokens_are_those_that_the_sidecar_would_issue(tmp_path: Path) -> None:
    key = tmp_path / "mesh.key"
    ring = MeshKeys(key).ring
    tokens = ours.tokens(key, 3)
    assert len(set(tokens)) == 3
    for number, token in enumerate(tokens):
        verified = verify(token.encode(), ring, now_s=0.0)
        assert verified.audience is Audience.LOCAL
        assert verified.context.agent == ours.AGENT
        assert verified.context.account == f"workflow/bench-{number}"
