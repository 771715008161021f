"""One request through the whole chain, with books in memory and nothing sent."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meshd.approvals.desk import Desk
from meshd.assembly import build_chain
from meshd.call import Call, Direction, NeedBody, Reply, Target, Wait
from meshd.chain import FILTERS, settle
from meshd.daemon import app_upstream
from meshd.dialects.a2a import CARD
from meshd.dialects.jsonrpc import MESSAGE
from meshd.dialects.scatter import Scatter
from meshd.filters.bounds import Bounds
from meshd.intent.resolver import Resolver
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeys
from meshd.outcome import Outcome, Verdict
from meshd.policy.addressing import AddressBook
from meshd.proxy.arrival import PLAIN, arrive, read_message, too_large
from meshd.refusal import Refused
from meshd.telemetry import redact
from meshd.tokens.counter import Counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.chain import Chain
    from meshd.cli.explain_request import Asked
    from meshd.filters.contract import Ticket
    from meshd.policy.compiled import Policy
    from meshd.proxy.arrival import Intents
    from meshd.wire.message import Request

APP_STAND_IN = "http://127.0.0.1:9"
"""Where an inbound call would be handed on; nothing is sent there."""


class Step(NamedTuple):
    """What one step made of the call."""

    name: str
    verdict: str
    """pass, refuse, shadow (would refuse, and lets it pass), hold (asks a person), answer, or skip (not reached)."""
    text: str


class Explained(NamedTuple):
    """What became of a request."""

    steps: list[Step]
    refused: Refused | None
    call: Call | None
    """None where the wire refused the bytes."""


class _Here:
    """A door that leads nowhere."""

    def __init__(self, policy: Policy, speaker: Callable[[Call], str]) -> None:
        self.book = AddressBook(policy, app_upstream(APP_STAND_IN))
        self.intents: Intents | None = Resolver(lambda: self.book, speaker)


async def explain(
    policy: Policy, asked: Asked, *, is_inbound: bool = False, agent: str = "", mesh_key: Path | None = None
) -> Explained:
    """Take a request through addressing, its dialect and every filter. Nothing is sent, no file of meshd is touched."""
    request = asked.request
    assert request is not None, "read_request gives whole requests only"
    with tempfile.TemporaryDirectory(prefix="meshd-explain-") as folder:
        ledger = Ledger.in_memory()
        told: list[Refused] = []
        chain = build_chain(
            keys=MeshKeys(mesh_key or Path(folder) / "mesh.key", can_be_made=mesh_key is None),
            ledger=ledger,
            agent=agent or asked.agent,
            shadowed=lambda _call, refused: told.append(refused),
            bounds=Bounds(counter := Counter()),
            desk=Desk(ledger.store, lambda: policy),
        )
        call = _call(policy, request, Direction.INBOUND if is_inbound else Direction.OUTBOUND)
        steps: list[Step] = []
        try:
            door = _Here(policy, chain.context.speaker)
            refused = _read(policy, door, call, asked, request, steps)
            if refused is None and not isinstance(call.dialect, Scatter):
                refused = await _walk(chain, call, asked.body, steps, told)
        finally:
            await ledger.close()
            counter.close()
    reached = {step.name for step in steps}
    steps += [Step(name, "skip", "not reached") for name in ("address", "body", *_names(chain)) if name not in reached]
    return Explained(steps, refused, call)


def _call(policy: Policy, request: Request, direction: Direction) -> Call:
    call = Call(
        id=os.urandom(6).hex(),
        direction=direction,
        method=request.method,
        path=request.target,
        authority=request.fields.authority,
        headers=request.fields.headers,
        now_s=time.monotonic(),
        wall_s=time.time(),
        governed=request.fields.governed,
        keyed=request.fields.keyed,
    )
    call.policy = policy
    return call


def _read(policy: Policy, door: _Here, call: Call, asked: Asked, request: Request, steps: list[Step]) -> Refused | None:
    """Find out where the call goes and what its body asks for, as the proxy does before the chain."""
    try:
        _locate(door, call, request, steps)
    except Refused as refused:
        return _refuse(steps, "address", refused)
    if isinstance(call.dialect, Scatter):
        words = f"the same for {', '.join(call.dialect.targets)}: a call of its own to each, explained by its name"
        steps.append(Step("body", "answer", words))
        return None
    if call.upstream is None or call.dialect is PLAIN:
        steps.append(Step("body", "pass", "streams by unread"))
        return None
    operation = call.dialect.recognise(call.method, call.path)
    if operation is None:
        steps.append(Step("body", "pass", f"no request that the dialect {call.dialect.name} reads: streams by unread"))
        return None
    try:
        bytes_max = policy.limits.request_body_bytes_max
        if len(asked.body) > bytes_max:
            raise too_large(bytes_max)
        if operation == MESSAGE:
            read_message(call, asked.body, request.fields)
            steps.append(Step("body", "pass", _words_of(call)))
            return None
        if operation == CARD:
            steps.append(Step("body", "pass", "asks for the agent's card, whose addresses are led here"))
            return None
        ask = call.dialect.read(operation, asked.body, call.path, call.headers)
    except Refused as refused:
        return _refuse(steps, "body", refused)
    call.body, call.ask = asked.body, ask
    call.target = Target(call.target.kind, call.target.name, ask.model)
    cap = f"output cap {ask.output_cap:,}" if ask.output_cap is not None else "no output cap"
    tools = f", tools {', '.join(ask.tools[:8])}" if ask.tools else ""
    steps.append(
        Step(
            "body",
            "pass",
            f"{call.dialect.name} {ask.operation}, model {ask.model}, input at most {ask.input_bound:,} tokens, "
            f"{cap if ask.has_output else 'no output'}{', streamed' if ask.is_stream else ''}{tools}",
        )
    )
    return None


def _words_of(call: Call) -> str:
    rpc = call.rpc
    if rpc is None:
        return "no JSON-RPC message: streams by unread"
    words = f"{rpc.protocol} {rpc.method or 'reply'}"
    words += f", tool {rpc.tool}" if rpc.tool else ""
    words += ", only reads" if rpc.is_read_only else ""
    if call.upstream is not None and not call.upstream.is_dialect_told:
        words += "; by its own fields: without dialect in the policy, rules see no tool in it"
    return words


def _locate(door: _Here, call: Call, request: Request, steps: list[Step]) -> None:
    is_tunnel = arrive(door, call, request)
    upstream, name = call.upstream, call.target.name
    words = f"{upstream.kind.value} {name}" if upstream else f"{name}: no upstream of this name"
    words += ", a tunnel" if is_tunnel else ""
    words += "".join(
        f", {name.decode().removeprefix('x-meshd-')} {value.decode()}" for name, value in call.reply_headers
    )
    steps.append(Step("address", "pass", f"{words}, {call.method} {redact.text(call.path)}"))


async def _walk(chain: Chain, call: Call, body: bytes, steps: list[Step], told: list[Refused]) -> Refused | None:
    tickets: list[Ticket] = []
    call.attempt = 1
    try:
        for one in _in_order(chain):
            refused = await _admit(one, call, body, steps, tickets)
            while told:
                steps.append(Step(one.name, "shadow", text_of(told.pop(0))))
            if refused is not None:
                return refused
            if steps[-1].verdict == "answer":
                return None
    finally:
        settle(tickets, Outcome(Verdict.NEUTRAL, time.monotonic()))
    return None


async def _admit(one: Any, call: Call, body: bytes, steps: list[Step], tickets: list[Ticket]) -> Refused | None:
    # Fallback is asked after an attempt failed, so it has nothing to admit.
    if hasattr(one, "admit"):
        try:
            decision = one.admit(call)
            if isinstance(decision, NeedBody):
                call.body = body
                decision = one.admit(call)
            if isinstance(decision, Wait) and decision.is_hold:
                # Nobody is asked, and what would follow a yes is worth knowing.
                decision.coroutine.close()
                steps.append(Step(one.name, "hold", one.explain(call)))
                return None
            if isinstance(decision, Wait):
                decision = await decision.coroutine
        except Refused as refused:
            if not refused.is_shadow:
                return _refuse(steps, one.name, refused)
            steps.append(Step(one.name, "shadow", text_of(refused)))
            return None
        if isinstance(decision, Reply):
            steps.append(Step(one.name, "answer", one.explain(call)))
            return None
        if decision is not None:
            tickets.append(decision)
    steps.append(Step(one.name, "pass", one.explain(call)))
    return None


def _refuse(steps: list[Step], name: str, refused: Refused) -> Refused:
    steps.append(Step(name, "refuse", text_of(refused)))
    return refused


def text_of(refused: Refused) -> str:
    """Return a refusal in one line: status, reason, the rule that it is of, and its message."""
    rule = f" (rule {refused.rule})" if refused.rule else ""
    return f"{refused.status} {refused.reason.value}{rule}: {refused.message}"


def _in_order(chain: Chain) -> list[Any]:
    by_type: dict[type, Any] = {type(one): one for one in (*chain.per_call, *chain.per_attempt, chain.fallback)}
    return [by_type[place.filter] for place in FILTERS]


def _names(chain: Chain) -> list[str]:
    return [one.name for one in _in_order(chain)]
