"""What is written of a call: its head, its causes, its end; never a payload or a key."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from meshd.call import Call, Direction, Kind, Target, Usage
from meshd.clocks import Clock
from meshd.engines.port import StoreFull
from meshd.filters.held import Held
from meshd.mesh_key import MeshKeys
from meshd.outcome import Fault, Outcome, Verdict
from meshd.prompts.finding import Named
from meshd.prompts.noting import Used, note_prompt
from meshd.refusal import Reason, Refused
from meshd.span import Span
from meshd.telemetry import redact
from meshd.trace import log
from meshd.trace.kinds import STATE
from meshd.trace.knowledge import FIELD, Told, encode
from meshd.trace.record import Event
from meshd.trace.recorder import DIGESTED_BYTES_MAX, Recorder
from meshd_sdk.context import Context
from tests.telemetry.calls import upstream
from tests.trace.logs import Wall, opened, reader
from tests.trace.measure import BODY, chat, ended

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def made(id: str, *, agent: str = "ann", name: str = "bob", kind: Kind = Kind.AGENT, **more: Any) -> Call:
    """A plain call of an agent."""
    direction = more.pop("direction", Direction.OUTBOUND)
    call = Call(id, direction, "POST", more.pop("path", "/run"), "", [], 1.0, 1_800_000_000.0)
    call.agent, call.target, call.attempt = agent, Target(kind, name), 1
    call.upstream = upstream(name, kind, is_peer=more.pop("is_peer", False))
    call.context = Context("w", agent, account="workflow/w")
    return call


def written(home: Path, recorder: Recorder) -> list[Event]:
    recorder.close()
    return [event for event in reader(home).events(None) if event.kind != "opened"]


def test_a_call_and_its_end(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(7, "w")
    assert recorder.forwarded(call) is None
    outcome = ended()
    outcome.microdollars = 420
    recorder.attempted(call, outcome)
    out, over = written(tmp_path, recorder)
    assert (out.kind, out.payload.call, out.payload.agent, out.payload.target) == (
        "forwarded", "0123456789ab-7", "researcher", "openai",
    )  # fmt: skip
    assert out.payload.digest == sha256(BODY).digest()
    assert out.facts | {"path": "", "model": "gpt-4o", "input_bound": 1300, "output_cap": 4096} == out.facts
    assert out.facts | {"direction": "outbound", "kind": "llm", "operation": "chat", "evidence": "none"} == out.facts
    assert over.causes == (out.id,)
    told = {"status": 200, "verdict": "success", "input_tokens": 320, "output_tokens": 130, "microdollars": 420}
    assert over.facts | told | {"took_ms": 400, "is_forwarded": True} == over.facts
    assert 499_000 < over.payload.hlc_us - out.payload.hlc_us <= 500_000


@pytest.mark.uncompiled
def test_what_was_reserved_and_charged_stands_at_its_end(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(1)
    recorder.forwarded(call)
    outcome = ended()
    held: Any = Held.__new__(Held)
    held.account, held.bound, held.charged = "workflow/w", 1213, 450
    outcome.held = held
    recorder.attempted(call, outcome)
    facts = written(tmp_path, recorder)[1].facts
    assert (facts["account"], facts["reserved"], facts["charged"]) == ("workflow/w", 1213, 450)


def test_another_attempt_follows_from_the_one_before(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(1)
    recorder.forwarded(call)
    recorder.attempted(call, Outcome(Verdict.FAILURE, 1.1, 0, Fault.CONNECT))
    call.attempt = 2
    recorder.forwarded(call)
    recorder.attempted(call, ended())
    first, failed, second, over = written(tmp_path, recorder)
    assert (failed.causes, second.causes, over.causes) == ((first.id,), (first.id,), (second.id,))
    assert (failed.facts["fault"], failed.facts["is_forwarded"]) == ("connect", False)
    assert second.facts["attempt"] == 2


def test_what_an_agent_does_follows_from_the_call_that_it_serves(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    recorder.forwarded(made("in", direction=Direction.INBOUND, name="app"))
    recorder.forwarded(made("to-bob"))
    recorder.forwarded(made("of-bob", agent="bob", name="llm", kind=Kind.LLM))
    recorder.forwarded(made("of-ann", name="llm", kind=Kind.LLM))
    other = made("elsewhere", name="llm", kind=Kind.LLM)
    other.context = Context("other", "ann", account="workflow/other")
    recorder.forwarded(other)
    arrived, to_bob, of_bob, of_ann, elsewhere = written(tmp_path, recorder)
    assert arrived.kind == "arrived"
    assert to_bob.causes == of_ann.causes == (arrived.id,)
    assert of_bob.causes == (to_bob.id,)
    assert elsewhere.causes == ()


def test_refusals_shadows_and_answers(tmp_path: Path) -> None:
    recorder = opened(tmp_path, clean=redact.text)
    call = made("r", path="/search?key=hush")
    refused = Refused(Reason.NOT_ALLOWED, "Not with sk-proj-abcdefgh12345678", rule="nobody")
    recorder.denied(call, refused)
    recorder.denied(made("s"), refused, is_shadow=True)
    recorder.answered(made("a"), 200)
    late = made("l")
    recorder.forwarded(late)
    recorder.denied(late, refused)
    never = Call("n", Direction.OUTBOUND, "", "", "", [], 1.0, 1.0)
    recorder.denied(never, refused)
    one, shadow, answered, out, after, nameless = written(tmp_path, recorder)
    assert [event.kind for event in (one, shadow, answered)] == ["refused", "shadowed", "answered"]
    assert (one.facts["reason"], one.facts["rule"], one.facts["status"]) == ("not_allowed", "nobody", 403)
    assert one.facts["path"] == "/search"
    assert "sk-proj" not in one.facts["message"]
    assert answered.facts["status"] == 200
    assert after.causes == (out.id,)
    assert nameless.payload.workflow == ""


def test_an_intent_that_was_resolved_stands_before_its_call(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), made("i")
    call.reply_headers = [(b"x-meshd-intent-target", b"bob"), (b"x-meshd-intent-score", b"0.810"), (b"x-meshd-intent-choice", b"best")]  # fmt: skip  # noqa: E501
    recorder.forwarded(call)
    routed, out = written(tmp_path, recorder)
    assert routed.facts == {"targets": "bob", "score": "0.810", "choice": "best"}
    assert out.causes == (routed.id,)


def test_the_versions_of_prompts_stand_before_the_call_that_uses_them(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(1, "w")
    call.prompts = Named([], {})
    for name in ("say", "ask"):
        note_prompt(call, Used(name, "1.2.0", name * 4, "^1", True))
    recorder.forwarded(call)
    recorder.attempted(call, ended())
    call.attempt = 2
    recorder.forwarded(call)
    say, ask, out, _, again = written(tmp_path, recorder)
    assert (say.kind, say.facts) == ("prompt", {"prompt": "say", "version": "1.2.0", "digest": "saysaysaysay"})
    assert (ask.causes, out.causes) == ((say.id,), (ask.id,))
    assert again.causes == (out.id,), "it is said once"


def test_a_sampled_span_leads_to_its_event(tmp_path: Path) -> None:
    recorder, call, other = opened(tmp_path), chat(1), chat(2)
    call.span = Span(True, PARENT, int(PARENT[3:35], 16), int(PARENT[36:52], 16))
    other.span = Span(False)
    recorder.forwarded(call)
    recorder.forwarded(other)
    # Where a collector is, spans of what failed are kept all the same.
    recorder.has_collector = True
    recorder.attempted(other, Outcome(Verdict.FAILURE, 1.1, 500))
    sampled, plain, failed = written(tmp_path, recorder)
    assert sampled.payload.span.hex() == PARENT[3:35] + f"{call.span.span_id:016x}" + "01"
    assert plain.payload.span == b""
    assert failed.payload.span[16:24].hex() == f"{other.span.span_id:016x}"


def test_a_long_body_is_not_digested_and_none_is_kept(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path, segment_bytes=65_536), chat(1)
    call.body = b"canary" * DIGESTED_BYTES_MAX
    recorder.forwarded(call)
    (out,) = written(tmp_path, recorder)
    assert out.payload.digest == b""
    assert all(b"canary" not in path.read_bytes() for path in (tmp_path / "trace").iterdir())


@pytest.mark.parametrize("text", ["x" * 70_000, "\x00\n\x1b[31m", "ä" * 300])
def test_whatever_callers_write_is_cut_and_harms_nothing(tmp_path: Path, text: str) -> None:
    recorder = opened(tmp_path, segment_bytes=2**17)
    call = chat(1)
    call.target = Target(Kind.LLM, text, text)
    call.method = text
    assert call.ask is not None
    call.ask.model = text
    recorder.forwarded(call)
    recorder.denied(call, Refused(Reason.NOT_ALLOWED, text))
    out, refused = written(tmp_path, recorder)
    assert out.facts["model"] == text[:200] == out.payload.target
    assert refused.facts["message"] == text[:500]


def test_a_call_that_is_not_forwarded_has_no_end(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(1)
    recorder.attempted(call, ended())
    call.context = None
    assert recorder.forwarded(call) is None
    assert written(tmp_path, recorder) == []


@pytest.mark.uncompiled
def test_where_the_trace_must_be_written_and_cannot_be_the_call_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    recorder = opened(tmp_path, is_durable=True)
    monkeypatch.setattr(log, "begin", full)
    while recorder.note(STATE, "w", ("k", 1, "put")):
        pass  # until the segment is full
    with pytest.raises(Refused, match="the disk is full") as raised:
        recorder.forwarded(chat(1))
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    recorder.close()


def test_unattributed_calls_stand_under_their_account(tmp_path: Path) -> None:
    recorder, call = opened(tmp_path), chat(1)
    call.context = Context("", "ann", account="unattributed/ann/2026-11-27")
    recorder.forwarded(call)
    recorder.attempted(call, Outcome(Verdict.SUCCESS, 1.1, 200, usage=Usage(1, 2)))
    assert {event.payload.workflow for event in written(tmp_path, recorder)} == {"unattributed/ann/2026-11-27"}


def told_by(home: Path, hlc_us: int, counts: dict[str, int]) -> tuple[MeshKeys, Call]:
    """An inbound call with the clock of another sidecar."""
    keys = MeshKeys(home / "mesh.key")
    told = Told("peerpeer", 1, counts["peerpeer"], hlc_us, b"h" * 32, Clock(counts))
    call = made("in", direction=Direction.INBOUND, name="app")
    call.governed = [(FIELD, encode(told, "w", keys.ring))]
    return keys, call


@pytest.mark.parametrize(("ahead_s", "moves"), [(30, True), (3600, False), (10**9, False)])
def test_a_clock_from_the_future_orders_events_and_moves_no_time(tmp_path: Path, ahead_s: int, moves: bool) -> None:
    now_us = int(Wall()() * 1e6)
    keys, call = told_by(tmp_path, now_us + ahead_s * 1_000_000, {"peerpeer": 9})
    recorder = opened(tmp_path, keys=keys)
    recorder.forwarded(call)
    (arrived,) = written(tmp_path, recorder)
    assert arrived.clock["peerpeer"] == 9
    assert arrived.causes == ("peerpeer-1-9",)
    assert (arrived.payload.hlc_us > now_us + 1_000_000) is moves


def test_a_peer_that_knows_more_of_us_than_we_do_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = opened(tmp_path)
    keys, call = told_by(tmp_path, 1, {"peerpeer": 9, recorder.log.sidecar: 500})
    recorder.close()
    recorder = opened(tmp_path, keys=keys)
    recorder.forwarded(call)
    assert f"knows of event 500 of this one, whose log ends at {recorder.log.sequence - 1}" in caplog.text
    recorder.close()


def test_a_clock_without_keys_to_verify_it_is_not_read(tmp_path: Path) -> None:
    _, call = told_by(tmp_path, 1, {"peerpeer": 9})
    recorder = opened(tmp_path)
    assert recorder.forwarded(call) is None
    (arrived,) = written(tmp_path, recorder)
    assert len(arrived.clock) == 1
