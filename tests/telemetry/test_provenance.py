"""What is remembered of calls: everything that was decided, no content, and never more than was agreed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from meshd.call import Ask, Direction, Kind, Usage
from meshd.filters.bounds import Bounds
from meshd.filters.held import Held, Rest
from meshd.filters.underway import Begun, Underway
from meshd.ledger import Ledger
from meshd.outcome import Fault, Verdict
from meshd.refusal import Reason, Refused
from meshd.telemetry.provenance import NONE, Provenance
from meshd.telemetry.telemetry import Telemetry
from meshd.view_calls import call_of, calls_of
from tests.telemetry.calls import call, outcome, upstream

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.outcome import Outcome

SECRET = "sk-canary-4242"
ASK = Ask("chat", "gpt-4o", input_bound=50)


def named(id: str, **more: object) -> Call:
    made = call(upstream(), **more)  # type: ignore[arg-type]
    made.id = id
    return made


async def held(ledger: Ledger, account: str = "workflow/w", *, limit: int = 1000, bound: int = 150) -> Held:
    """Reserve as Budget does where the account is known."""
    first = await ledger.wait(account, limit, 1, 1, queue_s=0)
    first.settle(0)  # type: ignore[union-attr]
    entry = ledger.hold(account, limit, bound)
    assert entry is not None
    return Held(ledger, entry, ASK, bound, None, Bounds())


def settled(ticket: Held, **more: object) -> Outcome:
    ended = outcome(is_forwarded=True, is_terminal=True, **more)  # type: ignore[arg-type]
    ticket.settle(ended)
    return ended


async def test_an_attempt_says_what_it_reserved_and_what_it_was_charged() -> None:
    ledger, provenance = Ledger.in_memory(), Provenance()
    made = named("c-1")
    assert made.ask is not None
    made.ask.output_cap, made.ask.output_cap_granted = 400, 100
    provenance.attempted(made, settled(await held(ledger), usage=Usage(12, 34, 5), first_byte_s=0.02))
    found = call_of(provenance, [], "c-1")
    assert found is not None
    assert (found.agent, found.workflow, found.kind, found.target) == ("researcher", "wf-1", "llm", "openai")
    assert (found.model, found.operation, found.is_open, found.refusals) == ("gpt-4o", "chat", False, [])
    (attempt,) = found.attempts
    (taken,) = attempt.accounts
    assert (taken.account, taken.unit, taken.limit) == ("workflow/w", "tokens", 1000)
    assert (taken.bound, taken.charged) == (150, 46)
    assert (attempt.input_bound, attempt.output_cap_asked, attempt.output_cap) == (50, 400, 100)
    assert attempt.bound_by == "bytes"
    assert (attempt.charged_tokens, attempt.is_estimated, attempt.is_bound_passed) == (46, False, False)
    assert (attempt.input_tokens, attempt.output_tokens, attempt.cached_tokens) == (12, 34, 5)
    assert (attempt.status, attempt.verdict, attempt.fault, attempt.took_s) == (200, "success", "none", 0.2)


async def test_several_accounts_are_named_each_with_its_own_limit() -> None:
    ledger, provenance = Ledger.in_memory(), Provenance()
    limits = {"agent/a": 700, "workflow/w": 900}
    taken = [await ledger.wait(name, limit, 150, 150, queue_s=0) for name, limit in limits.items()]
    ticket = Held(ledger, None, ASK, 150, Rest(tuple(taken)), Bounds())  # type: ignore[arg-type]
    # The limit is the one by which this call was judged, whatever a later one brings.
    await ledger.wait("agent/a", 9000, 1, 1, queue_s=0)
    provenance.attempted(named("c-1"), settled(ticket, usage=Usage(100, 100)))
    found = call_of(provenance, [], "c-1")
    assert found is not None
    assert [(one.account, one.limit, one.bound, one.charged) for one in found.attempts[0].accounts] == [
        ("agent/a", 700, 150, 200), ("workflow/w", 900, 150, 200),
    ]  # fmt: skip
    assert found.attempts[0].is_bound_passed


async def test_an_estimate_is_called_one() -> None:
    provenance = Provenance()
    ended = settled(await held(Ledger.in_memory()), usage=None, status=200)
    provenance.attempted(named("c-1"), ended)
    found = call_of(provenance, [], "c-1")
    assert found is not None
    attempt = found.attempts[0]
    assert (attempt.charged_tokens, attempt.is_estimated, attempt.input_tokens) == (150, True, None)


def test_retries_and_the_refusal_at_their_end_are_one_story() -> None:
    telemetry, made = Telemetry(), named("c-1")
    telemetry.started(made)
    telemetry.attempted(made, outcome(Verdict.FAILURE, status=0, fault=Fault.CONNECT))
    telemetry.attempted(named("other"), outcome())
    made.attempt = 2
    telemetry.attempted(made, outcome(Verdict.FAILURE, status=503))
    refused = Refused(Reason.UPSTREAM_UNREACHABLE, "openai cannot be reached (2 attempts)")
    telemetry.ended(made, 502, outcome(Verdict.FAILURE, status=503), refused)
    found = call_of(telemetry.provenance, [], "c-1")
    assert found is not None
    assert [(one.number, one.fault, one.status, one.accounts) for one in found.attempts] == [
        (1, "connect", 0, []), (2, "none", 503, []),
    ]  # fmt: skip
    (denied,) = found.refusals
    assert (denied.attempt, denied.reason, denied.status) == (2, "upstream_unreachable", 502)
    assert denied.message == "openai cannot be reached (2 attempts)"


def test_a_shadow_refusal_is_told_apart_and_does_not_count_as_refused() -> None:
    telemetry, made = Telemetry(), named("c-1")
    telemetry.shadowed(made, Refused(Reason.NOT_ALLOWED, "no", rule="cheap", is_shadow=True))
    found = call_of(telemetry.provenance, [], "c-1")
    assert found is not None
    assert [(one.is_shadow, one.rule) for one in found.refusals] == [(True, "cheap")]
    assert calls_of(telemetry.provenance, [], is_refused=True, limit=9).calls == []


def test_bytes_that_never_became_a_call_are_found_by_the_id_that_their_refusal_had() -> None:
    telemetry = Telemetry()
    telemetry.malformed(Direction.INBOUND, Refused(Reason.MALFORMED, "a bare line feed"), "c-1")
    telemetry.malformed(Direction.INBOUND, Refused(Reason.MALFORMED, "not even HTTP/2"))
    found = call_of(telemetry.provenance, [], "c-1")
    assert found is not None
    assert (found.direction, found.target, found.agent) == ("inbound", "", "")
    assert found.refusals[0].message == "a bare line feed"
    assert len(telemetry.provenance.refusals()) == 1


async def test_a_call_in_flight_is_known() -> None:
    provenance, made = Provenance(), named("c-1")
    found = call_of(provenance, [made], "c-1")
    assert found is not None
    assert (found.is_open, list(found.attempts), found.model) == (True, [], "gpt-4o")
    provenance.attempted(made, settled(await held(Ledger.in_memory()), usage=Usage(1, 1)))
    again = call_of(provenance, [made], "c-1")
    assert again is not None
    assert (again.is_open, len(again.attempts)) == (True, 1)
    assert call_of(provenance, [made], "c-2") is None


def test_the_newest_come_first_and_the_oldest_are_forgotten() -> None:
    provenance = Provenance(attempts_max=4, refusals_max=3)
    for number in range(10):
        provenance.attempted(named(f"ok-{number}"), outcome())
        provenance.denied(named(f"no-{number}"), Refused(Reason.LOOP, f"no {number}"))
    assert [one.id for one in calls_of(provenance, [], is_refused=True, limit=9).calls] == ["no-9", "no-8", "no-7"]
    both = [one.id for one in calls_of(provenance, [], is_refused=False, limit=3).calls]
    assert both == ["no-9", "ok-9", "no-8"]
    every = [one.id for one in calls_of(provenance, [], is_refused=False, limit=99).calls]
    assert every == ["no-9", "ok-9", "no-8", "ok-8", "no-7", "ok-7", "ok-6"]
    assert call_of(provenance, [], "ok-5") is None


def test_a_record_that_is_written_over_keeps_nothing_of_the_one_before() -> None:
    provenance, ledger = Provenance(attempts_max=1), Ledger.in_memory()
    full = named("c-1")
    assert full.ask is not None
    full.ask.model_granted, full.ask.output_cap = "gpt-4o-mini", 7
    ticket = Held(ledger, None, ASK, 150, None, Bounds())
    provenance.attempted(full, settled(ticket, usage=Usage(1, 2, 3), first_byte_s=0.1))
    provenance.attempted(named("c-2"), outcome(Verdict.NEUTRAL, status=404))
    found = call_of(provenance, [], "c-2")
    assert found is not None
    attempt = found.attempts[0]
    assert (attempt.accounts, attempt.charged_tokens, attempt.input_bound, attempt.is_estimated) == ([], 0, 0, False)
    assert (attempt.input_tokens, attempt.output_tokens, attempt.first_byte_s) == (None, None, None)
    assert (attempt.model_sent, attempt.output_cap, attempt.output_cap_asked) == ("", None, None)
    tool = call(upstream("billing", Kind.TOOL, "billing.svc"))
    tool.id = "c-3"
    provenance.attempted(tool, outcome())
    found = call_of(provenance, [], "c-3")
    assert found is not None
    assert (found.kind, found.model, found.operation, found.attempts[0].accounts) == ("tool", "", "", [])


@pytest.mark.uncompiled
def test_nothing_of_what_was_said_is_kept() -> None:
    """Walks all that the rings hold on to: no body, no header, no field of the request."""
    telemetry = Telemetry()
    made = named("c-1", headers=[(b"authorization", SECRET.encode())])
    made.body = SECRET.encode()
    assert made.ask is not None
    made.ask.fields = {"messages": SECRET}
    telemetry.attempted(made, outcome(usage=Usage(1, 2)))
    telemetry.ended(made, 402, outcome(), Refused(Reason.BUDGET_EXHAUSTED, "used up"))
    seen: set[int] = set()
    waiting: list[object] = [*telemetry.provenance.attempts(), *telemetry.provenance.refusals()]
    assert len(waiting) == 2
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        assert one is not made
        assert one is not made.ask
        assert SECRET not in str(one)
        if isinstance(one, (list, tuple)):
            waiting += one
        elif type(one).__module__.startswith("meshd.telemetry.provenance"):
            waiting += [getattr(one, name) for name in type(one).__slots__]


@pytest.mark.parametrize("length", [10, 5_000_000])
def test_names_of_any_length_cost_little(length: int) -> None:
    provenance = Provenance()
    provenance.attempted(named("c-1", model="m" * length), outcome())
    provenance.denied(named("c-2", model="m" * length), Refused(Reason.LOOP, "x" * length))
    kept = [one.target.model for one in provenance.attempts()] + [one.target.model for one in provenance.refusals()]
    kept += [one.message for one in provenance.refusals()]
    assert sum(map(sys.getsizeof, kept)) < 2500
    assert provenance.attempts()[0].cap_asked == NONE


async def test_work_that_goes_on_is_charged_by_the_call_that_reads_its_end() -> None:
    ledger, provenance, underway = Ledger.in_memory(), Provenance(), Underway()
    first = named("begins")
    (await ledger.wait("workflow/w", 1000, 1, 1, queue_s=0)).settle(0)  # type: ignore[union-attr]
    begun = Begun(underway, first, ASK, ledger, ledger.hold("workflow/w", 1000, 150), 150, None, Bounds())
    begun._id = "resp_1"
    ended = outcome(is_forwarded=True)
    begun.settle(ended)
    provenance.attempted(first, ended)
    reads = named("reads", operation="", model="")
    reads.ask = None
    read = outcome(is_forwarded=True, is_terminal=True, usage=Usage(12, 34))
    begun.charge(read)
    provenance.attempted(reads, read)
    for id, charged, tokens in (("begins", 0, None), ("reads", 46, 12)):
        found = call_of(provenance, [], id)
        assert found is not None
        (attempt,) = found.attempts
        assert [(one.account, one.bound, one.charged) for one in attempt.accounts] == [("workflow/w", 150, charged)]
        assert attempt.input_tokens == tokens
