"""Budgets that cannot be what was meant: dollars without a price, cheaper models that are none, nobody to count for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.call import Kind
from meshd.policy.matching import GlobSet, is_literal
from meshd.policy.pricing import price_book, price_of
from meshd.policy.problem import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshd.filters.budget_settings import BudgetSettings
    from meshd.policy.model import Document, PriceSection, RuleSection
    from meshd.policy.pricing import PriceBook
    from meshd.policy.report import Location, Report
    from meshd.upstream import Upstream

SAY_PRICE = "say it under `prices`, in dollars for a million tokens"


class BudgetChecker:
    """Checks of one document's budgets and prices; everything is reported, nothing is raised."""

    def __init__(self, document: Document, upstreams: Mapping[str, Upstream], report: Report) -> None:
        self.document = document
        self.upstreams = upstreams
        self.report = report
        self.book = self.prices()

    def prices(self) -> PriceBook | None:
        """Check every price; None where one cannot be."""
        count = len(self.report.problems)
        self._prices(("prices",), self.document.prices)
        for name, section in (self.document.upstreams or {}).items():
            self._prices(("upstreams", name, "prices"), section.prices)
        return price_book(self.document) if len(self.report.problems) == count else None

    def _prices(self, here: Location, prices: Mapping[str, PriceSection]) -> None:
        for glob, section in prices.items():
            try:
                price_of(section, "")
            except ValueError as error:
                self.report.error((*here, glob), str(error), is_key=True)

    def rule(self, here: Location, rule: RuleSection, fitting: Sequence[str]) -> None:
        """Check the budget of one rule, which fits the upstreams of these names."""
        budget = rule.budget
        if budget is None:
            return
        here = (*here, "budget")
        if budget.per == "tenant" and self.document.tenant is None:
            self.report.error((*here, "per"), "this document names no tenant: set `tenant` at its top")
        for key in ("tokens", "dollars"):
            if getattr(budget, key) == 0:
                self.report.warn((*here, key), "a budget of zero allows nothing", is_key=True)
        llms = [name for name in fitting if self.upstreams[name].kind is Kind.LLM]
        named = [glob for glob in rule.match.model or () if is_literal(glob)]
        if budget.dollars is not None:
            for model in named:
                self._priced((*here, "dollars"), model, llms)
        if budget.degrade is not None:
            self._degrade((*here, "degrade", "to"), budget, rule, llms)

    def unmetered(self, here: Location, budget: BudgetSettings, kinds: set[Kind]) -> None:
        """Check a budget of calls that nobody meters: of agents and tools it counts what they report, and no more."""
        here = (*here, "budget")
        if not kinds & {Kind.AGENT, Kind.TOOL}:
            self.report.error(here, "only calls to an LLM cost tokens, and this rule fits no LLM", is_key=True)
        elif budget.tokens is None:
            self.report.error(
                here, "nobody knows what an agent's or a tool's tokens cost, and this rule fits no LLM", is_key=True
            )
        else:
            self.report.warn(
                here,
                "refuses no call: of agents and tools it only counts what they report in gRPC trailers",
                is_key=True,
            )

    def _priced(self, here: Location, model: str, llms: Sequence[str]) -> None:
        book = self.book
        if book is None:
            return
        unknown = [name for name in llms if book.find(name, model) is None]
        if unknown:
            self.report.error(here, f"the price of {shown(model)} on {unknown[0]} is not known: {SAY_PRICE}")

    def _degrade(self, here: Location, budget: BudgetSettings, rule: RuleSection, llms: Sequence[str]) -> None:
        assert budget.degrade is not None
        to = budget.degrade.to
        if rule.match.model is not None and set(rule.match.model) == {to}:
            self.report.error(here, f"this rule is for {shown(to)} already: name a cheaper model")
        dialects = sorted({self.upstreams[name].dialect for name in llms})
        if len(dialects) > 1:
            names = " and ".join(dialects)
            self.report.error(
                here, f"this rule fits upstreams that speak {names}, and no model is on all of them: narrow match"
            )
            return
        if budget.dollars is not None:
            self._priced(here, to, llms)
        for name in llms:
            refusing = self._refusing(name, to)
            if refusing:
                self.report.error(here, f"{shown(to)} on {name} is not allowed by {shown(refusing)}")
                return

    def _refusing(self, upstream: str, model: str) -> str:
        """Return the rule that surely refuses a model on an upstream; empty where none surely does."""
        for index, rule in enumerate(self.document.rules):
            match, allow = rule.match, rule.allow
            if rule.shadow or (allow is None and rule.deny is None) or not _may_fit(rule, upstream, model):
                continue
            if match.agent is not None or match.operation is not None or match.tool is not None:
                return ""  # For some calls this decides, for others what follows.
            name = rule.name or f"rule-{index + 1}"
            if allow is None:
                return name
            if allow.targets is not None and not GlobSet(allow.targets).fits(upstream):
                return name
            if allow.models is not None:
                return "" if GlobSet(allow.models).fits(model) else name
        return ""


def _may_fit(rule: RuleSection, upstream: str, model: str) -> bool:
    match = rule.match
    return (
        (match.kind is None or "llm" in match.kind)
        and (match.target is None or GlobSet(match.target).fits(upstream))
        and (match.model is None or GlobSet(match.model).fits(model))
    )
