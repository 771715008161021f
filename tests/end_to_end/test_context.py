"""One workflow over agents, sidecars and hops; what is forged, expired or foreign is refused."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meshd.filters.minting import mint_run
from meshd.mesh_key import MeshKeys
from meshd_sdk import context as codec
from tests.end_to_end.agents import Agent, call, innermost
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTEXT = "x-meshd-context"
TRACE = "00-" + "a1" * 16 + "-" + "b2" * 8 + "-01"


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    made = [Agent() for _ in range(3)]
    yield made
    for one in made:
        one.close()


def document(agent: str, provider: Provider, more: str = "", limits: str = "hops: 16") -> str:
    return (
        f"agent: {agent}\nlimits: {{{limits}, turns: {{ladder: note}}}}\nupstreams:\n"
        f'  llm: {{url: "{provider.url}", kind: llm, dialect: openai}}\n'
        f'  host: {{url: "{provider.url}", kind: host}}\n'
        f'  tool: {{url: "{provider.url}", kind: tool}}\n{more}'
        "rules:\n  - {name: purse, match: {kind: llm}, budget: {tokens: 100000}}\n"
    )


def one_daemon(agents: list[Agent], provider: Provider, limits: str = "hops: 16") -> str:
    names = ("researcher", "writer", "critic")
    more = "".join(f'  {name}: {{url: "{one.url}", kind: agent}}\n' for name, one in zip(names, agents, strict=True))
    return document("researcher", provider, more, limits)


def read(sidecar: Sidecar, token: str) -> codec.Context:
    """What a token says, by the sidecar's own key."""
    return codec.verify(token.encode(), MeshKeys(sidecar.home / "mesh.key").ring, now_s=time.time()).context


def test_three_agents_over_one_daemon_are_one_workflow(
    sidecar: Sidecar, agents: list[Agent], provider: Provider
) -> None:
    base = sidecar.start(one_daemon(agents, provider)).url
    key = f"sk-{uuid.uuid4().hex}"
    chain = {
        "then": [f"{base}/critic/run", f"{base}/researcher/run", f"{base}/llm/v1/chat/completions"],
        "extra": {"authorization": "Bearer nobody"},
    }
    status, text = call(f"{base}/writer/run", {"x-meshd-workflow": "task-1", "authorization": f"Bearer {key}"}, chain)
    assert status == 200
    assert innermost(text)[0] == 200, text
    contexts = [read(sidecar, one.seen[0][CONTEXT]) for one in (agents[1], agents[2], agents[0])]
    assert [(one.agent, one.hops, one.path) for one in contexts] == [
        ("writer", 1, ("researcher",)),
        ("critic", 2, ("researcher", "writer")),
        ("researcher", 3, ("researcher", "writer", "critic")),
    ]
    assert {one.workflow for one in contexts} == {"task-1"}
    assert {one.account for one in contexts} == {"workflow/task-1"}
    assert list(sidecar.accounts()) == ["workflow/task-1"]


def test_a_ping_pong_is_ended_by_the_hop_limit_to_the_hop(
    sidecar: Sidecar, agents: list[Agent], provider: Provider
) -> None:
    base = sidecar.start(one_daemon(agents, provider, "hops: 7")).url
    turns = {"round": [f"{base}/critic/run", f"{base}/writer/run"]}
    status, text = call(f"{base}/writer/run", {"x-meshd-workflow": "pingpong"}, turns)
    assert status == 200
    status, refusal = innermost(text)
    assert (status, json.loads(refusal)["code"]) == (403, "meshd_hop_limit")
    assert "hop 8" in refusal
    assert len(agents[1].seen) + len(agents[2].seen) == 7
    assert sidecar.metric("meshd_refusals_total", reason="hop_limit") == 1


class Pair:
    """Two sidecars with one mesh key, each beside an agent and a peer of the other."""

    def __init__(
        self, sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider, limits: str = "hops: 16"
    ) -> None:
        self.alpha, self.beta = sidecars("alpha"), sidecars("beta")
        ports = free_port(), free_port()
        key = self.alpha.home.parent / "shared.key"
        for one, other, agent, number in (
            (self.alpha, "beta", agents[0], 0),
            (self.beta, "alpha", agents[1], 1),
        ):
            peer = f'  {other}: {{url: "http://127.0.0.1:{ports[1 - number]}", kind: agent, peer: true}}\n'
            one.start(
                document(one.home.name, provider, peer, limits),
                *("--app", agent.url, "--mesh-key", str(key)),
                MESHD_INBOUND=f"127.0.0.1:{ports[number]}",
            )
        self.keys = MeshKeys(key)

    def read(self, token: str) -> codec.Context:
        return codec.verify(token.encode(), self.keys.ring, now_s=time.time()).context


def test_two_sidecars_count_each_edge_once(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    pair = Pair(sidecars, agents, provider)
    path = [f"{pair.beta.url}/alpha/run", f"{pair.alpha.url}/beta/run", f"{pair.beta.url}/llm/v1/chat/completions"]
    status, text = call(f"{pair.alpha.url}/beta/run", {"x-meshd-workflow": "over-two"}, {"then": path})
    assert status == 200
    assert innermost(text)[0] == 200, text
    seen = [pair.read(one.seen[number][CONTEXT]) for one, number in ((agents[1], 0), (agents[0], 0), (agents[1], 1))]
    assert [(one.agent, one.hops, one.path) for one in seen] == [
        ("beta", 1, ("alpha",)),
        ("alpha", 2, ("alpha", "beta")),
        ("beta", 3, ("alpha", "beta", "alpha")),
    ]
    assert {one.workflow for one in seen} == {"over-two"}
    assert list(pair.beta.accounts()) == ["workflow/over-two"]


def test_a_ping_pong_over_two_sidecars_ends_too(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    pair = Pair(sidecars, agents, provider, "hops: 5")
    turns = {"round": [f"{pair.beta.url}/alpha/run", f"{pair.alpha.url}/beta/run"]}
    status, text = call(f"{pair.alpha.url}/beta/run", {"x-meshd-workflow": "pingpong"}, turns)
    assert status == 200
    assert innermost(text)[0] == 403
    assert "hop 6" in innermost(text)[1]
    assert len(agents[0].seen) + len(agents[1].seen) == 5


def test_an_inbound_call_without_evidence_opens_a_workflow(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    beta = Pair(sidecars, agents, provider).beta
    for number in range(2):
        assert call(f"{beta.inbound}/run", {"x-meshd-workflow": "theirs"}, {})[0] == 200
        assert CONTEXT in agents[1].seen[number]
    opened = {read_workflow(one[CONTEXT]) for one in agents[1].seen}
    assert len(opened) == 2
    assert not any(b"theirs" in one for one in opened)


def read_workflow(token: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def test_a_stranger_does_not_get_in_with_another_key(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    pair = Pair(sidecars, agents, provider)
    foreign = MeshKeys(pair.alpha.home / "foreign.key")
    for audience in codec.Audience:
        known = codec.Context("wf-1", "alpha", 0, (), account="workflow/wf-1")
        token = codec.mint(known, foreign.ring, audience=audience, expires_s=int(time.time()) + 60, nonce=b"12345678")
        for address in (f"{pair.beta.inbound}/run", f"{pair.beta.url}/llm/v1/chat/completions"):
            status, text = call(address, {CONTEXT: token.decode()}, {})
            assert (status, "context" in text) == (403, True)
    assert agents[1].seen == []


def forged(sidecar: Sidecar) -> dict[str, str]:
    """Tokens of this sidecar's own key, each wrong in one way."""
    keys, now = MeshKeys(sidecar.home / "mesh.key"), int(time.time())
    known = codec.Context("wf-1", "researcher", 1, ("writer",), account="workflow/wf-1")

    def mint(audience: codec.Audience = codec.Audience.LOCAL, life_s: int = 60, **fields: Any) -> str:
        token = codec.mint(
            replace(known, **fields), keys.ring, audience=audience, expires_s=now + life_s, nonce=b"12345678"
        )
        return token.decode()

    good = mint()
    return {
        "expired": mint(life_s=-1),
        "for a peer": mint(codec.Audience.PEER),
        "of a run": mint(codec.Audience.RUN),
        "another agent's": mint(agent="stranger"),
        "one bit": good[:40] + ("A" if good[40] != "A" else "B") + good[41:],
        "cut off": good[:-4],
        "longer": good + "AAAA",
        "padded": good + "=",
        "empty": "",
        "nonsense": "x" * 600,
    }


def test_what_is_forged_or_not_meant_for_the_agent_is_refused(
    sidecar: Sidecar, agents: list[Agent], provider: Provider
) -> None:
    base = sidecar.start(one_daemon(agents, provider)).url
    before = len(provider.seen)
    for what, token in forged(sidecar).items():
        for path in ("/llm/v1/chat/completions", "/host/x", "/writer/run"):
            status, text = call(base + path, {CONTEXT: token}, {})
            assert status == 403, (what, status, text)
            assert "meshd_context_invalid" in text
    for address in ("nonsense", forged(sidecar)["for a peer"]):
        assert call(f"{base}/w/{address}/llm/v1/chat/completions", {}, {})[0] == 403
    assert len(provider.seen) == before
    assert agents[1].seen == []
    assert sidecar.accounts() == {}


def test_nothing_of_ours_reaches_a_provider(sidecar: Sidecar, agents: list[Agent], provider: Provider) -> None:
    base = sidecar.start(one_daemon(agents, provider)).url
    assert call(f"{base}/writer/run", {"x-meshd-workflow": "w"}, {})[0] == 200
    token = agents[1].seen[0][CONTEXT]
    trace = {"traceparent": TRACE, "tracestate": "a=1", "baggage": "user=7"}
    mine = {CONTEXT: token, "x-meshd-anything": "1", "x-meshd-deadline": "60", "X-Meshd-Mixed": "2", **trace}
    for path in ("/llm/v1/chat/completions", "/host/x", "/tool/x"):
        marker = uuid.uuid4().hex
        assert call(base + path, {**mine, "x-marker": marker}, {})[0] == 200
        (seen,) = [one for one in provider.seen if one.headers.get("x-marker") == marker]
        names = {name.lower() for name in seen.headers}
        assert not [name for name in names if name.startswith("x-meshd")]
        assert not names & set(trace), f"{path}: the trace stays inside unless the policy says otherwise"
    # To an agent the trace goes, and its context is its own, not the caller's.
    assert call(f"{base}/critic/run", {**mine}, {})[0] == 200
    seen_there = agents[2].seen[0]
    assert seen_there["traceparent"][3:35] == TRACE[3:35]
    assert (seen_there["tracestate"], seen_there["baggage"]) == ("a=1", "user=7")
    assert seen_there[CONTEXT] != token
    assert read(sidecar, seen_there[CONTEXT]).parent[3:35] == TRACE[3:35]
    assert float(seen_there["x-meshd-deadline"]) <= 60
    assert "x-meshd-anything" not in seen_there


def test_the_trace_leaves_where_the_policy_says_so(sidecar: Sidecar, provider: Provider) -> None:
    more = f'  open: {{url: "{provider.url}", kind: host, sends_trace: true}}\n'
    sidecar.start(document("a", provider, more))
    marker = uuid.uuid4().hex
    assert fetch(f"{sidecar.url}/open/x", headers={"traceparent": TRACE, "x-marker": marker})[0] == 200
    (seen,) = [one for one in provider.seen if one.headers.get("x-marker") == marker]
    assert seen.headers["traceparent"] == TRACE


def test_a_deadline_ends_a_call_that_is_under_way(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document("a", provider))
    id = uuid.uuid4().hex
    headers = {"x-meshd-workflow": "w", "x-meshd-deadline": "0.6", "x-act": json.dumps({"id": id, "holds": True})}
    status, text = call(f"{sidecar.url}/llm/v1/chat/completions", headers, {})
    provider.go_on(id)
    assert (status, json.loads(text)["error"]["code"]) == (403, "meshd_deadline")
    status, _ = call(f"{sidecar.url}/llm/v1/chat/completions", {"x-meshd-deadline": "0"}, {})
    assert status == 403


def test_keys_are_rotated_by_changing_their_file(sidecar: Sidecar, agents: list[Agent], provider: Provider) -> None:
    base = sidecar.start(one_daemon(agents, provider)).url
    assert call(f"{base}/writer/run", {"x-meshd-workflow": "w"}, {})[0] == 200
    old = agents[1].seen[0][CONTEXT]
    path = sidecar.home / "mesh.key"
    first = path.read_text()
    replaced = MeshKeys(sidecar.home / "new.key").path.read_text()

    def write(text: str) -> None:
        draft = path.with_suffix(".draft")
        draft.touch(0o600)
        draft.write_text(text)
        draft.replace(path)

    def says(headers: dict[str, str]) -> int:
        return call(f"{base}/host/x", headers, {})[0]

    write(replaced + first)
    until(lambda: "mesh keys were read anew" in sidecar.log)
    assert says({CONTEXT: old}) == 200, "the old key still verifies"
    assert call(f"{base}/writer/run", {CONTEXT: old}, {})[0] == 200
    new = agents[1].seen[-1][CONTEXT]
    write("nonsense\n")
    until(lambda: "mesh.key" in sidecar.log)
    assert says({CONTEXT: new}) == 200, "keys that cannot be read take nothing away"
    write(replaced)
    until(lambda: says({CONTEXT: old}) == 403)
    assert says({CONTEXT: new}) == 200


def test_a_key_that_is_made_where_another_was_named_is_said(
    sidecars: Callable[[str], Sidecar], provider: Provider, tmp_path: Path
) -> None:
    path, words = tmp_path / "secrets" / "mesh.key", "was not there, and was made with a new key, "
    one, other, third = [sidecars(name) for name in ("one", "other", "third")]
    one.start(document("a", provider), "--mesh-key", str(path))
    assert f"{path} {words}{MeshKeys(path).ring.signing.id}: who lacks" in one.log
    other.start(document("a", provider), "--mesh-key", str(path))
    third.start(document("a", provider))
    assert words not in other.log + third.log


def test_the_address_of_a_run_ties_its_calls_together(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document("a", provider))
    keys = MeshKeys(sidecar.home / "mesh.key")
    token = mint_run(keys, workflow="run-9", agent="a", wall_s=time.time(), nonce=b"12345678")
    for _ in range(3):
        assert call(f"{sidecar.url}/w/{token}/llm/v1/chat/completions", {}, {})[0] == 200
    assert list(sidecar.accounts()) == ["workflow/run-9"]
