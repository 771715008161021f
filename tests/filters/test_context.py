"""Context: what the agent shows is verified, what it invents is refused, what it lacks is charged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Call, Direction, Evidence, Headers, Kind
from meshd.filters import context as context_filter
from meshd.filters import minting
from meshd.filters.context import Context, is_stripped
from meshd.filters.hop_limit import HopLimit
from meshd.filters.minting import TOKEN_LIFE_S, mint_run
from meshd.policy.compiled import Policy
from meshd.refusal import Reason, Refused
from meshd.span import Span
from meshd.telemetry.telemetry import Telemetry
from meshd.upstream import Upstream
from meshd_sdk import context as codec
from meshd_sdk.context import Audience
from tests.filters.calls import UPSTREAMS, WALL_S, Bytes, Keys, call, policy

TRACE = b"00-" + b"a1" * 16 + b"-" + b"b2" * 8 + b"-01"
IN, OUT = Direction.INBOUND, Direction.OUTBOUND


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def here(keys: Keys) -> Context:
    return Context(keys, Bytes())  # type: ignore[arg-type]


def token(keys: Keys, audience: Audience = Audience.LOCAL, expires_s: float = WALL_S + 60, **fields: object) -> bytes:
    known = codec.Context("wf-1", "researcher", 2, ("a", "b"), account="workflow/wf-1")
    return codec.mint(
        replace(known, **fields),  # type: ignore[arg-type]
        keys.ring,
        audience=audience,
        expires_s=int(expires_s),
        nonce=b"12345678",
    )


def shown(value: bytes) -> Headers:
    return [(b"accept", b"*/*"), (codec.HEADER_CONTEXT, value)]


def refused(here: Context, made: Call) -> Refused:
    with pytest.raises(Refused) as caught:
        here.admit(made)
    assert made.context is None
    return caught.value


def sent(here: Context, made: Call) -> dict[bytes, bytes]:
    headers = here.forward_headers(made)
    assert len({name for name, _ in headers}) == len(headers)
    return dict(headers)


def read(keys: Keys, headers: dict[bytes, bytes]) -> codec.Verified:
    return codec.verify(headers[codec.HEADER_CONTEXT], keys.ring, now_s=WALL_S)


# ---------------------------------------------------------------------- outbound evidence


def test_the_agents_own_token_is_its_context(here: Context, keys: Keys) -> None:
    for _ in range(2):  # the second time from memory
        made = call(headers=shown(token(keys)))
        here.admit(made)
        assert made.context == codec.Context("wf-1", "researcher", 2, ("a", "b"), account="workflow/wf-1")
        assert (made.agent, made.evidence) == ("researcher", Evidence.TOKEN)
    assert "wf-1 (token), hop 2, a > b > researcher" in here.explain(made)


def test_without_evidence_all_calls_of_a_day_share_one_account(here: Context) -> None:
    first, second, tomorrow = call(), call("writer"), call(wall_s=WALL_S + 86_400)
    for made in (first, second, tomorrow):
        here.admit(made)
        assert made.context is not None
        assert (made.evidence, made.context.workflow, made.context.hops) == (Evidence.NONE, "", 0)
    assert first.context is second.context
    assert first.context is not None
    assert first.context.account == "unattributed/researcher/2026-09-21"
    assert tomorrow.context is not None
    assert tomorrow.context.account == "unattributed/researcher/2026-09-22"


def test_a_caller_names_its_workflow_where_the_policy_lets_it(here: Context) -> None:
    made = call(headers=[(codec.HEADER_WORKFLOW, b"nightly:7")])
    here.admit(made)
    assert made.context == codec.Context("nightly:7", "researcher", account="workflow/nightly:7")
    assert made.evidence is Evidence.NAMED
    made = call(headers=[(codec.HEADER_WORKFLOW, b"nightly:7")], of=policy("limits: {names_workflows: false}"))
    here.admit(made)
    assert made.evidence is Evidence.NONE


@pytest.mark.parametrize("name", [b"", b"a b", b"a\n", b"a/b", b"x" * 65, b"\xc3\xa4", b"a,b", b"-1\x00"])
@pytest.mark.parametrize("direction", Direction)
def test_a_malformed_name_is_refused_everywhere(here: Context, keys: Keys, name: bytes, direction: Direction) -> None:
    for headers in ([], shown(token(keys))):
        made = call(headers=[*headers, (codec.HEADER_WORKFLOW, name)], direction=direction)
        assert refused(here, made).reason is Reason.MALFORMED


def test_a_run_address_is_a_context(here: Context, keys: Keys) -> None:
    run = mint_run(keys, workflow="run-1", agent="demo", wall_s=WALL_S, nonce=b"n" * 8, ceiling=500)  # type: ignore[arg-type]
    made = call(run_token=run)
    here.admit(made)
    assert made.context == codec.Context("run-1", "demo", account="workflow/run-1", ceiling=500)
    assert (made.evidence, made.agent) == (Evidence.RUN_ADDRESS, "demo")
    assert set(run) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    with pytest.raises(ValueError):
        mint_run(keys, workflow="a b", agent="demo", wall_s=WALL_S, nonce=b"n" * 8)  # type: ignore[arg-type]


def test_a_token_and_a_run_address_must_agree(here: Context, keys: Keys) -> None:
    run = mint_run(keys, workflow="wf-1", agent="researcher", wall_s=WALL_S, nonce=b"n" * 8)  # type: ignore[arg-type]
    made = call(headers=shown(token(keys)), run_token=run)
    here.admit(made)
    assert made.context is not None
    assert (made.context.hops, made.evidence) == (2, Evidence.TOKEN)
    made = call(headers=shown(token(keys, workflow="wf-2", account="workflow/wf-2")), run_token=run)
    assert refused(here, made).reason is Reason.CONTEXT_INVALID


def test_the_token_of_an_agent_beside_us_is_of_our_issue_and_others_are_not(here: Context, keys: Keys) -> None:
    made = call(headers=shown(token(keys, agent="writer")))
    here.admit(made)
    assert made.agent == "writer"
    for other in ("far", "billing", "stranger"):
        assert "was issued to the agent" in refused(here, call(headers=shown(token(keys, agent=other)))).message


def test_a_token_for_another_audience_is_refused(here: Context, keys: Keys) -> None:
    run = mint_run(keys, workflow="wf-1", agent="researcher", wall_s=WALL_S, nonce=b"n" * 8)  # type: ignore[arg-type]
    wrong = [
        call(headers=shown(token(keys, Audience.PEER))),
        call(headers=shown(run.encode())),
        call(run_token=token(keys).decode()),
        call(run_token=token(keys, Audience.PEER).decode()),
        call(headers=shown(token(keys)), direction=IN),
        call(headers=shown(run.encode()), direction=IN),
    ]
    for made in wrong * 2:  # the second time from memory
        assert refused(here, made).reason is Reason.CONTEXT_INVALID


def test_where_a_token_was_shown_first_changes_nothing(here: Context, keys: Keys) -> None:
    peers = token(keys, Audience.PEER, agent="caller", path=("caller",), hops=0)
    refused(here, call(headers=shown(peers)))
    refused(here, call(run_token=peers.decode()))
    for _ in range(3):
        made = call(headers=shown(peers), direction=IN)
        here.admit(made)
        assert made.context is not None
        assert (made.context.hops, made.context.agent, made.context.path) == (1, "researcher", ("caller",))


# ---------------------------------------------------------------------- forged, stale, doubled


@pytest.mark.parametrize("direction", Direction)
def test_what_does_not_verify_is_refused_and_never_nothing(here: Context, keys: Keys, direction: Direction) -> None:
    good = token(keys, Audience.PEER if direction is IN else Audience.LOCAL)
    foreign = token(Keys(b"\x02" * 32))
    forged = token(Keys(b"\x01" * 31 + b"\x02"))
    stale = token(keys, expires_s=WALL_S)
    for bad, word in (
        (foreign, "key"),
        (forged, "signature"),
        (stale, "expired"),
        (b"", "version"),
        (b"\xff", "base64"),
    ):
        assert word in refused(here, call(headers=shown(bad), direction=direction)).message
    for bad in (good[:-1], good + b"A", good[:5] + b"A" + good[6:], good.upper(), b"0", b"null", b"-1", b"x" * 4096):
        made = call(headers=shown(bad), direction=direction)
        assert refused(here, made).reason is Reason.CONTEXT_INVALID
    for address in ("x", "\u00e4", "../..", "A" * 600):
        assert refused(here, call(run_token=address)).reason is Reason.CONTEXT_INVALID


def test_a_remembered_token_still_expires(here: Context, keys: Keys) -> None:
    value = token(keys, expires_s=WALL_S + 60)
    here.admit(call(headers=shown(value)))
    assert "expired" in refused(here, call(headers=shown(value), wall_s=WALL_S + 60)).message


def test_a_key_that_was_taken_away_no_longer_verifies_what_is_remembered(here: Context, keys: Keys) -> None:
    value = token(keys)
    here.admit(call(headers=shown(value)))
    keys.turn(b"\x02" * 32, b"\x01" * 32)
    here.admit(call(headers=shown(value)))
    keys.turn(b"\x02" * 32)
    assert "key" in refused(here, call(headers=shown(value))).message


@pytest.mark.parametrize(
    "name", [codec.HEADER_CONTEXT, codec.HEADER_WORKFLOW, codec.HEADER_HOPS, codec.HEADER_DEADLINE]
)
def test_a_field_of_ours_stands_once(here: Context, name: bytes) -> None:
    assert "more than once" in refused(here, call(headers=[(name, b"1"), (b"a", b"b"), (name, b"1")])).message


@pytest.mark.parametrize(
    "value", [b"-1", b"abc", b"1" + b"0" * 30, b"", b" 1", b"1.0", b"0x1", b"01", b"1001", b"1,2", b"+1"]
)
@pytest.mark.parametrize("direction", Direction)
def test_a_malformed_hop_count_is_refused_never_zero(here: Context, value: bytes, direction: Direction) -> None:
    made = call(headers=[(codec.HEADER_HOPS, value)], direction=direction)
    assert refused(here, made).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "value", [b"-1", b"abc", b"1" + b"0" * 30, b"", b"1e3", b"inf", b"nan", b"1.", b".5", b"1s", b"1.0001"]
)
def test_a_malformed_deadline_is_refused(here: Context, value: bytes) -> None:
    assert refused(here, call(headers=[(codec.HEADER_DEADLINE, value)])).reason is Reason.MALFORMED


@given(st.lists(st.tuples(st.sampled_from(sorted(context_filter._READ)), st.binary(max_size=60)), max_size=4))
def test_nonsense_under_our_names_is_a_context_or_a_refusal(headers: Headers) -> None:
    here = Context(Keys(), Bytes())  # type: ignore[arg-type]
    for direction in Direction:
        made = call(headers=headers, direction=direction)
        try:
            here.admit(made)
        except Refused as error:
            assert error.reason in (Reason.MALFORMED, Reason.CONTEXT_INVALID)  # noqa: PT017
        else:
            assert made.context is not None


# ---------------------------------------------------------------------- attenuation by the caller


def test_a_caller_can_narrow_its_context_and_not_widen_it(here: Context, keys: Keys) -> None:
    value = token(keys, deadline_s=WALL_S + 10)
    for hops, deadline, expected in (
        (b"1", b"20", (2, WALL_S + 10)),
        (b"5", b"2.5", (5, WALL_S + 2.5)),
        (b"0", b"0", (2, WALL_S)),
    ):
        made = call(headers=[*shown(value), (codec.HEADER_HOPS, hops), (codec.HEADER_DEADLINE, deadline)])
        here.admit(made)
        assert made.context is not None
        assert (made.context.hops, made.context.deadline_s) == expected
        assert made.context.workflow == "wf-1"


# ---------------------------------------------------------------------- inbound


def test_an_inbound_call_without_a_token_opens_a_workflow_whatever_it_names(here: Context) -> None:
    workflows = set()
    for headers in ([], [(codec.HEADER_WORKFLOW, b"somebodys")]):
        made = call("app", headers=headers, direction=IN)
        here.admit(made)
        assert made.context is not None
        assert made.evidence is Evidence.OPENED
        assert made.context.account == "workflow/" + made.context.workflow
        assert made.context.hops == 0
        workflows.add(made.context.workflow)
    assert len(workflows) == 2
    assert "somebodys" not in workflows


# ---------------------------------------------------------------------- what is sent on


def test_one_increment_an_edge_directly_and_through_a_peer(here: Context, keys: Keys) -> None:
    direct = call("writer", headers=shown(token(keys)))
    here.admit(direct)
    verified = read(keys, sent(here, direct))
    expected = codec.Context("wf-1", "writer", 3, ("a", "b", "researcher"), account="workflow/wf-1")
    assert verified == (expected, Audience.LOCAL, int(WALL_S) + TOKEN_LIFE_S)

    through = call("far", headers=shown(token(keys)))
    here.admit(through)
    on_the_way = sent(here, through)
    assert read(keys, on_the_way).audience is Audience.PEER
    there = Context(keys, Bytes(), agent="writer")  # type: ignore[arg-type]
    arrived = call("app", headers=list(on_the_way.items()), direction=IN)
    there.admit(arrived)
    assert arrived.context == expected
    handed = read(keys, sent(there, with_app(arrived)))
    assert (handed.context, handed.audience) == (expected, Audience.LOCAL)


def with_app(made: Call) -> Call:
    made.upstream = Upstream(
        name="app",
        kind=Kind.HOST,
        url="http://127.0.0.1:9000",
        scheme="http",
        host="127.0.0.1",
        port=9000,
        base_path="",
        authority=b"127.0.0.1:9000",
        dialect="plain",
        sends_trace=True,
    )
    return made


@pytest.mark.parametrize("target", ["openai", "claude", "billing", "web"])
def test_the_token_goes_to_nobody_but_agents_and_peers(here: Context, keys: Keys, target: str) -> None:
    made = call(target, headers=[*shown(token(keys)), (b"traceparent", TRACE), (b"baggage", b"a=1")])
    here.admit(made)
    assert sent(here, made) == {}


def test_a_peer_of_any_kind_gets_a_token_for_peers(here: Context, keys: Keys) -> None:
    of = policy(upstreams=UPSTREAMS.replace('9003", kind: tool', '9003", kind: tool, peer: true'))
    made = call("billing", headers=shown(token(keys)), of=of)
    here.admit(made)
    assert read(keys, sent(here, made)).audience is Audience.PEER


def test_what_is_left_of_the_time_goes_with_the_token(here: Context, keys: Keys) -> None:
    made = call("writer", headers=shown(token(keys, deadline_s=WALL_S + 9.25)))
    here.admit(made)
    assert sent(here, made)[codec.HEADER_DEADLINE] == b"9.250"


def test_one_token_serves_a_second_and_each_callee_has_its_own(here: Context, keys: Keys) -> None:
    def minted(now_s: float, target: str = "writer", span: object = None) -> bytes:
        made = call(target, headers=shown(token(keys)), now_s=now_s)
        here.admit(made)
        made.span = span
        return sent(here, made)[codec.HEADER_CONTEXT]

    first = minted(0.0)
    assert minted(0.9) == first
    assert minted(0.9, "far") != first
    assert minted(1.1) != first
    span = Span(is_sampled=True)
    with_span = minted(1.2, span=span)
    assert codec.verify(with_span, keys.ring, now_s=WALL_S).context.parent == span.traceparent
    keys.turn(b"\x02" * 32, b"\x01" * 32)
    assert codec.verify(minted(1.2), Keys(b"\x02" * 32).ring, now_s=WALL_S).context.agent == "writer"


def test_a_new_key_signs_at_once_though_no_token_was_verified_since(here: Context, keys: Keys) -> None:
    def minted() -> bytes:
        made = call("writer", headers=[(codec.HEADER_WORKFLOW, b"nightly")])
        here.admit(made)
        return sent(here, made)[codec.HEADER_CONTEXT]

    assert minted() == minted()
    keys.turn(b"\x02" * 32)
    assert codec.verify(minted(), keys.ring, now_s=WALL_S).context.workflow == "nightly"


def test_a_trace_that_only_the_token_names_is_the_calls_trace(here: Context, keys: Keys) -> None:
    telemetry = Telemetry()
    minted = []
    for now_s in (0.0, 0.5):
        made = call("writer", headers=shown(token(keys, parent=TRACE.decode())), now_s=now_s)
        telemetry.started(made)
        here.admit(made)
        assert made.span.parent == TRACE.decode()
        headers = sent(here, made)
        assert headers[b"traceparent"] == TRACE
        assert read(keys, headers).context.parent == TRACE.decode()
        minted.append(headers[codec.HEADER_CONTEXT])
    assert minted[0] == minted[1], "without a span of its own, a call's token serves the next one too"


def test_a_trace_of_the_calls_own_wins_over_the_tokens(here: Context, keys: Keys) -> None:
    own = TRACE.replace(b"a1", b"c3")
    made = call("writer", headers=[*shown(token(keys, parent=TRACE.decode())), (b"traceparent", own)])
    Telemetry().started(made)
    here.admit(made)
    assert (made.span.parent, sent(here, made)[b"traceparent"]) == (own.decode(), own)


def test_a_trace_of_a_later_version_goes_on_with_the_fields_that_are_known(here: Context, keys: Keys) -> None:
    made = call("writer", headers=[*shown(token(keys)), (b"traceparent", b"01" + TRACE[2:] + b"-more")])
    Telemetry().started(made)
    here.admit(made)
    assert read(keys, sent(here, made)).context.parent == TRACE.decode()


def test_a_token_without_a_trace_serves_a_second_though_there_is_a_handle(here: Context, keys: Keys) -> None:
    telemetry, minted = Telemetry(), []
    for now_s in (0.0, 0.5, 1.6):
        made = call("writer", headers=shown(token(keys)), now_s=now_s)
        telemetry.started(made)
        here.admit(made)
        minted.append(sent(here, made)[codec.HEADER_CONTEXT])
    assert minted[0] == minted[1] != minted[2]


def struck(here: Context, keys: Keys, parent: str = "", *, is_sampled: bool = False) -> tuple[bytes, Span]:
    """Make a call whose span ends in a collector; return its token and its span."""
    made = call("writer", headers=shown(token(keys, parent=parent)))
    made.span = Span(is_sampled)
    here.admit(made)
    return sent(here, made)[codec.HEADER_CONTEXT], made.span


def test_calls_whose_spans_nobody_keeps_share_a_token_and_its_trace(here: Context, keys: Keys) -> None:
    first, other = struck(here, keys), struck(here, keys)
    kept = struck(here, keys, is_sampled=True)
    last = struck(here, keys)
    assert first[0] == other[0] == last[0] != kept[0]
    held = codec.verify(first[0], keys.ring, now_s=WALL_S).context.parent
    assert held == first[1].traceparent
    assert held.endswith("-00"), "whoever comes next keeps none of it either"
    assert first[1].trace_id == other[1].trace_id == last[1].trace_id != kept[1].trace_id
    assert len({first[1].span_id, other[1].span_id, last[1].span_id}) == 3
    assert codec.verify(kept[0], keys.ring, now_s=WALL_S).context.parent == kept[1].traceparent


def test_below_a_span_that_is_not_kept_calls_share_a_token_in_its_trace(here: Context, keys: Keys) -> None:
    above = TRACE.decode()[:-2] + "00"
    first, other = struck(here, keys, above), struck(here, keys, above)
    assert first[0] == other[0]
    assert codec.verify(first[0], keys.ring, now_s=WALL_S).context.parent == above
    assert first[1].traceparent[:35] == above[:35]
    kept = struck(here, keys, TRACE.decode())
    assert codec.verify(kept[0], keys.ring, now_s=WALL_S).context.parent == kept[1].traceparent != TRACE.decode()


def test_a_context_that_fits_no_token_is_refused(here: Context, keys: Keys) -> None:
    made = call("writer", headers=shown(token(keys)))
    here.admit(made)
    assert made.context is not None
    made.context = replace(made.context, path=tuple(f"{n:064d}" for n in range(8)))
    with pytest.raises(Refused) as caught:
        here.forward_headers(made)
    assert caught.value.reason is Reason.HOP_LIMIT


def test_the_trace_is_passed_on_where_the_upstream_takes_it(here: Context) -> None:
    fields = [(b"traceparent", TRACE), (b"tracestate", b"a=1"), (b"tracestate", b"b=2"), (b"baggage", b"user=7")]
    made = call("writer", headers=fields)
    here.admit(made)
    assert made.context is not None
    assert made.context.parent == TRACE.decode()
    headers = sent(here, made)
    assert (headers[b"traceparent"], headers[b"tracestate"], headers[b"baggage"]) == (TRACE, b"a=1,b=2", b"user=7")
    made.span = Span(is_sampled=True)
    assert sent(here, made)[b"traceparent"] == made.span.traceparent.encode()


def test_a_malformed_trace_is_no_trace_and_no_refusal(here: Context) -> None:
    bad: list[Headers] = [
        [(b"traceparent", b"00-zz")],
        [(b"traceparent", TRACE), (b"traceparent", TRACE)],
        [(b"traceparent", b"\xff" * 55)],
    ]
    for fields in bad:
        made = call("writer", headers=[*fields, (b"tracestate", b"a=1"), (b"baggage", b"\xff")])
        here.admit(made)
        assert set(sent(here, made)) == {codec.HEADER_CONTEXT}


def test_everything_under_our_names_is_stripped() -> None:
    assert all(is_stripped(name) for name in (b"x-meshd-context", b"x-meshd-anything", b"traceparent", b"baggage"))
    assert not any(is_stripped(name) for name in (b"x-mesh", b"authorization", b"x-request-id"))


@pytest.mark.uncompiled
def test_memories_are_bounded(here: Context, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_filter, "KNOWN_MAX", 4)
    monkeypatch.setattr(context_filter, "NAMED_MAX", 4)
    monkeypatch.setattr(minting, "MINTED_MAX", 4)
    for number in range(10):
        made = call("writer", headers=shown(token(keys, workflow=f"w{number}")))
        here.admit(made)
        here.forward_headers(made)
        here.admit(call(headers=[(codec.HEADER_WORKFLOW, b"n%d" % number)]))
    assert (len(here._known), len(here._minting._minted), len(here._named)) == (4, 4, 4)


# ---------------------------------------------------------------------- attenuation over chains

AGENTS = ("a", "b", "c", "d")
steps = st.lists(
    st.tuples(
        st.sampled_from(AGENTS),
        st.booleans(),
        st.none() | st.integers(0, 20),
        st.none() | st.integers(0, 500),
        st.floats(0, 5),
    ),
    min_size=1,
    max_size=10,
)


def _meshed(agent: str, *, is_peer: bool) -> Policy:
    peer = ", peer: true" if is_peer else ""
    others = "".join(f'  {other}: {{url: "http://127.0.0.1:1", kind: agent{peer}}}\n' for other in AGENTS)
    return policy(upstreams=f"agent: {agent}\nlimits: {{hops: 1000}}\nupstreams:\n{others}")


POLICIES = {(agent, is_peer): _meshed(agent, is_peer=is_peer) for agent in AGENTS for is_peer in (True, False)}


@given(steps, st.none() | st.integers(1, 10_000), st.none() | st.integers(1, 1000))
def test_nothing_widens_over_any_chain_of_agents(
    chain: list[tuple[str, bool, int | None, int | None, float]], ceiling: int | None, deadline: int | None
) -> None:
    """Whatever agents claim on their way, hops rise by one an edge at least, and time and tokens only shrink."""
    keys = Keys()
    filters = {agent: Context(keys, Bytes()) for agent in AGENTS}  # type: ignore[arg-type]
    wall_s, at = WALL_S, "a"
    deadline_s = None if deadline is None else WALL_S + deadline
    known = codec.Context("wf", at, 0, (), deadline_s, "workflow/wf", ceiling)
    held = codec.mint(known, keys.ring, audience=Audience.LOCAL, expires_s=int(WALL_S) + 9999, nonce=b"n" * 8)
    for callee, is_peer, hops, seconds, pause_s in chain:
        wall_s += pause_s
        claims: Headers = [] if hops is None else [(codec.HEADER_HOPS, str(hops).encode())]
        claims += [] if seconds is None else [(codec.HEADER_DEADLINE, str(seconds).encode())]
        headers = [*claims, (codec.HEADER_CONTEXT, held)]
        made = call(callee, headers=headers, of=POLICIES[at, is_peer], wall_s=wall_s)
        filters[at].admit(made)
        try:
            HopLimit().admit(made)
        except Refused as error:
            assert error.reason is Reason.DEADLINE  # noqa: PT017
            return
        on_the_way = filters[at].forward_headers(made)
        if is_peer:
            made = call("app", headers=on_the_way, direction=IN, of=POLICIES[callee, is_peer], wall_s=wall_s)
            filters[callee].admit(made)
            on_the_way = filters[callee].forward_headers(with_app(made))
        held = dict(on_the_way)[codec.HEADER_CONTEXT]
        child = codec.verify(held, keys.ring, now_s=wall_s).context
        assert child.hops >= known.hops + 1
        assert child.path == (*known.path, at)
        assert (child.workflow, child.account, child.agent) == ("wf", "workflow/wf", callee)
        assert child.ceiling == known.ceiling
        if known.deadline_s is not None:
            assert child.deadline_s is not None
            assert child.deadline_s <= known.deadline_s
        known, at = child, callee
