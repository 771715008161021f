"""What types cannot say: upstreams that may not be called, and rules that can match nothing or set nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.call import Kind
from meshd.dialects.table import RPC
from meshd.policy.checking_approvals import ApprovalChecker
from meshd.policy.checking_budgets import BudgetChecker
from meshd.policy.checking_events import check_event_rule, check_events, is_for_events
from meshd.policy.checking_fallback import ChainChecker
from meshd.policy.checking_supervisor import check_supervisor
from meshd.policy.gateway import gateway_upstream
from meshd.policy.intending import check_intents
from meshd.policy.matching import GlobSet, Match, is_literal
from meshd.policy.planning import ALLOWED
from meshd.policy.problem import shown
from meshd.policy.prompting import check_prompts
from meshd.policy.report import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import Document, MatchSection, RuleSection
    from meshd.policy.report import Location, Report
    from meshd.upstream import Upstream

INBOUND_NAME = "app"
"""Name of the target of calls that come in: the agent beside this sidecar."""
RULE_NAMES_RESERVED = frozenset({"governance", "default"})
SETS = (
    "budget", "breaker", "concurrency", "retry", "fallback", "turns", "approval", "allow", "delegate", "deny", "route",
    "idempotency",
)  # fmt: skip
UNENFORCED: tuple[tuple[str, ...], ...] = ()
"""Keys of a rule that the schema has and this build does nothing for, each as a path; `Unenforced` in the model.
There are none: whoever adds a key before its filter names it here, so that no rule is silently without effect."""
OPERATIONS = frozenset(
    {
        "chat", "compaction", "embeddings", "image_edit", "image_generation", "image_variation", "moderation", "rerank",
        "responses", "speech", "text_completion", "transcription", "translation",
    }
)  # fmt: skip
"""What the dialects of LLMs read; every other operation is a method and a path, or a service and a method."""
_DECIDES_ALONE = (
    "approval", "breaker", "concurrency", "delegate", "fallback", "idempotency", "retry", "route", "turns", "deny",
)  # fmt: skip
"""Keys of which the first rule that sets them has the whole say."""
_METHODS = frozenset({"get", "head", "post", "put", "patch", "delete", "options", "trace", "connect"})


@dataclass(frozen=True, slots=True)
class _Possible:
    """A target that calls may have under this document."""

    name: str
    kind: Kind
    dialect: str = "plain"


class Checker:
    """Checks of one document; everything is reported, nothing is raised."""

    def __init__(
        self,
        document: Document,
        upstreams: Mapping[str, Upstream],
        report: Report,
        *,
        broken: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        """`broken` has the numbers of rules that were reported already, and are not to be judged."""
        self.document = document
        self.broken = broken
        self.upstreams = upstreams
        self.report = report
        self.possible = [_Possible(upstream.name, upstream.kind, upstream.dialect) for upstream in upstreams.values()]
        self.possible.append(_Possible(INBOUND_NAME, Kind.AGENT))
        if (gateway := gateway_upstream(upstreams)) is not None:
            self.possible.append(_Possible(gateway.name, gateway.kind, gateway.dialect))
        self.budgets = BudgetChecker(document, upstreams, report)
        self.approvals = ApprovalChecker(document, report)
        self.chains = ChainChecker(document, upstreams, report)

    def check(self) -> None:
        """Check every rule by itself, then against the rules before it."""
        seen: dict[str, int] = {}
        for index, rule in enumerate(self.document.rules):
            if index in self.broken:
                continue
            here: Location = ("rules", index)
            name = rule_name(rule, index)
            if name in RULE_NAMES_RESERVED:
                self.report.error((*here, "name"), f"the name {shown(name)} is taken by meshd itself")
            if name in seen:
                self.report.error(
                    (*here, "name"), f"the rule {shown(name)} is there already, as number {seen[name] + 1}"
                )
            seen.setdefault(name, index)
            self.rule(here, rule)
        self.approvals.check()
        self.unreachable()
        check_events(self.document, self.upstreams, self.report)
        check_supervisor(self.document, self.upstreams, self.report)
        check_intents(self.document, self.upstreams, self.report)
        check_prompts(self.document, self.report)
        self.chains.cycles()

    def rule(self, here: Location, rule: RuleSection) -> None:
        """Check one rule by itself."""
        if not any(getattr(rule, key) is not None for key in SETS):
            self.report.error(here, f"this rule sets nothing: it needs one of {', '.join(SETS)}")
        if rule.allow is not None and rule.deny is not None:
            self.report.error((*here, "deny"), "a rule either allows or denies, not both", is_key=True)
        if is_for_events(rule.match):
            check_event_rule(here, rule, self.report)
            return
        fitting = self.match((*here, "match"), rule.match)
        if fitting is None:
            return
        kinds = {target.kind for target in fitting}
        is_llm = Kind.LLM in kinds
        if rule.match.model is not None and not is_llm:
            self.report.error((*here, "match", "model"), "only calls to an LLM have a model, and this rule fits no LLM")
        if rule.budget is not None and not is_llm:
            self.budgets.unmetered(here, rule.budget, kinds)
        if rule.delegate is not None and not any(
            target.kind is Kind.AGENT or ((via := self.upstreams.get(target.name)) is not None and via.is_peer)
            for target in fitting
        ):
            self.report.error(
                (*here, "delegate"), "only an agent is given tokens, and this rule fits no agent", is_key=True
            )
        if rule.concurrency is not None and rule.concurrency.min > rule.concurrency.max:
            key = "min" if "min" in rule.concurrency.model_fields_set else "max"
            self.report.error(
                (*here, "concurrency", key),
                f"min ({rule.concurrency.min}) is more than max ({rule.concurrency.max}): no limit is both",
            )
        self.budgets.rule(here, rule, [target.name for target in fitting if target.name in self.upstreams])
        self.allow(here, rule, kinds, is_mcp=any(target.dialect == "mcp" for target in fitting))
        self.approvals.rule(here, rule, kinds)
        self.chains.rule(here, rule, [(target.name, target.kind) for target in fitting])
        self.route(here, rule, fitting)

    def match(self, here: Location, match: MatchSection) -> list[_Possible] | None:
        """Return the targets that a match fits, or None where a problem with them was reported."""
        count = len(self.report.problems)
        names = [target.name for target in self.possible]
        for key in ("target", "agent", "tool", "model", "operation"):
            self.twice((*here, key), getattr(match, key) or ())
        for index, glob in enumerate(match.target or ()):
            if not any(map(GlobSet((glob,)).fits, names)):
                known = sorted(self.upstreams)
                hint = nearest(glob, known) or f"; there are: {', '.join(known) or 'none'}"
                self.report.error((*here, "target", index), f"no upstream fits {shown(glob)}{hint}")
        for index, kind in enumerate(match.kind or ()):
            if not any(target.kind.value == kind for target in self.possible):
                self.report.error((*here, "kind", index), f"no upstream is of kind {kind}")
        if len(self.report.problems) > count:
            return None
        fits = GlobSet(match.target).fits if match.target is not None else None
        fitting = [
            target
            for target in self.possible
            if (match.kind is None or target.kind.value in match.kind) and (fits is None or fits(target.name))
        ]
        if not fitting:
            self.report.error(here, "contradictory: no upstream of this kind fits target", is_key=True)
            return None
        for index, glob in enumerate(match.operation or ()):
            self.operation((*here, "operation", index), glob, fitting)
        if match.tool is not None:
            self.tool((*here, "tool"), match.tool, fitting)
        return fitting

    def tool(self, here: Location, globs: tuple[str, ...], fitting: list[_Possible]) -> None:
        """Report globs that fit no tool: only upstreams that speak MCP have tools with names of their own."""
        if any(target.dialect == "mcp" for target in fitting):
            return
        tools = [target.name for target in fitting if target.kind is Kind.TOOL]
        if not tools:
            self.report.error(here, "only calls to a tool have one, and this rule fits no upstream of kind tool or MCP")
            return
        for index, glob in enumerate(globs):
            if not any(map(GlobSet((glob,)).fits, tools)):
                hint = nearest(glob, tools)
                self.report.error(
                    (*here, index),
                    f"no upstream of kind tool fits {shown(glob)}{hint}; what tools one offers is known only with "
                    "dialect: mcp",
                )

    def operation(self, here: Location, glob: str, fitting: list[_Possible]) -> None:
        """Report a glob that fits no operation: neither one that a dialect reads, nor a method and a path."""
        kinds = {target.kind for target in fitting}
        method, space, path = glob.partition(" ")
        if any(map(GlobSet((glob,)).fits, OPERATIONS)):
            if Kind.LLM not in kinds and is_literal(glob):
                self.report.error(here, f"{glob} is an operation of an LLM, and this rule fits none")
        elif method.lower() in _METHODS and (method != method.upper() or not space or path[:1] not in ("/", "*", "?")):
            path = path if path[:1] in ("/", "*", "?") else f"/{path}" if path else "*"
            self.report.error(here, f"fits no operation; did you mean {shown(f'{method.upper()} {path}')}?")
        elif not space and any(target.dialect in RPC for target in fitting):
            return  # Whatever method a message has: servers may have their own.
        elif not space and all(target.name == INBOUND_NAME for target in fitting):
            return  # What the agent itself asks people about (`meshd.api.approvals`) has names of its own.
        elif not space and is_literal(glob) and not 0 < glob.find("/") < len(glob) - 1:
            hint = nearest(glob, sorted(OPERATIONS))
            known = ", ".join(sorted(OPERATIONS))
            self.report.error(here, f"fits no operation; there are {known}, METHOD /PATH and SERVICE/METHOD{hint}")

    def twice(self, here: Location, globs: tuple[str, ...]) -> None:
        """Report globs that stand in a list twice."""
        for index, glob in enumerate(globs):
            if glob in globs[:index]:
                self.report.error((*here, index), f"{shown(glob)} is in this list already")

    def allow(self, here: Location, rule: RuleSection, kinds: set[Kind], *, is_mcp: bool) -> None:
        """Check that each list of `allow` is about something that the rule fits."""
        allow = rule.allow
        if allow is None:
            return
        if allow.denied is not None:
            self.report.error((*here, "allow", "denied"), "write deny: beside match: instead", is_key=True)
        elif all(value is None for value in (allow.models, allow.tools, allow.prompts, allow.targets, allow.hosts)):
            self.report.error(
                (*here, "allow"), "allow sets nothing: it needs models, tools, prompts, targets or hosts", is_key=True
            )
        for key, needed in (
            ("models", {Kind.LLM}),
            ("tools", {Kind.LLM, Kind.TOOL}),
            ("prompts", {Kind.LLM}),
            ("hosts", {Kind.HOST}),
        ):
            if getattr(allow, key) is not None and not kinds & needed and not (key == "tools" and is_mcp):
                words = " or ".join(sorted(kind.value for kind in needed))
                self.report.error((*here, "allow", key), f"this rule fits no upstream of kind {words}", is_key=True)
        for index, glob in enumerate(allow.targets or ()):
            if not any(GlobSet((glob,)).fits(target.name) for target in self.possible):
                hint = nearest(glob, sorted(self.upstreams))
                self.report.error((*here, "allow", "targets", index), f"no upstream fits {shown(glob)}{hint}")

    def route(self, here: Location, rule: RuleSection, fitting: list[_Possible]) -> None:
        """Check that a route leads to an upstream that can take the call's place."""
        route = rule.route
        if route is None:
            return
        if route.upstream is None and route.model is None:
            self.report.error((*here, "route"), "route sets nothing: it needs upstream or model", is_key=True)
        if route.model is not None and Kind.LLM not in {target.kind for target in fitting}:
            self.report.error((*here, "route", "model"), "this rule fits no LLM", is_key=True)
        if route.upstream is None:
            return
        to = self.upstreams.get(route.upstream)
        if to is None:
            known = sorted(self.upstreams)
            hint = nearest(route.upstream, known) or f"; there are: {', '.join(known) or 'none'}"
            self.report.error((*here, "route", "upstream"), f"there is no upstream {shown(route.upstream)}{hint}")
            return
        for target in fitting:
            via = self.upstreams.get(target.name)
            if via is not None and (via.kind, via.dialect, via.is_peer) != (to.kind, to.dialect, to.is_peer):
                self.report.error(
                    (*here, "route", "upstream"),
                    f"this rule fits {shown(via.name)} ({via.kind.value}, {via.dialect}), whose calls "
                    f"{shown(to.name)} ({to.kind.value}, {to.dialect}) does not understand: narrow match",
                )
                return

    def unreachable(self) -> None:
        """Report rules whose every setting an earlier rule has made already, for every call that they fit."""
        matches = [compile_match(rule.match) for rule in self.document.rules]
        for index, rule in enumerate(self.document.rules):
            sets = _contested(rule)
            if rule.shadow or not sets or rule.budget is not None or index in self.broken:
                continue
            before = [
                earlier
                for earlier in range(index)
                if not self.document.rules[earlier].shadow and matches[earlier].covers(matches[index])
            ]
            taken = {key: earlier for earlier in reversed(before) for key in _takes(self.document.rules[earlier])}
            if sets <= taken.keys():
                winners = sorted({rule_name(self.document.rules[taken[key]], taken[key]) for key in sets})
                names = ", ".join(shown(name) for name in winners)
                self.report.error(
                    ("rules", index), f"can match nothing: for every call that it fits, {names} before it decides"
                )


def _contested(rule: RuleSection) -> set[str]:
    """What a rule sets that only one rule can set for a call."""
    keys = {key for key in _DECIDES_ALONE if getattr(rule, key) is not None}
    if rule.allow is not None:
        keys |= {f"allow.{key}" for key in ALLOWED if getattr(rule.allow, key) is not None}
    return keys


def _takes(rule: RuleSection) -> set[str]:
    """What a rule that comes first takes from those after it."""
    keys = _contested(rule)
    if rule.deny is not None:
        keys |= {f"allow.{key}" for key in ALLOWED}
    if rule.allow is not None:
        keys.add("deny")
    return keys


def rule_name(rule: RuleSection, index: int) -> str:
    """Return a rule's name, or the one that its number gives it."""
    return rule.name or f"rule-{index + 1}"


def compile_match(match: MatchSection) -> Match:
    """Make the match that the hot path's memo is filled by."""
    return Match(
        target=match.target,
        kind=None if match.kind is None else tuple(Kind(kind) for kind in match.kind),
        agent=match.agent,
        tool=match.tool,
        model=match.model,
        operation=match.operation,
        topic=match.topic,
    )
