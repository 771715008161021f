"""A call's span: who its parent is, whether it is kept, and what it says in the end.

The decision is made before anything is built: the parent's flag where there is one, else a throw of the dice. Ids
are made when they are first asked for. A refused, failed or cut call is kept whatever was decided. No attribute
holds the content of a message.
"""

from __future__ import annotations

import random
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from meshd.call import Direction, Kind
from meshd.dialects.grpc import name_of, split_path
from meshd.outcome import Fault
from meshd.telemetry import names, redact
from meshd_sdk.context import parent_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask, Call
    from meshd.dialects.contract import Meter
    from meshd.outcome import Outcome
    from meshd.refusal import Refused

SAMPLED: Final = 0x01
# Kinds as OTLP numbers them.
KIND_INTERNAL: Final = 1
KIND_SERVER: Final = 2
KIND_CLIENT: Final = 3
STATUS_ERROR: Final = 2

TEXT_LENGTH_MAX: Final = 256
"""Characters of any attribute; ids and models come from peers."""
FINISH_REASONS_MAX: Final = 16

_HEX: Final = frozenset("0123456789abcdef")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_ATTRIBUTED_STATUSES: Final = frozenset({400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 501, 502, 503, 504, 529})


def parse_traceparent(value: str) -> tuple[int, int, int] | None:
    """Return (trace id, parent's span id, flags), or None for what W3C Trace Context calls invalid.

    A version above 00 may be longer; only its first four fields are read. An invalid one begins a new trace: unlike
    our own headers it decides nothing but where a span is shown.
    """
    if len(value) < 55 or value[2] != "-" or value[35] != "-" or value[52] != "-":
        return None
    version, trace_id, span_id, flags = value[:2], value[3:35], value[36:52], value[53:55]
    if version == "ff" or (version == "00" and len(value) != 55) or (len(value) > 55 and value[55] != "-"):
        return None
    if not _HEX.issuperset(version + trace_id + span_id + flags):
        return None
    trace, span = int(trace_id, 16), int(span_id, 16)
    return (trace, span, int(flags, 16)) if trace and span else None


class Span:
    """The handle on `call.span`. Cheap: two words until somebody asks for its ids."""

    __slots__ = ("_span_id", "_trace_id", "is_sampled", "is_shadowed", "loop", "parent", "parent_id")

    def __init__(
        self, is_sampled: bool, parent: str = "", trace_id: int = 0, parent_id: int = 0, span_id: int = 0
    ) -> None:
        self.is_sampled = is_sampled
        self.is_shadowed = False
        self.loop = ""  # what found that the workflow goes in circles; empty where nothing did
        self.parent = parent
        """The valid traceparent that came with the call; empty where none did."""
        self.parent_id = parent_id
        self._trace_id = trace_id
        self._span_id = span_id

    @property
    def trace_id(self) -> int:
        """128 bits, never 0."""
        if not self._trace_id:
            self._trace_id = random.getrandbits(128) or 1
        return self._trace_id

    @property
    def span_id(self) -> int:
        """64 bits, never 0."""
        if not self._span_id:
            self._span_id = random.getrandbits(64) or 1
        return self._span_id

    @property
    def traceparent(self) -> str:
        """The W3C header value to forward, with this span as parent."""
        digits = self.parent_bytes.hex()
        return f"00-{digits[:32]}-{digits[32:48]}-{digits[48:]}"

    @property
    def parent_bytes(self) -> bytes:
        """The same as a context token holds it: 16, 8 and 1 bytes; none where there is nothing to forward."""
        flags = b"\x01" if self.is_sampled else b"\x00"
        return self.trace_id.to_bytes(16, "big") + self.span_id.to_bytes(8, "big") + flags

    def adopt(self, traceparent: str) -> bool:
        """Take a parent that was found later (in the context token, say), unless the call brought its own.

        Returns whether it was taken. Call it before `traceparent` is first read.
        """
        if self.parent or not traceparent:
            return False
        parsed = parse_traceparent(traceparent)
        if parsed is None:
            return False
        self.parent = traceparent
        self._trace_id, self.parent_id, flags = parsed
        self.is_sampled = bool(flags & SAMPLED)
        return True


class PassedThrough(Span):
    """The handle where no collector is set: meshd adds no span, so the caller's own parent is forwarded as it came."""

    __slots__ = ()

    @property
    def traceparent(self) -> str:
        """What the call brought, or empty: whoever comes next decides for itself."""
        return self.parent

    @property
    def parent_bytes(self) -> bytes:
        """See `traceparent`; of a later version of it, the fields that this one knows (section 4.3)."""
        return parent_bytes("00" + self.parent[2:55]) if self.parent else b""

    def adopt(self, traceparent: str) -> bool:
        taken = super().adopt(traceparent)
        self.is_sampled = False
        return taken


class _TraceFlags:
    sampled: ClassVar[bool] = True


class _Sampled:
    """All that the SDK's batch processor asks of a span's context."""

    trace_flags: ClassVar[type[_TraceFlags]] = _TraceFlags


class FinishedSpan:
    """What the exporter's thread needs of one span, and nothing that keeps the call or its body alive."""

    context: ClassVar[type[_Sampled]] = _Sampled

    __slots__ = ("attributes", "end_ns", "is_error", "kind", "name", "parent_id", "span_id", "start_ns", "trace_id")

    def __init__(
        self, span: Span, name: str, kind: int, start_ns: int, end_ns: int, attributes: dict[str, Any], is_error: bool
    ) -> None:
        self.trace_id = span.trace_id
        self.span_id = span.span_id
        self.parent_id = span.parent_id
        self.name = name
        self.kind = kind
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.attributes = attributes
        """Values are str, bool, int, float or tuples of str."""
        self.is_error = is_error


class SpanSink(Protocol):
    """Where finished spans go. `put` never blocks and never raises."""

    def put(self, span: FinishedSpan) -> None: ...

    def close(self, timeout_s: float) -> None: ...


class Tracer:
    """Begins and ends spans. With no sink it only passes the caller's parent through."""

    __slots__ = ("_random", "_sink", "ratio")

    def __init__(self, sink: SpanSink | None, ratio: float = 0.1, chance: Callable[[], float] = random.random) -> None:
        self._sink = sink
        self.ratio = ratio
        self._random = chance

    def begin(self, call: Call) -> Span:
        """Return the handle for a call, its parent read from the call's own header."""
        is_kept = self._sink is not None
        made = Span if is_kept else PassedThrough
        for name, value in call.governed:
            if name == b"traceparent":
                parent = value.decode("latin-1")
                parsed = parse_traceparent(parent)
                if parsed is not None:
                    return made(is_kept and bool(parsed[2] & SAMPLED), parent, parsed[0], parsed[1])
                break
        return made(is_kept and self._random() < self.ratio)

    def end(
        self,
        call: Call,
        status: int,
        outcome: Outcome | None,
        refused: Refused | None,
        meter: Meter | None,
        result: int,
        duration_s: float,
    ) -> None:
        """Hand a span on where it is kept. `result` is an index into `names.RESULTS`."""
        span, sink = call.span, self._sink
        if sink is None or span is None:
            return
        is_error = result in (names.FAILED, names.REFUSED, names.CUT)
        if not (span.is_sampled or is_error or span.is_shadowed):
            return
        start_ns = int(call.wall_s * 1e9) or time.time_ns()
        found = attributes(call, status, outcome, refused, meter, result)
        kind = KIND_SERVER if call.direction is Direction.INBOUND else KIND_CLIENT
        end_ns = start_ns + max(int(duration_s * 1e9), 0)
        sink.put(FinishedSpan(span, span_name(call), kind, start_ns, end_ns, found, is_error))

    def put(self, span: FinishedSpan) -> None:
        """Hand on a span that is not a call's, where any are kept."""
        if self._sink is not None:
            self._sink.put(span)

    def close(self, timeout_s: float) -> None:
        """Send what is queued, for at most `timeout_s`. Blocks."""
        if self._sink is not None:
            self._sink.close(timeout_s)


@lru_cache(maxsize=1024)
def _clean(value: str) -> str:
    return redact.text(value)


def _short(value: str) -> str:
    """Return a name that comes back call after call, cut to length and without secrets."""
    return _clean(value[:TEXT_LENGTH_MAX])


def method(call: Call) -> str:
    """Return the method as the conventions want it: `_OTHER` for what is not one."""
    return call.method if call.method in _METHODS else "_OTHER"


def error_type(status: int, outcome: Outcome | None, refused: Refused | None) -> str:
    """Return `error.type` from a closed set, empty where nothing went wrong."""
    if refused is not None:
        return refused.reason.value
    if outcome is not None and outcome.fault is not Fault.NONE:
        return str(outcome.fault.value)
    if status < 400:
        is_error = outcome is not None and outcome.grpc_status > 0
        return name_of(outcome.grpc_status) if outcome is not None and is_error else ""
    return str(status) if status in _ATTRIBUTED_STATUSES else "_OTHER"


def span_name(call: Call) -> str:
    """Return `{operation} {model}` for an LLM, else what the conventions ask for; never a path."""
    ask: Ask | None = call.ask
    if ask is not None:
        return f"{ask.operation} {_short(ask.model_sent)}" if ask.model_sent else ask.operation
    target = call.target
    if call.direction is Direction.INBOUND:
        return f"{names.INVOKE_AGENT} {_short(call.agent)}".rstrip()
    if target.kind is Kind.AGENT:
        return f"{names.INVOKE_AGENT} {_short(target.name)}"
    if target.kind is Kind.TOOL:
        return f"{names.EXECUTE_TOOL} {_short(target.name)}"
    shown = method(call)
    return shown if shown != "_OTHER" else "HTTP"


def attributes(
    call: Call, status: int, outcome: Outcome | None, refused: Refused | None, meter: Meter | None, result: int
) -> dict[str, Any]:
    """Return the span's attributes; only names of the table, only what is known."""
    found: dict[str, Any] = {
        names.MESHD_CALL: call.id,
        names.MESHD_DIRECTION: call.direction.value,
        names.MESHD_EVIDENCE: call.evidence.value,
        names.MESHD_ATTEMPTS: call.attempt,
        names.HTTP_METHOD: method(call),
    }
    if call.evidence.is_inferred:
        found[names.MESHD_INFERRED] = True
    if status:
        found[names.HTTP_STATUS] = status
    if call.agent:
        found[names.MESHD_AGENT] = _short(call.agent)
    _of_target(call, found)
    if call.dialect is not None and call.dialect.name == "grpc":
        _of_rpc(call, outcome, refused, found)
    context = call.context
    if context is not None:
        if context.workflow:
            found[names.MESHD_WORKFLOW] = _short(context.workflow)
        found[names.MESHD_HOPS] = context.hops
    if call.ask is not None:
        _of_ask(call, outcome, found)
    if meter is not None:
        _of_meter(meter, found)
    if outcome is not None:
        found[names.MESHD_VERDICT] = outcome.verdict.value
    if refused is not None:
        found[names.MESHD_REASON] = refused.reason.value
        if refused.rule:
            found[names.MESHD_RULE] = _short(refused.rule)
    if call.span is not None and call.span.is_shadowed:
        found[names.MESHD_SHADOW] = True
    if call.span is not None and call.span.loop:
        found[names.MESHD_LOOP] = call.span.loop
    error = error_type(status, outcome, refused)
    if error and result != names.CANCELLED:
        found[names.ERROR_TYPE] = error
    return found


def _of_target(call: Call, found: dict[str, Any]) -> None:
    target, upstream = call.target, call.upstream
    if call.direction is Direction.INBOUND:
        found[names.OPERATION_NAME] = names.INVOKE_AGENT
        if call.agent:
            found[names.AGENT_NAME] = _short(call.agent)
    elif target.kind is Kind.AGENT:
        found[names.OPERATION_NAME] = names.INVOKE_AGENT
        found[names.AGENT_NAME] = _short(target.name)
    elif target.kind is Kind.TOOL:
        found[names.OPERATION_NAME] = names.EXECUTE_TOOL
        found[names.TOOL_NAME] = _short(target.name)
    found[names.MESHD_KIND] = target.kind.value
    if target.name:
        found[names.MESHD_TARGET] = _short(target.name)
    if upstream is not None and upstream.host:
        found[names.SERVER_ADDRESS] = _short(upstream.host)
        found[names.SERVER_PORT] = upstream.port
    # The query is left out whole: it is where keys and questions are.
    found[names.URL_PATH] = _short(call.path.partition("?")[0])


def _of_rpc(call: Call, outcome: Outcome | None, refused: Refused | None, found: dict[str, Any]) -> None:
    service, method_called = split_path(call.path)
    found[names.RPC_SYSTEM] = "grpc"
    found[names.RPC_SERVICE] = _short(service)
    found[names.RPC_METHOD] = _short(method_called)
    if outcome is not None and outcome.grpc_status >= 0:
        found[names.RPC_STATUS] = outcome.grpc_status
    elif refused is not None:
        found[names.RPC_STATUS] = refused.grpc


def _of_ask(call: Call, outcome: Outcome | None, found: dict[str, Any]) -> None:
    ask = call.ask
    assert ask is not None
    found[names.OPERATION_NAME] = ask.operation
    if call.upstream is not None:
        found[names.PROVIDER_NAME] = names.provider(call.upstream.host, call.upstream.dialect)
    if ask.model_sent:
        found[names.REQUEST_MODEL] = _short(ask.model_sent)
    if ask.output_cap is not None:
        found[names.REQUEST_MAX_TOKENS] = ask.output_cap
    if ask.output_cap_granted is not None and ask.output_cap_granted != ask.output_cap:
        found[names.MESHD_CAP_GRANTED] = ask.output_cap_granted
    if ask.is_stream:
        found[names.REQUEST_STREAM] = True
        if outcome is not None and outcome.first_byte_s is not None:
            found[names.FIRST_CHUNK] = outcome.first_byte_s
    usage = outcome.usage if outcome is not None else None
    if usage is not None:
        found[names.USAGE_INPUT_TOKENS] = usage.input_tokens
        found[names.USAGE_OUTPUT_TOKENS] = usage.output_tokens
        if usage.cached_tokens:
            found[names.USAGE_CACHE_READ] = usage.cached_tokens
        if usage.reasoning_tokens:
            found[names.USAGE_REASONING] = usage.reasoning_tokens
        if usage.is_estimated:
            found[names.MESHD_USAGE_ESTIMATED] = True
    if ask.degraded_by:
        found[names.MESHD_MODEL_ASKED] = _short(ask.model)
        found[names.MESHD_DEGRADED_BY] = _short(ask.degraded_by)
    if outcome is not None and outcome.microdollars is not None:
        found[names.MESHD_COST] = outcome.microdollars


def _of_meter(meter: Meter, found: dict[str, Any]) -> None:
    if meter.response_id:
        found[names.RESPONSE_ID] = meter.response_id[:TEXT_LENGTH_MAX]
    if meter.response_model:
        found[names.RESPONSE_MODEL] = _short(meter.response_model)
    if meter.finish_reasons:
        reasons = meter.finish_reasons[:FINISH_REASONS_MAX]
        found[names.RESPONSE_FINISH_REASONS] = tuple(_short(reason) for reason in reasons)
