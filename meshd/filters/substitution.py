"""What stands in for a target that fails: whom an attempt is for then, and how far a call has come down its chain.

A substitute is judged as if it had been asked for: its own plan holds, with its own budgets, breaker, retries and
`allow`. What it cannot serve (another kind, tools that its rules do not allow, a request too long for it) is passed
over, and the call says so. One provider's key never goes to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Kind, Target
from meshd.dialects.gemini import without_key
from meshd.dialects.rebounding import bound_anew
from meshd.dialects.table import DIALECTS, dialect_at
from meshd.dialects.translation import translation
from meshd.dialects.windows import window
from meshd.filters.asking import why_asked
from meshd.filters.plan import operation_of, tool_of
from meshd.refusal import Refused
from meshd.tokens.encodings import BYTES, COUNT

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask, Call, Headers
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.chain_settings import ChainSettings, Substitute

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_LLM: Final = Kind.LLM

BYTES_PER_TOKEN: Final = 6
"""More than any language or code has on average: a request with fewer tokens than its bytes divided by this is rare."""

UPSTREAM: Final = "upstream"
MODEL: Final = "model"
CACHED: Final = "cached"
COMMAND: Final = "command"
PYTHON: Final = "python"
REPLY: Final = "reply"
KINDS: Final = (UPSTREAM, MODEL, CACHED, COMMAND, PYTHON, REPLY)
"""Kinds of links, for the metric's label and the header."""


def kind_of(link: Substitute) -> str:
    """Return which of KINDS a link of a chain is."""
    if link.upstream is not None:
        return UPSTREAM
    if link.model is not None:
        return MODEL
    if link.cached is not None:
        return CACHED
    if link.command is not None:
        return COMMAND
    return PYTHON if link.python is not None else REPLY


def name_of(link: Substitute) -> str:
    """Return how a link is called in messages and in the header: what it is, or whom it names."""
    named = [part for part in (link.upstream, link.model) if part is not None]
    return "/".join(named) if named else "cache" if link.cached is not None else kind_of(link)


class Standing:
    """Whom an attempt of a call is for: all that changes with the target."""

    __slots__ = (
        "ask", "body", "credentials", "dialect", "is_foreign", "path", "plan", "target", "translation", "upstream",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self.target = call.target
        self.upstream: Any = call.upstream
        self.dialect: Any = call.dialect
        self.ask: Ask | None = call.ask
        self.path = call.path
        self.body = call.body
        self.plan: Any = call.plan
        self.credentials: Headers = call.credentials
        self.translation: Any = None
        """`Translation`, where the substitute speaks another dialect than the caller."""
        self.is_foreign = False
        """The caller's key, cookies and fields for its own provider are not for this one."""

    def put(self, call: Call) -> None:
        """Make it the standing of `call`."""
        call.target = self.target
        call.upstream = self.upstream
        call.dialect = self.dialect
        call.ask = self.ask
        call.path = self.path
        call.body = self.body
        call.plan = self.plan
        call.credentials = self.credentials


class Substitution:
    """How far a call has come down its chain."""

    __slots__ = (
        "attempts_before", "is_free_only", "is_local", "kind", "links", "origin", "request", "seen", "served_by",
        "standing", "taken", "tried", "why",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self.origin = Standing(call)
        """The call as it was before anything took its target's place."""
        self.standing: Standing | None = None
        """Of the substitute upstream whose attempts are under way; None for what meshd answers itself."""
        self.links: list[tuple[Substitute, Target]] = []
        """What is still to be tried, and whose chain it is of: a link that names no upstream or no model means that
        one's."""
        self.seen: list[ChainSettings] = []
        self.taken: set[Target] = {call.target}
        """Targets that have been tried: none is tried twice."""
        self.tried: list[str] = []
        """What was tried or passed over, and why, for the message where nothing serves the call."""
        self.why = ""
        """Why the link under way gave nothing, where it is no upstream."""
        self.is_free_only = False
        """From here on only what costs nothing and sends nothing may serve the call."""
        self.attempts_before = 0
        """Attempts that were made before the present target's first."""
        self.served_by = ""
        """What serves the call now, as the header says it."""
        self.kind = ""
        """Which of KINDS that is; empty where nothing is left."""
        self.is_local = False
        """meshd answers itself: nothing is sent."""
        self.request: Any = None
        """`Request` for the attempts under way, where the caller's own fields may not all go there."""

    def add(self, chain: ChainSettings, target: Target) -> None:
        """Put the links of the chain of a target before those that are left, once."""
        if not any(one is chain for one in self.seen):
            self.seen.append(chain)
            self.links[:0] = [(link, target) for link in chain.to]


def is_too_long(ask: Ask | None, model: str) -> bool:
    """Say whether a request is surely or almost surely longer than a model can read."""
    if ask is None:
        return False
    if ask.bound_by == COUNT:
        return ask.input_bound > window(model)
    return ask.bound_by == BYTES and ask.input_bound > window(model) * BYTES_PER_TOKEN


def stand_in(
    call: Call,
    origin: Standing,
    link: Substitute,
    of: Target,
    judge: Callable[[Call, AllowSettings], None] | None,
) -> Standing | str:
    """Return the standing of `call` with a substitute upstream or model in its target's place, or why it cannot be.

    `of` is the target whose chain has the link. `call` is as before when this returns; its standing is changed for as
    long as it is judged.
    """
    now = Standing(call)
    try:
        origin.put(call)
        return _placed(call, origin, link, of, judge)
    except Refused as refused:
        return refused.message
    finally:
        now.put(call)


def _placed(
    call: Call,
    origin: Standing,
    link: Substitute,
    of: Target,
    judge: Callable[[Call, AllowSettings], None] | None,
) -> Standing | str:
    name = link.upstream or of.name
    upstream = origin.upstream if name == origin.upstream.name else call.policy.upstreams.get(name)
    if upstream is None:
        return "there is no such upstream"
    old, ask = origin.upstream, origin.ask
    if upstream.kind is not old.kind or upstream.is_peer != old.is_peer:
        return f"it is of kind {upstream.kind.value}"
    if call.earlier is not None or (ask is not None and ask.is_sealed and upstream.key_header is None):
        return "the request is for that upstream alone"
    made = Standing(call)
    made.upstream = upstream
    is_elsewhere = (upstream.scheme, upstream.host, upstream.port) != (old.scheme, old.host, old.port)
    made.is_foreign = is_elsewhere
    if is_elsewhere and upstream.key_header is None:
        made.credentials = []
    model = link.model or of.model
    made.target = Target(upstream.kind, upstream.name, model)
    why = _speak(call, origin, made, model)
    if why:
        return why
    made.put(call)
    made.plan = call.plan = call.policy.plan(made.target, call.agent, operation_of(call), tool_of(call))
    return _why_not_judged(call, origin, judge) or _why_not_able(call, made) or made


def _speak(call: Call, origin: Standing, made: Standing, model: str) -> str:
    """Put the request into the words of the substitute; return why that cannot be, empty where it can."""
    path, old, new = origin.path, origin.upstream, made.upstream
    below = path[len(old.base_path) :] if path.startswith(old.base_path) else path
    if origin.dialect.name == "grpc":
        made.path = new.base_path + below
        return "it has no HTTP/2" if new.protocol == "http/1.1" else ""
    ask = origin.ask
    made.path = new.base_path + below
    # What a tool or an agent speaks is not its upstream's to say: MCP and A2A are known by the call itself.
    if new.kind is _LLM and dialect_at(new.dialect, made.path) is not origin.dialect:
        return _translate(origin, made, model)
    if made.is_foreign and "?" in made.path and new.dialect == "gemini":
        made.path = without_key(made.path)
    if ask is None:
        return "" if not model or model == origin.target.model else "meshd cannot read which model it asks for"
    # Read anew: what a budget granted the attempt before was for another model, and out of another account.
    again: Ask = origin.dialect.read(ask.operation, origin.body or b"", made.path, call.headers)
    made.ask = again
    if model != again.model:
        again.model_granted = model
        made.put(call)
        bound_anew(call, again)
    return ""


def _translate(origin: Standing, made: Standing, model: str) -> str:
    """Put the request into another dialect; return why that cannot be, empty where it can."""
    ask, new = origin.ask, made.upstream
    dialect = DIALECTS[new.dialect]
    translated = None if ask is None else translation(origin.dialect.name, dialect.name, ask.operation)
    if ask is None or translated is None:
        return f"nothing translates this from {origin.dialect.name} into {dialect.name}"
    why = translated.why_not(ask, model)
    if why:
        return f"it cannot be said in {dialect.name}: {why}"
    path, made.body = translated.request(ask, origin.body or b"", model=model, output_cap=None)
    # Where the policy's URL has the version already, agents leave it out of theirs.
    made.path = new.base_path + (path.removeprefix("/v1") if new.base_path.endswith("/v1") else path)
    made.translation = translated
    made.dialect = dialect
    made.credentials = []
    made.ask = dialect.read(ask.operation, made.body, made.path)
    return ""


def _why_not_judged(call: Call, origin: Standing, judge: Callable[[Call, AllowSettings], None] | None) -> str:
    """Say why the rules do not let the substitute take the call. Raises Refused where AllowList does."""
    plan, before = call.plan, origin.plan
    allow = plan.allow if plan.allow is None or not plan.allow.is_shadow else None
    allow_before = before.allow if before.allow is None or not before.allow.is_shadow else None
    if call.ask is not None and call.ask.tools:
        tools = allow.tools if allow is not None else None
        if tools != (allow_before.tools if allow_before is not None else None):
            # Whoever watches the answer for tools judges by the plan that the call had when it was admitted.
            return "its rules allow other tools"
    # Whoever was asked was told of the substitutes; nobody was where the call itself costs too little to ask.
    is_covered = call.holding is not None and plan.approval is before.approval
    if plan.approval is not None and not plan.approval.is_shadow and not is_covered and why_asked(call, plan.approval):
        return "its rules need an approval that the call does not have"
    if allow is not None:
        if judge is None:
            return "nobody can judge it"
        judge(call, allow)
    return ""


def _why_not_able(call: Call, made: Standing) -> str:
    ask = made.ask
    if ask is None:
        return ""
    if is_too_long(ask, ask.model_sent):
        return f"the request is too long for {ask.model_sent[:64]}"
    if ask.unbounded and made.plan.budgets:
        return "nobody knows what the request may cost there"
    return ""
