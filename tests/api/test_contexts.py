"""ContextService and Mesh: contexts are opened under the policy, read where they were issued, and only narrowed."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.api.contexts import ContextService
from meshd.api.mesh import Mesh
from meshd.filters.turns import Turns
from meshd.mesh_key import MeshKeys
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec
from meshd_sdk.v1 import context_pb2
from tests.api.house import House, house, refusal

if TYPE_CHECKING:
    from pathlib import Path

BESIDE = """
agent: ann
limits: {deadline: 60s}
upstreams:
  bob: {url: "http://127.0.0.1:9", kind: agent}
  eve: {url: "http://127.0.0.1:9", kind: agent, peer: true}
  openai: {url: "http://127.0.0.1:9", kind: llm, dialect: openai}
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_workflow_has_the_account_that_its_header_has(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        context = await one.open("report-42", ceiling_tokens=5000, ceiling_microdollars=7, traceparent=PARENT)
        assert (context.workflow, context.account) == ("report-42", "workflow/report-42")
        assert (context.agent, context.hops, list(context.path)) == ("ann", 0, [])
        assert (context.ceiling_tokens, context.ceiling_microdollars) == (5000, 7)
        assert context.traceparent == PARENT
        assert not context.HasField("deadline")
        assert context.evidence == context_pb2.EVIDENCE_TOKEN
        verified = codec.verify(context.token.encode(), one.mesh.keys.ring, now_s=time.time())
        assert verified.audience is codec.Audience.LOCAL
        assert (verified.context.ceiling, verified.context.account) == (5000, "workflow/report-42")
        fresh, other = await one.open(""), await one.open("")
        assert fresh.workflow != other.workflow
        assert fresh.workflow.startswith("wf-")


async def test_the_nearer_deadline_holds(tmp_path: Path) -> None:
    async with house(tmp_path, BESIDE) as one:
        now_s = time.time()
        for timeout_s, expected_s in ((None, 60), (10, 10), (600, 60)):
            more: dict[str, Any] = {} if timeout_s is None else {"timeout": Duration(seconds=timeout_s)}
            context = await one.open(**more)
            assert context.deadline.ToSeconds() - now_s == pytest.approx(expected_s, abs=5)


async def test_where_nobody_may_name_workflows_nobody_opens_one(tmp_path: Path) -> None:
    async with house(tmp_path, "limits: {names_workflows: false}\n") as one:
        for workflow in ("", "w"):
            ended = await refusal(one.contexts.Open(context_pb2.OpenRequest(workflow=workflow)))
            assert ended.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "names_workflows" in str(ended.details())


@pytest.mark.parametrize(
    ("agent", "is_beside"), [("", True), ("ann", True), ("bob", True), ("eve", False), ("x", False)]
)
async def test_a_context_is_for_an_agent_beside_this_sidecar(tmp_path: Path, agent: str, is_beside: bool) -> None:
    async with house(tmp_path, BESIDE) as one:
        request = one.contexts.Open(context_pb2.OpenRequest(agent=agent))
        if is_beside:
            context = (await request).context
            assert context.agent == (agent or "ann")
            assert one.mesh.read(context.token).agent == context.agent
        else:
            assert (await refusal(request)).code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent": "a b"},
        {"agent": "ä"},
        {"agent": "a" * 65},
        {"workflow": "a/b"},
        {"workflow": "w" * 65},
        {"workflow": "..\n"},
        {"timeout": Duration(seconds=0)},
        {"timeout": Duration(seconds=-1)},
        {"timeout": Duration(seconds=10**11)},
        {"timeout": Duration(seconds=1, nanos=2_000_000_000)},
        {"ceiling_tokens": -1},
        {"ceiling_tokens": 2**62},
        {"ceiling_tokens": 1, "ceiling_microdollars": -5},
        {"traceparent": "00-nonsense"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-00"},
    ],
)
async def test_what_is_no_opening_names_its_field(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with house(tmp_path) as one:
        ended = await refusal(one.contexts.Open(context_pb2.OpenRequest(**wrong)))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert any(field in str(ended.details()) for field in wrong)


async def test_what_a_token_says_is_read(tmp_path: Path) -> None:
    async with house(tmp_path, BESIDE) as one:
        opened = await one.open("w", agent="bob", ceiling_tokens=9)
        assert (await one.contexts.Read(context_pb2.ReadRequest(token=opened.token))).context == opened


async def tokens(one: House) -> dict[str, str]:
    """Tokens that must not be taken."""
    good = await one.open("w")
    ring, now_s = one.mesh.keys.ring, int(time.time())
    context = codec.Context("w", "ann", account="workflow/w")
    foreign = codec.Keyring([codec.Key("k0000", b"x" * 32)])

    def minted(ring: codec.Keyring, audience: codec.Audience, expires_s: int, of: codec.Context = context) -> str:
        return codec.mint(of, ring, audience=audience, expires_s=expires_s, nonce=bytes(8)).decode()

    flipped = ("B" if good.token[-20] == "A" else "A").join((good.token[:-20], good.token[-19:]))
    return {
        "empty": "",
        "words": "give me a budget",
        "cut": good.token[:-1],
        "altered": flipped,
        "too long": good.token + "A" * 600,
        "not ASCII": good.token + "ä",
        "another mesh's": minted(foreign, codec.Audience.LOCAL, now_s + 60),
        "expired": minted(ring, codec.Audience.LOCAL, now_s - 1),
        "a peer's": minted(ring, codec.Audience.PEER, now_s + 60),
        "a run's": minted(ring, codec.Audience.RUN, now_s + 60),
        "another agent's": minted(ring, codec.Audience.LOCAL, now_s + 60, dataclasses.replace(context, agent="zoe")),
    }


async def test_tokens_that_must_not_be_taken_are_not_by_any_service(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        for name, token in (await tokens(one)).items():
            for method, more in (
                ("ContextService/Read", {}),
                ("ContextService/Narrow", {}),
                ("BudgetService/GetBalance", {}),
                ("BudgetService/Delegate", {"delegation_id": "d", "tokens": 5}),
                ("BudgetService/Reclaim", {"delegation_id": "d"}),
                ("BudgetService/ReportUsage", {"report_id": "r", "model": "m"}),
                ("TraceService/Record", {}),
                ("TraceService/List", {}),
            ):
                status, said = await one.ask(method, {"token": token, **more})
                assert (status, said["code"]) == (401, "unauthenticated"), (name, method, said)
                assert ("open a workflow" in said["message"]) == (name == "empty")


async def test_a_key_that_was_taken_away_verifies_nothing_more(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        context = await one.open()
        path = one.mesh.keys.path
        path.write_text("knew AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
        assert one.mesh.keys.reload()
        assert (await one.ask("ContextService/Read", {"token": context.token}))[0] == 401


async def test_a_token_for_a_name_of_ones_own(tmp_path: Path) -> None:
    async with house(tmp_path, BESIDE) as one:
        context = codec.Context("w", "ann", 3, ("zed",), account="workflow/w")
        token = one.mesh.issue(context, "bob")
        assert one.mesh.read(token, "bob") == dataclasses.replace(context, agent="bob")
        with pytest.raises(Refused) as wrong:
            one.mesh.read(token, "ann")
        assert wrong.value.reason is Reason.CONTEXT_INVALID
        long = dataclasses.replace(context, path=tuple(f"agent-with-a-long-name-{at}" for at in range(40)))
        with pytest.raises(Refused) as too_long:
            one.mesh.issue(long, "")
        assert too_long.value.reason is Reason.HOP_LIMIT


# ------------------------------------------------------------------ narrowing


async def test_a_context_is_narrowed(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        opened = await one.open("w", ceiling_tokens=100, timeout=Duration(seconds=50))
        request = context_pb2.NarrowRequest(
            token=opened.token, hops=4, timeout=Duration(seconds=20), ceiling_tokens=10, ceiling_microdollars=3
        )
        narrowed = (await one.contexts.Narrow(request)).context
        assert (narrowed.hops, narrowed.ceiling_tokens, narrowed.ceiling_microdollars) == (4, 10, 3)
        assert narrowed.deadline.ToSeconds() < opened.deadline.ToSeconds()
        assert (narrowed.workflow, narrowed.account) == (opened.workflow, opened.account)
        same = (await one.contexts.Narrow(context_pb2.NarrowRequest(token=opened.token))).context
        same.token = opened.token
        assert same == opened


async def test_memory_is_narrowed_to_what_is_listed(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        held = ("mesh://state/a@1", "mesh://state/b@2")
        token = one.mesh.issue(codec.Context("w", "ann", account="workflow/w", memory=held), "").decode()

        async def narrow(*memory: str, lists: bool) -> Any:
            request = context_pb2.NarrowRequest(token=token, memory=memory, keeps_memory_listed=lists)
            return await one.contexts.Narrow(request)

        assert tuple((await narrow(lists=False)).context.memory) == held
        assert tuple((await narrow(held[1], lists=True)).context.memory) == held[1:]
        assert tuple((await narrow(lists=True)).context.memory) == ()
        ended = await refusal(narrow("mesh://state/c@1", lists=True))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT


LESS = st.fixed_dictionaries(
    {},
    optional={
        "hops": st.integers(0, 2000),
        "timeout": st.integers(-5, 200).map(lambda seconds: Duration(seconds=seconds)),
        "ceiling_tokens": st.integers(-5, 300),
        "ceiling_microdollars": st.integers(-5, 300),
    },
)


@given(chain=st.lists(LESS, min_size=1, max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_chain_of_narrowings_allows_more(tmp_path: Path, chain: list[dict[str, Any]]) -> None:
    """Attenuation: whatever is asked for, what comes back allows a subset, or nothing comes back."""
    nothing: Any = None
    chain_of: Any = SimpleNamespace(per_call=[Turns()])
    proxy: Any = SimpleNamespace(policy=SimpleNamespace(agent="ann", upstreams={}))
    mesh = Mesh(
        proxy=proxy,
        chain=chain_of,
        keys=MeshKeys(tmp_path / "k"),
        ledger=nothing,
        telemetry=nothing,
        wall_clock=lambda: 1e9,
    )
    service = ContextService(mesh)
    context = codec.Context("w", "ann", 1, (), 1e9 + 100, "workflow/w", 200, "", (), 150)
    token = mesh.issue(context, "").decode()
    for less in chain:
        reasons: list[Reason] = []
        try:
            found = asyncio.run(service.narrow(context_pb2.NarrowRequest(token=token, **less)))
        except Refused as refused:
            reasons.append(refused.reason)
        if reasons:
            assert reasons == [Reason.MALFORMED]
            continue
        token = found.context.token
        now = mesh.read(token)
        assert now.hops >= context.hops
        assert now.deadline_s is not None
        assert context.deadline_s is not None
        assert now.deadline_s <= context.deadline_s
        assert now.ceiling is not None
        assert context.ceiling is not None
        assert now.ceiling <= context.ceiling
        assert now.ceiling_microdollars is not None
        assert context.ceiling_microdollars is not None
        assert now.ceiling_microdollars <= context.ceiling_microdollars
        assert (now.workflow, now.account, now.agent, now.path) == ("w", "workflow/w", "ann", ())
        context = now
