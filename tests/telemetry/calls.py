"""Calls as the proxy would make them, for tests of telemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import Ask, Call, Direction, Headers, Kind, Target, Usage
from meshd.outcome import Fault, Outcome, Verdict
from meshd.upstream import Upstream

if TYPE_CHECKING:
    from meshd.refusal import Refused
    from meshd.telemetry.telemetry import Telemetry

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A traceparent that asks for a span."""


def upstream(name: str = "openai", kind: Kind = Kind.LLM, host: str = "api.openai.com", **more: Any) -> Upstream:
    dialect = more.pop("dialect", "openai" if kind is Kind.LLM else "plain")
    return Upstream(
        name=name,
        kind=kind,
        url=f"https://{host}",
        scheme="https",
        host=host,
        port=443,
        base_path="",
        authority=host.encode(),
        dialect=dialect,
        **more,
    )


class Document:
    """The part of a policy that telemetry reads."""

    def __init__(self, *upstreams: Upstream) -> None:
        self.upstreams = {found.name: found for found in upstreams}


class Place:
    """The part of a context that telemetry reads."""

    def __init__(self, workflow: str = "wf-1", hops: int = 2) -> None:
        self.workflow = workflow
        self.hops = hops


class Facts:
    """What a meter has read from a reply."""

    usage: Usage | None = None
    output_estimate = 0
    is_terminal = True
    response_id = "chatcmpl-1"
    response_model = "gpt-4o-2026"
    finish_reasons = ("stop",)


def call(
    to: Upstream | None = None,
    *,
    model: str = "gpt-4o",
    operation: str = "chat",
    direction: Direction = Direction.OUTBOUND,
    headers: Headers | None = None,
    path: str = "/v1/chat/completions",
    is_known: bool = True,
    is_stream: bool = False,
) -> Call:
    made = Call(
        id="call-1",
        direction=direction,
        method="POST",
        path=path,
        authority="127.0.0.1:7400",
        headers=headers if headers is not None else [(b"accept", b"*/*")],
        now_s=100.0,
        wall_s=1_790_000_000.0,
    )
    if to is not None:
        made.upstream = to
        made.target = Target(to.kind, to.name, model if to.kind is Kind.LLM else "")
        made.policy = Document(to) if is_known else Document()
        if to.kind is Kind.LLM:
            made.ask = Ask(operation, model, is_stream=is_stream)
    made.agent = "researcher"
    made.context = Place()  # type: ignore[assignment]
    made.attempt = 1
    return made


def outcome(
    verdict: Verdict = Verdict.SUCCESS, *, status: int = 200, fault: Fault = Fault.NONE, **more: Any
) -> Outcome:
    more.setdefault("now_s", 100.25)
    more.setdefault("duration_s", 0.2)
    return Outcome(verdict, status=status, fault=fault, **more)


def run_through(
    telemetry: Telemetry, made: Call, ended: Outcome | None = None, refused: Refused | None = None, status: int = 200
) -> None:
    """Tell telemetry of a whole call."""
    telemetry.started(made)
    if ended is not None:
        telemetry.attempted(made, ended)
    telemetry.ended(made, status, ended, refused, meter=Facts())
