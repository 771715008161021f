"""A child may do what its parent may, or less: over chains of sidecars whose agents pass tokens on, or nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Direction, Evidence
from meshd.dialects.table import DIALECTS
from meshd.filters.context import Context
from meshd.filters.minting import Minting, moved
from meshd.policy.addressing import APP
from meshd.refusal import Refused
from meshd_sdk import context as codec
from meshd_sdk.context import Audience
from tests.filters.calls import NOW_S, SUCCESS, WALL_S, Bytes, Keys, call, policy

if TYPE_CHECKING:
    from meshd.call import Call, Headers

AGENTS = ("a", "b", "c")
POLICIES = {
    agent: policy(
        upstreams=f"agent: {agent}\nlimits: {{hops: 1000}}\nupstreams:\n"
        "  openai: {url: 'https://api.openai.com', kind: llm, dialect: openai}\n"
        + "".join(
            f"  {one}: {{url: 'http://127.0.0.1:9', kind: agent, peer: true}}\n" for one in AGENTS if one != agent
        )
    )
    for agent in AGENTS
}
WAYS = ("token", "alone", "quoted")
steps = st.lists(
    st.tuples(
        st.sampled_from(WAYS),
        st.none() | st.integers(0, 40),
        st.none() | st.integers(0, 5000),
        st.booleans(),
        st.sampled_from((b"", b"wf-other", b"wf:victim")),
    ),
    min_size=1,
    max_size=6,
)


def is_within(child: codec.Context, parent: codec.Context) -> bool:
    """Say whether a context allows nothing that another does not."""

    def is_lower(mine: float | None, theirs: float | None) -> bool:
        return theirs is None or (mine is not None and mine <= theirs)

    return (
        (child.workflow, child.account) == (parent.workflow, parent.account)
        and child.hops >= parent.hops
        and child.path[: len(parent.path)] == parent.path
        and is_lower(child.deadline_s, parent.deadline_s)
        and is_lower(child.ceiling, parent.ceiling)
        and is_lower(child.ceiling_microdollars, parent.ceiling_microdollars)
        and set(child.memory) <= set(parent.memory)
    )


def _claims(hops: int | None, seconds: int | None, name: bytes) -> Headers:
    claims: Headers = [] if hops is None else [(codec.HEADER_HOPS, b"%d" % hops)]
    claims += [] if seconds is None else [(codec.HEADER_DEADLINE, b"%d" % seconds)]
    # Beside a token it is passed over; without one it is what the agent says, and weaker only than that.
    return claims + ([(codec.HEADER_WORKFLOW, name)] if name else [])


def _asked(made: Call, task: str) -> Call:
    made.dialect = DIALECTS["openai"]
    made.body = json.dumps({"model": "m", "messages": [{"role": "user", "content": task}]}).encode()
    made.ask = made.dialect.read("chat", made.body)
    return made


@given(
    steps, st.none() | st.integers(1, 10_000), st.none() | st.integers(1, 9000), st.none() | st.integers(1, 1000)
)  # fmt: skip
def test_a_childs_permissions_are_a_subset_of_its_parents(
    chain: list[tuple[str, int | None, int | None, bool, bytes]],
    ceiling: int | None,
    money: int | None,
    seconds: int | None,
) -> None:
    """Whatever way the context is known by, and whatever agents claim: hops rise by one an edge, the rest shrinks."""
    keys = Keys()
    sides = {agent: Context(keys, Bytes()) for agent in AGENTS}  # type: ignore[arg-type]
    if money is not None and ceiling is None:
        ceiling = codec.NO_CEILING
    deadline_s = None if seconds is None else WALL_S + seconds
    known = codec.Context("wf", "root", 0, (), deadline_s, "workflow/wf", ceiling, ceiling_microdollars=money)
    held = codec.mint(known, keys.ring, audience=Audience.PEER, expires_s=int(WALL_S) + 9999, nonce=b"n" * 8)
    at = "a"
    for number, (way, hops, left_s, is_busy, name) in enumerate(chain):
        now_s = NOW_S + number
        side, of = sides[at], POLICIES[at]
        task = f"Write about the harbour number {number} of the island."
        others: list[Any] = []
        if is_busy and way != "alone":
            others.append(side.admit(call(APP, direction=Direction.INBOUND, of=of, now_s=now_s)))
        came = call(APP, headers=[(codec.HEADER_CONTEXT, held)], direction=Direction.INBOUND, of=of, now_s=now_s)
        live: Any = side.admit(came)
        live.hear(json.dumps({"task": task}).encode())
        assert came.context is not None
        assert is_within(came.context, known)
        claims = _claims(hops, left_s, name if way == "token" else b"")
        if way == "token":
            came.upstream = of.upstreams["openai"]
            claims.append((codec.HEADER_CONTEXT, dict(side.forward_headers(came))[codec.HEADER_CONTEXT]))
        callee = AGENTS[(AGENTS.index(at) + 1) % len(AGENTS)]
        made = call(callee, headers=claims, of=of, now_s=now_s + 0.1)
        side.admit(_asked(made, task) if way == "quoted" else made)
        assert made.evidence is {"token": Evidence.TOKEN, "alone": Evidence.ALONE, "quoted": Evidence.QUOTED}[way]
        assert made.context is not None
        assert is_within(made.context, came.context)
        try:
            held = dict(side.forward_headers(made))[codec.HEADER_CONTEXT]
        except Refused:
            return
        known = codec.verify(held, keys.ring, now_s=WALL_S).context
        assert is_within(known, made.context)
        assert known.path == (*came.context.path, at)
        for one in (live, *others):
            one.settle(SUCCESS)
        at = callee


@given(st.binary(max_size=64), st.sampled_from([b"wf-b", b"workflow/wf-b"]))
def test_an_agent_cannot_choose_anothers_workflow_by_what_it_invents(junk: bytes, name: bytes) -> None:
    """A token that it made up is refused; what it quotes of nobody's ties to nobody."""
    keys = Keys()
    side = Context(keys, Bytes())  # type: ignore[arg-type]
    of = POLICIES["a"]
    for workflow in ("wf-a", "wf-b"):
        known = codec.Context(workflow, "root", account="workflow/" + workflow)
        held = codec.mint(
            known, keys.ring, audience=Audience.PEER, expires_s=int(WALL_S) + 9, nonce=workflow.encode()[-4:] * 2
        )  # fmt: skip
        side.admit(call(APP, headers=[(codec.HEADER_CONTEXT, held)], direction=Direction.INBOUND, of=of))
    made = call("openai", headers=[(codec.HEADER_CONTEXT, junk)], of=of)
    try:
        side.admit(made)
    except Refused:
        assert made.context is None
    else:
        raise AssertionError("a token of nobody's was taken")
    made = _asked(call("openai", of=of, now_s=NOW_S + 1), f"{name.decode()} {junk.hex()}")
    side.admit(made)
    assert made.evidence is Evidence.NONE


def test_another_agent_gets_the_references_that_are_within_its_scope() -> None:
    plan, own, theirs, mesh = (
        f"mesh://state/{key}@1" for key in ("workflow/w/plan", "agent/ann/x", "agent/bob/x", "mesh/x")
    )
    context = codec.Context("w", "ann", memory=(plan, own, theirs, mesh))
    of, closed = policy(), policy("state: {mesh_readers: [ann]}\n")
    assert moved(context, "bob", 1, ("ann",), policy=of).memory == (plan, theirs, mesh)
    assert moved(context, "bob", 1, ("ann",), policy=closed).memory == (plan, theirs)
    assert moved(context, "ann", 1, (), policy=closed).memory == (plan, own, mesh)
    assert moved(context, "ann", 1, ()).memory == context.memory  # whoever is there judges it
    assert moved(codec.Context("other", "ann", memory=(plan,)), "bob", 1, ("ann",), policy=of).memory == ()


def test_what_is_minted_for_a_callee_holds_no_more() -> None:
    keys = Keys()
    plan, own, mesh = (f"mesh://state/{key}@1" for key in ("workflow/w/plan", "agent/ann/x", "mesh/x"))
    context = codec.Context("w", "ann", account="workflow/w", memory=(plan, own, mesh))
    minting = Minting(keys, Bytes())  # type: ignore[arg-type]
    one = call(of=policy("state: {mesh_readers: [ann]}\n"))
    token = minting.token(one, context, Audience.LOCAL, "bob")
    sent, _, _ = codec.verify(token, keys.ring, now_s=one.wall_s)
    assert (sent.agent, sent.path, sent.memory) == ("bob", ("ann",), (plan,))
