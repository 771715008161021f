"""`meshd trace --replay`: the calls of a workflow, judged by another policy.

Each call's head, as the trace has it, goes through the chain of that policy with books in memory; what the call really
cost is charged to them, so that a budget runs out where it would have. Nothing is sent, no person is asked, no file is
touched. Bodies are not in the trace: what a rule would have read in one is told as not known.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshd.approvals.desk import Desk
from meshd.assembly import build_chain
from meshd.call import Ask, Call, Direction, Evidence, Kind, NeedBody, Reply, Rpc, Target, Usage, Wait
from meshd.chain import FILTERS, Scope, settle
from meshd.cli.explain_walk import APP_STAND_IN
from meshd.cli.trace_text import asked, at
from meshd.daemon import app_upstream
from meshd.dialects.table import DIALECTS
from meshd.filters.approval import Approval
from meshd.filters.context import Context
from meshd.filters.fallback import Fallback
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeys
from meshd.outcome import Fault, Outcome, Verdict
from meshd.policy.document import LoadError, load
from meshd.refusal import Refused
from meshd.trace import kinds
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshd.chain import Chain
    from meshd.filters.contract import Ticket
    from meshd.policy.compiled import Policy
    from meshd.trace.record import Event

PASS: Final = "pass"
REFUSE: Final = "refuse"
HOLD: Final = "hold"
_JUDGED: Final = frozenset({kinds.FORWARDED, kinds.ARRIVED, kinds.REFUSED, kinds.ANSWERED})
_NO_CALLS: Final = frozenset({"event", "state"})
"""What was refused, and is no call: the chain does not judge it."""
_MCP_LIKE: Final = frozenset({"mcp", "a2a"})


@dataclass(slots=True)
class Judged:
    """What another policy makes of one call."""

    event: Event
    was: str
    """pass or refuse, as it was decided."""
    now: str
    why: str
    unknown: list[str] = field(default_factory=list)
    """Filters that would have read the body."""

    @property
    def is_other(self) -> bool:
        """The other policy decides otherwise."""
        return self.was != self.now


@dataclass(slots=True)
class _Open:
    """A call that has been admitted."""

    call: Call
    tickets: list[Ticket]
    attempt: list[Ticket]


def replay(file: str, events: Iterable[Event], *, is_json: bool) -> None:
    """Print what a policy would have decided of each call, and how often it differs."""
    try:
        policy = load([file])
    except LoadError as error:
        raise click.ClickException("\n".join(str(problem) for problem in error.problems)) from None
    count = others = 0
    for judged in judge_all(policy, events):
        count, others = count + 1, others + judged.is_other
        if is_json:
            told = {"event": judged.event.id, "call": judged.event.payload.call, "was": judged.was, "now": judged.now}
            click.echo(json.dumps(told | {"why": judged.why, "unknown": judged.unknown}))
        else:
            mark = "*" if judged.is_other else " "
            unknown = f" (not known: what {', '.join(judged.unknown)} would have read)" if judged.unknown else ""
            shown = asked(judged.event)
            why = f": {judged.why}" if judged.why else ""
            click.echo(f"{mark} {at(judged.event.payload.hlc_us)}  {judged.was} -> {judged.now}  {shown}{why}{unknown}")
    if not is_json:
        click.echo(f"{count} calls, {others} of them decided otherwise by {policy.source}")


def judge_all(policy: Policy, events: Iterable[Event]) -> Iterator[Judged]:
    """Yield what `policy` makes of each call, in the order of the events."""
    with tempfile.TemporaryDirectory(prefix="meshd-replay-") as folder, asyncio.Runner() as runner:
        judge = runner.run(_made(policy, Path(folder)))
        try:
            for event in events:
                judged = runner.run(judge.take(event))
                if judged is not None:
                    yield judged
        finally:
            runner.run(judge.ledger.close())


async def _made(policy: Policy, folder: Path) -> _Judge:
    return _Judge(policy, folder)


class _Judge:
    def __init__(self, policy: Policy, folder: Path) -> None:
        self.ledger = Ledger.in_memory()
        self._policy = policy
        self._app = app_upstream(APP_STAND_IN)
        self._shadowed: list[Refused] = []
        self._chain = build_chain(
            keys=MeshKeys(folder / "mesh.key"),
            ledger=self.ledger,
            agent="",
            shadowed=lambda _call, refused: self._shadowed.append(refused),
            desk=Desk(self.ledger.store, lambda: policy),
        )
        self._per_call = _filters(self._chain, Scope.PER_CALL)
        self._per_attempt = _filters(self._chain, Scope.PER_ATTEMPT)
        self._open: dict[str, _Open] = {}

    async def take(self, event: Event) -> Judged | None:
        """Judge the call of an event; None where the event is of no call, or of one that was judged."""
        payload = event.payload
        if payload.kind == kinds.ENDED:
            self._end(event)
            return None
        if payload.kind not in _JUDGED or event.facts.get("kind") in _NO_CALLS:
            return None
        known = self._open.get(payload.call)
        if known is not None and payload.kind == kinds.REFUSED:
            self._close(payload.call, _outcome(event))
            return None
        unknown: list[str] = []
        if known is None:
            known = _Open(self._call(event), [], [])
            decided = await self._ask(self._per_call, known.call, known.tickets, unknown)
        else:
            decided = None
        if decided is None:
            known.call.attempt += 1
            decided = await self._ask(self._per_attempt, known.call, known.attempt, unknown)
        if known.call.attempt > 1 and decided is None:
            return None
        was = REFUSE if payload.kind == kinds.REFUSED else PASS
        if decided is None or decided[0] == HOLD:
            self._open[payload.call] = known
        else:
            self._open[payload.call] = known
            self._close(payload.call, _outcome(event))
        if payload.kind in (kinds.REFUSED, kinds.ANSWERED):
            # What it would have cost is not known.
            self._close(payload.call, _outcome(event))
        now, why = decided or (PASS, "")
        return Judged(event, was, now, why, unknown)

    async def _ask(self, filters: list[Any], call: Call, tickets: list[Ticket], unknown: list[str]) -> Any:
        """Return what is decided and why; None where all filters admit."""
        for one in filters:
            try:
                decision = one.admit(call)
                if isinstance(decision, NeedBody):
                    if isinstance(one, Approval):
                        # It wants to show the body to those whom it asks: so it asks.
                        return HOLD, f"{one.name}: a person is asked"
                    call.is_body_late = True
                    decision = one.admit(call) if decision.is_wish else None
                    if not isinstance(decision, Wait):
                        unknown.append(one.name)
                if isinstance(decision, Wait):
                    if decision.is_hold:
                        decision.coroutine.close()
                        return HOLD, f"{one.name}: a person or a supervisor is asked"
                    decision = await decision.coroutine
            except Refused as refused:
                if refused.is_shadow:
                    continue
                rule = f" by {refused.rule}" if refused.rule else ""
                return REFUSE, f"{one.name}{rule}: {refused.reason.value}: {refused.message}"
            if decision is None or isinstance(decision, NeedBody):
                continue
            if isinstance(decision, Reply):
                return PASS, f"{one.name}: meshd answers it"
            tickets.append(decision)
        return None

    def _call(self, event: Event) -> Call:
        payload, facts = event.payload, event.facts
        direction = Direction(facts.get("direction", "outbound"))
        path = str(facts.get("path") or "/")
        now_s = payload.hlc_us / 1e6
        call = Call(payload.call, direction, str(facts.get("method") or "POST"), path, "", [], now_s, now_s)
        call.policy = self._policy
        call.agent, call.evidence = payload.agent, Evidence(facts.get("evidence", "none"))
        kind, model = Kind(facts.get("kind", "host")), str(facts.get("model") or "")
        call.target = Target(kind, payload.target, model)
        named = self._policy.upstreams.get(payload.target)
        call.upstream = self._app if direction is Direction.INBOUND else named
        is_workflow = not payload.workflow.startswith("unattributed/")
        call.context = codec.Context(
            payload.workflow if is_workflow else "",
            payload.agent,
            int(facts.get("hops") or 0),
            account=f"workflow/{payload.workflow}" if is_workflow else payload.workflow,
        )
        dialect = call.upstream.dialect if call.upstream is not None else ""
        call.dialect = DIALECTS.get(dialect)
        if facts.get("operation"):
            call.ask = Ask(
                str(facts["operation"]),
                model,
                bool(facts.get("is_stream")),
                int(facts.get("input_bound") or 0),
                facts.get("output_cap"),
                max(int(facts.get("choices") or 1), 1),
            )
        elif facts.get("rpc") or facts.get("tool"):
            protocol = dialect if dialect in _MCP_LIKE else "mcp"
            call.rpc = Rpc(protocol, str(facts.get("rpc") or ""), tool=str(facts.get("tool") or ""))
        return call

    def _end(self, event: Event) -> None:
        known = self._open.get(event.payload.call)
        if known is not None:
            settle(known.attempt, _outcome(event))
            if event.facts.get("verdict") in ("success", "neutral"):
                self._close(event.payload.call, _outcome(event))

    def _close(self, call: str, outcome: Outcome) -> None:
        known = self._open.pop(call, None)
        if known is not None:
            settle(known.attempt, outcome)
            settle(known.tickets, outcome)


def _filters(chain: Chain, scope: Scope) -> list[Any]:
    """Return the filters of a scope, without those that have judged already, or judge nothing before it goes out."""
    found = {type(one): one for one in (*chain.per_call, *chain.per_attempt)}
    places = [place.filter for place in FILTERS if place.scope is scope and place.filter not in (Context, Fallback)]
    return [found[one] for one in places]


def _outcome(event: Event) -> Outcome:
    """Return how an attempt ended, as far as its event says."""
    facts = event.facts
    now_s = event.payload.hlc_us / 1e6
    if event.payload.kind != kinds.ENDED:
        return Outcome(Verdict.NEUTRAL, now_s)
    given, made = int(facts.get("input_tokens", -1)), int(facts.get("output_tokens", -1))
    usage = Usage(max(given, 0), max(made, 0), int(facts.get("cached_tokens") or 0)) if given >= 0 else None
    return Outcome(
        Verdict(facts.get("verdict", "neutral")),
        now_s,
        int(facts.get("status") or 0),
        Fault(facts.get("fault", "none")),
        bool(facts.get("is_forwarded")),
        is_answered=True,
        is_terminal=usage is not None,
        usage=usage,
    )
