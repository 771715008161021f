"""What a call's span says in the end: its name and its attributes. None holds the content of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction, Kind
from meshd.dialects.grpc import name_of, split_path
from meshd.outcome import Fault
from meshd.telemetry import names, redact
from meshd.telemetry.holding import of_holding

if TYPE_CHECKING:
    from meshd.call import Ask, Call
    from meshd.dialects.contract import Meter
    from meshd.outcome import Outcome
    from meshd.refusal import Refused

TEXT_LENGTH_MAX: Final = 256
"""Characters of any attribute; ids and models come from peers."""
FINISH_REASONS_MAX: Final = 16
_OF_INTENT: Final = {
    b"x-meshd-intent-target": names.MESHD_INTENT_TARGET,
    b"x-meshd-intent-score": names.MESHD_INTENT_SCORE,
    b"x-meshd-intent-choice": names.MESHD_INTENT_CHOICE,
}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_ATTRIBUTED_STATUSES: Final = frozenset({400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 501, 502, 503, 504, 529})


_cleaned: Final[dict[str, str]] = {}
_CLEANED_MAX: Final = 1024


def _short(value: str) -> str:
    """Return a name that comes back call after call, cut to length and without secrets."""
    value = value[:TEXT_LENGTH_MAX]
    found = _cleaned.get(value)
    if found is None:
        if len(_cleaned) >= _CLEANED_MAX:
            _cleaned.clear()
        found = _cleaned[value] = redact.text(value)
    return found


def method(call: Call) -> str:
    """Return the method as the conventions want it: `_OTHER` for what is not one."""
    return call.method if call.method in _METHODS else "_OTHER"


def error_type(status: int, outcome: Outcome | None, refused: Refused | None) -> str:
    """Return `error.type` from a closed set, empty where nothing went wrong."""
    if refused is not None:
        return refused.reason._value_
    if outcome is not None and outcome.fault is not Fault.NONE:
        return str(outcome.fault._value_)
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
    # Not `value` of a member, which is a descriptor written in Python.
    found: dict[str, Any] = {
        names.MESHD_CALL: call.id,
        names.MESHD_DIRECTION: call.direction._value_,
        names.MESHD_EVIDENCE: call.evidence._value_,
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
        _of_grpc(call, outcome, refused, found)
    elif call.rpc is not None:
        said = {names.RPC_SYSTEM: call.rpc.binding, names.RPC_METHOD: call.rpc.method, names.TOOL_NAME: call.rpc.tool}
        found |= {name: _short(text) for name, text in said.items() if text}
    context = call.context
    if context is not None:
        if context.workflow:
            found[names.MESHD_WORKFLOW] = _short(context.workflow)
        found[names.MESHD_HOPS] = context.hops
    if call.ask is not None:
        _of_ask(call, outcome, found)
    if call.substitution is not None and refused is None:
        found[names.MESHD_SERVED_BY] = _short(call.substitution.served_by)
    if call.prompts is not None and call.prompts.used:
        found[names.MESHD_PROMPTS] = tuple(map(str, call.prompts.used))
    if call.reply_headers:
        _of_intent(call, found)
    if call.passage is not None and call.passage.sized is not None:
        found |= _of_result(call.passage.sized)
    if meter is not None:
        _of_meter(meter, found)
    if call.holding is not None:
        found |= of_holding(call.holding)
    if outcome is not None:
        found[names.MESHD_VERDICT] = outcome.verdict._value_
    if refused is not None:
        found[names.MESHD_REASON] = refused.reason._value_
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
    found[names.MESHD_KIND] = target.kind._value_
    if target.name:
        found[names.MESHD_TARGET] = _short(target.name)
    if upstream is not None and upstream.host:
        found[names.SERVER_ADDRESS] = _short(upstream.host)
        found[names.SERVER_PORT] = upstream.port
    # The query is left out whole: it is where keys and questions are.
    found[names.URL_PATH] = _short(call.path.partition("?")[0])


def _of_grpc(call: Call, outcome: Outcome | None, refused: Refused | None, found: dict[str, Any]) -> None:
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
            first_token_s = outcome.first_token_s
            found[names.FIRST_CHUNK] = outcome.first_byte_s if first_token_s is None else first_token_s
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
        found[names.RESPONSE_FINISH_REASONS] = tuple([_short(reason) for reason in reasons])


def _of_result(sized: Any) -> dict[str, Any]:
    """How long a tool's result was; nothing of what it says."""
    found = {names.MESHD_RESULT_BYTES: sized.bytes, names.MESHD_RESULT_TOKENS: sized.tokens}
    return found | {names.MESHD_RESULT_LEFT_OUT: sized.left_out} if sized.left_out else found


def _of_intent(call: Call, found: dict[str, Any]) -> None:
    """What the caller is told of whom its words led to; the words themselves are content."""
    for name, value in call.reply_headers:
        attribute = _OF_INTENT.get(name)
        if attribute is not None:
            text = value.decode("ascii", "replace")
            found[attribute] = float(text) if attribute == names.MESHD_INTENT_SCORE else _short(text)
