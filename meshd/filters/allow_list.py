"""AllowList: which targets, models, hosts, tools and prompts a call may use.

Tools are judged where meshd can see them: those that an LLM request offers, those that its answer begins to call, those
that are called at an upstream which speaks MCP, and any other upstream of kind tool by its own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.filters.allow_list_settings import AllowSettings
from meshd.filters.contract import Cut
from meshd.filters.globs import names
from meshd.prompts.finding import named_in
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call, Target
    from meshd.dialects.event import Event
    from meshd.filters.globs import Names
    from meshd.filters.plan import Plan
    from meshd.outcome import Outcome

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_AGENT: Final = Kind.AGENT
_LLM: Final = Kind.LLM
_TOOL: Final = Kind.TOOL
_HOST: Final = Kind.HOST
_EVENT: Final = Kind.EVENT

_UNREAD: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
"""Methods with which MCP's clients listen and end their sessions."""


class AllowList:
    """Refuses what the policy does not allow; watches an answer for the tools that it calls."""

    __slots__ = ("_allow", "_model", "_shadowed", "_target")

    name = "allow_list"

    def __init__(self, shadowed: Callable[[Call, Refused], None] | None = None) -> None:
        """`shadowed` is told what a rule on trial would have refused beside one that binds, and in an answer."""
        self._shadowed = shadowed
        self._allow: AllowSettings | None = None
        self._target: Target | None = None
        self._model = ""
        """What was allowed last, of calls whose target and model are all that is judged, and by which settings; the
        model is empty where it is the target alone. Routing has one target for each tool that is called, and for each
        method of a message."""

    def admit(self, call: Call) -> ToolWatch | None:
        """Raise Refused(NOT_ALLOWED), or return a ticket where the answer's tool calls must be judged."""
        plan: Plan = call.plan
        if plan.trials and self._shadowed is not None:
            self._try(call)
        allow: AllowSettings | None = plan.allow
        if allow is None:
            return None
        ask, target = call.ask, call.target
        model = "" if ask is None else ask.model_sent
        is_more = ask is not None and bool(ask.tools or ask.other_models or not model)
        if is_more or allow is not self._allow or target is not self._target or model != self._model:
            judge(call, allow)
            if not is_more and (model or target.kind is _AGENT or target.kind is _TOOL) and allow.prompts is None:
                self._allow, self._target, self._model = allow, target, model
        if ask is None or not ask.tools or allow.tools is None or not ask.has_output:
            return None
        return ToolWatch(call, allow, self._shadowed)

    def explain(self, call: Call) -> str:
        """Say what the rules allow here."""
        allow: AllowSettings | None = call.plan.allow
        if allow is None:
            return "no rule restricts this"
        limits = [
            f"{key} {', '.join(value[:10]) or 'none'}"
            for key in ("targets", "hosts", "models", "tools", "prompts")
            if (value := getattr(allow, key)) is not None
        ]
        return f"allowed by {allow.rule or 'the policy'}: {'; '.join(limits) or 'anything'}"

    def _try(self, call: Call) -> None:
        for trial in call.plan.trials:
            if isinstance(trial, AllowSettings) and self._shadowed is not None:
                try:
                    judge(call, trial)
                except Refused as refused:
                    refused.is_shadow = True
                    self._shadowed(call, refused)


def judge(call: Call, allow: AllowSettings) -> None:
    """Raise Refused(NOT_ALLOWED) where `allow` does not allow the request of `call`."""
    if allow.denied is not None:
        raise _refused(allow, f"{call.target.name or 'This'} is not allowed: {allow.denied}")
    target = call.target
    if allow.targets is not None and not names(allow.targets).admits(target.name):
        what = "topic" if target.kind is _EVENT else "upstream"
        raise _refused(allow, f"The {what} {target.name[:64]} is not allowed here.{_list(allow.targets)}")
    if target.kind is _LLM:
        if allow.models is not None or allow.tools is not None:
            _judge_llm(call, allow)
        if allow.prompts is not None:
            _judge_prompts(call, allow, allow.prompts)
    elif target.kind is _EVENT:
        return
    elif target.kind is not _HOST:
        if allow.tools is not None:
            _judge_tool(call, allow, allow.tools)
    elif allow.hosts is not None:
        host = call.upstream.host if call.upstream is not None else target.name
        if not names(allow.hosts).admits(host):
            raise _refused(allow, f"The host {host[:255]} is not allowed.{_list(allow.hosts)}")


def _judge_tool(call: Call, allow: AllowSettings, tools: tuple[str, ...]) -> None:
    """Judge an upstream that speaks MCP by the tools that are called there, any other of kind tool by its own name."""
    target, rpc = call.target, call.rpc
    if call.upstream is not None and call.upstream.dialect == "mcp":
        # What lists tools, reads a resource or keeps the session calls none. A body that is no POST's is not read.
        if (rpc is None and call.method in _UNREAD) or (rpc is not None and not rpc.tool):
            return
        name = target.name if rpc is None else rpc.tool
    elif target.kind is _TOOL:
        name = target.name
    else:
        return
    if not names(tools).admits(name):
        raise _refused(allow, f"The tool {name[:64]} is not allowed.{_list(tools)}")


def _judge_llm(call: Call, allow: AllowSettings) -> None:
    ask = call.ask
    if ask is None:
        # What cannot be read cannot be found allowed: another API of the same provider would lift the limit.
        if call.dialect is None or not call.dialect.is_free(call.method, call.path):
            bare = call.path.partition("?")[0]  # The query is where keys are.
            raise _refused(
                allow,
                f"{call.method} {bare[:200]} on {call.target.name} is no request that meshd can read, so its "
                "model and tools cannot be checked.",
            )
        return
    if allow.models is not None:
        admitted = names(allow.models)
        if not admitted.admits(ask.model_sent):
            raise _refused(allow, f"The model {ask.model_sent[:128]!r} is not allowed.{_list(allow.models)}")
        for model in ask.other_models:
            if not admitted.admits(model):
                raise _refused(
                    allow,
                    f"The model {model[:128]!r}, which the request lets the provider take besides, is not allowed."
                    f"{_list(allow.models)}",
                )
    if allow.tools is not None and ask.tools:
        foreign = names(allow.tools).first_foreign(ask.tools)
        if foreign is not None:
            raise _refused(
                allow, f"The tool {foreign[:128]!r} is not allowed: do not offer it to the model.{_list(allow.tools)}"
            )


def _judge_prompts(call: Call, allow: AllowSettings, prompts: tuple[str, ...]) -> None:
    """Judge what the request names, before anybody looks for it."""
    foreign = names(prompts).first_foreign(named_in(call).names)
    if foreign is not None:
        raise _refused(allow, f"The prompt {foreign} is not allowed.{_list(prompts)}")


class ToolWatch:
    """The ticket of a call whose answer may call tools: ends the answer before a forbidden call is delivered."""

    __slots__ = ("_allow", "_call", "_shadowed", "_tools")

    judges_whole = True

    def __init__(self, call: Call, allow: AllowSettings, shadowed: Callable[[Call, Refused], None] | None) -> None:
        self._call = call
        self._allow = allow
        self._tools: Names = names(allow.tools or ())
        self._shadowed = shadowed

    def on_event(self, event: Event) -> Event | Cut:
        """Return the event, or a Cut with an error where it begins to call a tool that is not allowed."""
        if not event.tool_names:
            return event
        foreign = self._tools.first_foreign(event.tool_names)
        if foreign is None:
            return event
        message = f"The model called the tool {foreign[:128]!r}, which is not allowed.{_list(self._allow.tools or ())}"
        if not self._allow.is_shadow:
            return Cut(message, is_error=True)
        if self._shadowed is not None:
            self._shadowed(self._call, _refused(self._allow, message))
        return event

    def settle(self, outcome: Outcome) -> None:
        """Nothing was taken."""


def _list(globs: tuple[str, ...]) -> str:
    shown = ", ".join(globs[:10]) + (", ..." if len(globs) > 10 else "")
    return f" Allowed: {shown or 'none'}."


def _refused(allow: AllowSettings, message: str) -> Refused:
    return Refused(Reason.NOT_ALLOWED, message, rule=allow.rule, is_shadow=allow.is_shadow)
