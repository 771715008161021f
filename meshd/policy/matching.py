"""Which rules a call matches, and the plan that follows from them.

The work is split so that a call pays for none of it twice: the rules that fit a (target, agent) are found once and
kept; where some of them look at the operation or the tool, the plan is kept for these too. A kept plan costs two
dictionary look-ups, whatever the number of rules. Both memos are bounded, because models, agents and paths are
what callers write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import unquote

from meshd.call import Kind
from meshd.filters.plan import Hits, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.call import Target
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.approval_settings import ApprovalSettings
    from meshd.filters.breaker_settings import BreakerSettings
    from meshd.filters.budget_settings import BudgetSettings
    from meshd.filters.chain_settings import ChainSettings
    from meshd.filters.concurrency_settings import ConcurrencySettings
    from meshd.filters.contract import Settings
    from meshd.filters.delegation_settings import DelegateSettings
    from meshd.filters.fallback_settings import RetrySettings
    from meshd.filters.idempotency_settings import IdempotencySettings
    from meshd.filters.routing_settings import RouteSettings
    from meshd.filters.turns_settings import TurnsSettings

MEMO_ENTRIES_MAX: Final = 4096
"""Per generation; two generations are kept."""
OPERATION_CHARACTERS_MAX: Final = 256
"""Longer operations are judged, but not kept: they would fill the memo's memory."""

_EVENTS: Final = frozenset({Kind.EVENT})
_CALLS: Final = frozenset(Kind) - _EVENTS

Globs = tuple[str, ...]
K = TypeVar("K")
V = TypeVar("V")


def glob_regex(globs: Globs) -> re.Pattern[str]:
    """Compile globs into one expression that matches whole texts: `*` any run, `?` one character, nothing else.

    Brackets stand for themselves: a character class in a policy is read wrongly more often than it is needed.
    Matching takes linear time in the text, which a caller writes: what lies between two stars is found at its first
    place and never sought again (an atomic group), which is enough for globs.
    """
    return re.compile(f"(?:{'|'.join(_glob_source(glob) for glob in globs)})", re.DOTALL)


def _glob_source(glob: str) -> str:
    first, *rest = ["".join("." if c == "?" else re.escape(c) for c in part) for part in re.split(r"\*+", glob)]
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>.*?{part})" for part in middle) + ".*" + last


def is_literal(glob: str) -> bool:
    """Say whether a glob fits exactly one text."""
    return "*" not in glob and "?" not in glob


def covers(wide: Globs | None, narrow: Globs | None) -> bool:
    """Say whether one of `wide` surely fits everything that each of `narrow` does; None fits all. Sound, not complete.

    A glob covers another that it fits as a text: the stars of the narrow one can only have been taken by stars.
    """
    if wide is None:
        return True
    if narrow is None:
        narrow = ("*",)
    return all(any(_covers(w, n) for w in wide) for n in narrow)


def _covers(wide: str, narrow: str) -> bool:
    if "?" in wide and "*" in narrow:
        return wide == narrow
    return glob_regex((wide,)).fullmatch(narrow) is not None


class GlobSet:
    """Compiled globs of one key of a match; literals are looked up, the rest is one expression."""

    __slots__ = ("_expression", "_literals")

    def __init__(self, globs: Globs) -> None:
        self._literals = frozenset(glob for glob in globs if is_literal(glob))
        wild = tuple(glob for glob in globs if not is_literal(glob))
        self._expression = glob_regex(wild).fullmatch if wild else None

    def fits(self, text: str) -> bool:
        """Say whether any of the globs fits the whole text."""
        if text in self._literals:
            return True
        return self._expression is not None and self._expression(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a rule asks of a call; a key that is None asks nothing. All keys must fit.

    Events are no calls: a rule that names neither their kind nor a topic is not for them.
    """

    target: Globs | None = None
    kind: tuple[Kind, ...] | None = None
    agent: Globs | None = None
    tool: Globs | None = None
    model: Globs | None = None
    operation: Globs | None = None
    topic: Globs | None = None

    @property
    def kinds(self) -> frozenset[Kind]:
        """Of what this is for."""
        if self.kind is not None:
            return frozenset(self.kind)
        return _EVENTS if self.topic is not None else _CALLS

    def covers(self, other: Match) -> bool:
        """Say whether this surely fits every call that `other` fits. Sound, not complete."""
        if not other.kinds <= self.kinds:
            return False
        keys = ("target", "agent", "tool", "model", "operation", "topic")
        return all(covers(getattr(self, key), getattr(other, key)) for key in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, with the settings that it gives to each filter."""

    name: str
    match: Match
    is_shadow: bool = False
    route: RouteSettings | None = None
    allow: AllowSettings | None = None
    budget: BudgetSettings | None = None
    breaker: BreakerSettings | None = None
    retry: RetrySettings | None = None
    approval: ApprovalSettings | None = None
    delegate: DelegateSettings | None = None
    chain: ChainSettings | None = None
    concurrency: ConcurrencySettings | None = None
    idempotency: IdempotencySettings | None = None
    turns: TurnsSettings | None = None
    hits: Hits = field(default_factory=Hits)

    @property
    def settings(self) -> tuple[Settings, ...]:
        """Everything that this rule sets."""
        every = (
            self.route, self.allow, self.budget, self.breaker, self.retry, self.approval, self.delegate,
            self.chain, self.concurrency, self.idempotency, self.turns,
        )  # fmt: skip
        return tuple(settings for settings in every if settings is not None)


class _Candidate:
    """A rule with its globs compiled."""

    __slots__ = ("agent", "kind", "model", "operation", "rule", "target", "tool", "topic")

    def __init__(self, rule: Rule) -> None:
        match = rule.match
        self.rule = rule
        self.kind = match.kinds
        self.target, self.agent, self.tool, self.model, self.operation, self.topic = (
            None if globs is None else GlobSet(globs)
            for globs in (match.target, match.agent, match.tool, match.model, match.operation, match.topic)
        )

    def fits_place(self, target: Target, agent: str) -> bool:
        """Judge what does not change from call to call on the same edge."""
        return (
            target.kind in self.kind
            and (self.target is None or self.target.fits(target.name))
            and (self.topic is None or self.topic.fits(target.name))
            and (self.model is None or self.model.fits(target.model))
            and (self.agent is None or self.agent.fits(agent))
        )

    def fits_deed(self, operation: str, tool: str) -> bool:
        """Judge the rest. `/research.v1.Research/Find` is `research.v1.Research/Find` too, as gRPC calls it: of every
        method and content-type, since servers that take gRPC may take the same by others. An operation of two lines
        has two names."""
        globs = self.operation
        if globs is not None and not any(_fits_name(globs, name) for name in operation.split("\n")):
            return False
        return self.tool is None or (tool != "" and self.tool.fits(tool))


def _fits_name(globs: GlobSet, name: str) -> bool:
    if globs.fits(name):
        return True
    _, slash, rpc = name.partition(" /")
    return bool(slash) and "/" in rpc and globs.fits(rpc)


class Generations(Generic[K, V]):
    """A bounded memo: when the young generation is full it becomes the old one, and the old one is forgotten."""

    __slots__ = ("_old", "_size_max", "young")

    def __init__(self, size_max: int) -> None:
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._size_max = size_max

    def find(self, key: K) -> V | None:
        """Return what is kept under a key that is not among the young."""
        value = self._old.get(key)
        if value is not None:
            self.keep(key, value)
        return value

    def keep(self, key: K, value: V) -> None:
        """Keep a value; forgets the oldest half where there is no room."""
        if len(self.young) >= self._size_max:
            self._old, self.young = self.young, {}
        self.young[key] = value

    def __len__(self) -> int:
        return len(self.young) + len(self._old)


class _Place:
    """The rules that fit one (target, agent): a finished plan, or those of which operation and tool decide."""

    __slots__ = ("candidates", "plan")

    def __init__(self, candidates: list[_Candidate], plan: Plan | None) -> None:
        self.candidates = candidates
        self.plan = plan


def normal_operation(operation: str) -> str:
    """Return an operation such as `delete /a/../invoices/%37` as rules see it: `DELETE /invoices/7`.

    Percent-encoding, dot segments and doubled slashes are resolved as most servers do, so that another spelling of a
    path does not slip past a rule. Judged only: what is forwarded stays as it came.
    """
    method, space, path = operation.partition(" ")
    if not space:
        return operation
    path, line, other = path.partition("\n")
    path = path.partition("?")[0].partition("#")[0]
    if "%" in path:
        path = unquote(path, errors="replace")
    if "/." in path or "//" in path or "\\" in path:
        kept: list[str] = []
        parts = path.replace("\\", "/").split("/")
        for part in parts:
            if part == "..":
                del kept[-1:]
            elif part not in ("", "."):
                kept.append(part)
        path = "/" + "/".join(kept) + ("/" if kept and parts[-1] in ("", ".", "..") else "")
    return f"{method.upper()} {path}{line}{other}"


class Matcher:
    """Finds plans. One for each policy, with memos of its own, so that a reload forgets nothing that is in use."""

    __slots__ = ("_build", "_candidates", "_deeds", "_places")

    def __init__(
        self,
        rules: Iterable[Rule],
        build: Callable[[list[Rule], Target], Plan],
        *,
        memo_entries_max: int = MEMO_ENTRIES_MAX,
    ) -> None:
        """`build` makes the plan of the rules that fit, in their order, for a target."""
        self._candidates = [_Candidate(rule) for rule in rules]
        self._build = build
        self._places: Generations[tuple[Target, str], _Place] = Generations(memo_entries_max)
        self._deeds: Generations[tuple[Target, str, str, str], Plan] = Generations(memo_entries_max)

    def plan(self, target: Target, agent: str, operation: str, tool: str) -> Plan:
        """Return the plan of a call."""
        place = self._places.young.get((target, agent))
        if place is None:
            place = self._place(target, agent)
        if place.plan is not None:
            return place.plan
        key = (target, agent, operation, tool)
        plan = self._deeds.young.get(key)
        if plan is None:
            plan = self._deeds.find(key)
            if plan is None:
                normal = normal_operation(operation)
                fitting = [c.rule for c in place.candidates if c.fits_deed(normal, tool)]
                plan = self._build(fitting, target)
                if len(operation) <= OPERATION_CHARACTERS_MAX:
                    self._deeds.keep(key, plan)
        return plan

    def _place(self, target: Target, agent: str) -> _Place:
        key = (target, agent)
        place = self._places.find(key)
        if place is None:
            candidates = [c for c in self._candidates if c.fits_place(target, agent)]
            is_settled = all(c.operation is None and c.tool is None for c in candidates)
            place = _Place(candidates, self._build([c.rule for c in candidates], target) if is_settled else None)
            if len(target.model) + len(agent) <= OPERATION_CHARACTERS_MAX:
                self._places.keep(key, place)
        return place

    @property
    def memo_entries(self) -> int:
        """How many plans and places are kept."""
        return len(self._places) + len(self._deeds)
