"""What the admin ports see of the daemon: readings of its parts, and the two things that they may ask of it."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from meshd.admin.view import (
    BreakerDump,
    Check,
    PolicyDump,
    ReloadResult,
    RuleDump,
    StatusDump,
)
from meshd.filters.prompts import Prompts
from meshd.outcome import Fault
from meshd.prompts.desk import PromptDesk
from meshd.telemetry.budgets import sums_of
from meshd.telemetry.sources import BreakerReading, BudgetReading, OverloadReading, TurnsReading
from meshd.view_books import LedgerBooks
from meshd.view_calls import call_of, calls_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from meshd.admin.catalogue_view import CatalogueView
    from meshd.admin.events import EventsView
    from meshd.admin.view import CallDump, CallsPage
    from meshd.approvals.desk import Desk
    from meshd.call import Call
    from meshd.filters.bounds import Bounds
    from meshd.filters.breaker import Breaker, BreakerView
    from meshd.filters.budget import Budget
    from meshd.filters.circuit import Failure, State
    from meshd.filters.turns import Turns
    from meshd.ledger import Ledger
    from meshd.policy.reload import Reloader
    from meshd.prompts.registry import Registry
    from meshd.prompts.terms import PromptTerms
    from meshd.proxy.proxy import Proxy
    from meshd.telemetry.telemetry import Telemetry

DIGEST_DIGITS = 12
"""Of a policy's digest: enough to tell two documents apart."""


def meshd_version() -> str:
    """Return this build's version."""
    try:
        return version("agent-meshd")
    except PackageNotFoundError:
        return "0"


def attach_sources(
    telemetry: Telemetry,
    reloader: Reloader,
    books: Callable[[], Ledger],
    breaker: Breaker,
    budget: Budget,
    bounds: Bounds,
    turns: Turns | None = None,
) -> None:
    """Let a scrape read what is counted elsewhere."""

    def breakers() -> Iterator[BreakerReading]:
        return (
            BreakerReading(view.upstream, _state(view.state), view.limit, view.in_flight, view.queued)
            for view in breaker.snapshot(time.monotonic())
        )

    sources = telemetry.sources
    sources.rule_hits = lambda: reloader.policy.hits()
    sources.breakers = breakers
    sources.overload = lambda: OverloadReading(
        shed=tuple(breaker.shed.items()),
        turned=tuple(((target, state.replace("-", "_")), count) for (target, state), count in breaker.turned.items()),
    )
    sources.store = lambda: books().state == "ok"

    def spending() -> BudgetReading:
        ledger = books()
        return BudgetReading(
            spent=ledger.spent_tokens,
            refused=ledger.refused,
            bound_violations=ledger.bound_violations,
            stranded=ledger.started.stranded_tokens,
            scopes=tuple(sums_of(ledger.accounts.values())),
            counted=bounds.counted,
            uncounted=bounds.uncounted,
            models_raised=len(bounds.raised),
            spent_microdollars=ledger.spent_microdollars,
            warned=tuple(budget.tally.warned.items()),
            degraded=tuple(budget.tally.degraded.items()),
            unpriced=tuple(budget.tally.unpriced.items()),
        )

    sources.budget = spending
    if turns is not None:
        tally = turns.ladder.tally
        sources.turns = lambda: TurnsReading(tally.decisions(), tuple(tally.by_detector.items()))


class View:
    """The daemon as the admin ports know it (`AdminView`)."""

    def __init__(
        self,
        *,
        agent: str,
        reloader: Reloader,
        ledger: Ledger,
        breaker: Breaker,
        telemetry: Telemetry,
        proxy: Proxy,
        started_s: float,
        reload: Callable[[], Awaitable[ReloadResult]],
        stop: Callable[[], None],
        desk: Desk | None = None,
    ) -> None:
        """`agent` is the name from the command line, empty for the policy's; `started_s` unix seconds."""
        self._agent = agent
        self._reloader = reloader
        self.ledger = ledger
        """Another one in its place once the books, which could not be opened at the start, are."""
        self.books = LedgerBooks(lambda: self.ledger)
        self._breaker = breaker
        self._telemetry = telemetry
        self._proxy = proxy
        self._started_s = started_s
        self._reload = reload
        self._stop = stop
        self.desk = desk
        self.catalogue: CatalogueView | None = None
        """Set once there is one, as is the next."""
        self.events: EventsView | None = None
        self.prompts = PromptDesk(_registry_of(proxy), self._terms)

    def ready(self, *, outbound_only: bool = False) -> Sequence[Check]:
        """Return all checks; ready means that every one is ok. Whoever asks shows no token, so no path is told."""
        state = self.ledger.state
        checks = [
            Check("policy", True, self._reloader.policy.digest[:DIGEST_DIGITS]),
            Check("store", state == "ok", "" if state == "ok" else "budgets refuse: see the log or the admin port"),
        ]
        if not outbound_only:
            is_draining = self._proxy.is_draining
            checks.append(Check("drain", not is_draining, "draining" if is_draining else ""))
        return checks

    def _terms(self) -> tuple[PromptTerms, str]:
        policy = self._reloader.policy
        return policy.prompts, policy.tenant

    def policy(self) -> PolicyDump:
        """Return the document in force."""
        policy = self._reloader.policy
        return PolicyDump(
            source=policy.source,
            digest=policy.digest,
            agent=self._agent or policy.agent,
            rules=[
                RuleDump(rule.name, rule.hits.count, is_shadow=getattr(rule, "is_shadow", False))
                for rule in policy.rules
            ],
            never_matched=policy.never_matched(),
            warnings=policy.warnings,
            reload_error=self._reloader.error,
            taken_at_s=self._telemetry.tally.policy_taken_s,
        )

    def call(self, id: str) -> CallDump | None:
        """Return what was decided of a call."""
        return call_of(self._telemetry.provenance, self._live(), id)

    def calls(self, *, is_refused: bool, limit: int) -> CallsPage:
        """Return the last calls, or the last of those that were refused."""
        return calls_of(self._telemetry.provenance, self._live(), is_refused=is_refused, limit=limit)

    def _live(self) -> list[Call]:
        return [exchange.call for exchange in self._proxy.live]

    def breakers(self) -> Sequence[BreakerDump]:
        """Return every breaker that is kept."""
        now_s = self._proxy.clock()
        ago = time.time() - now_s
        return [_breaker_dump(view, ago) for view in self._breaker.snapshot(now_s)]

    def status(self) -> StatusDump:
        """Return what the process is doing."""
        tally = self._telemetry.tally
        return StatusDump(
            version=meshd_version(),
            agent=self._agent or self._reloader.policy.agent,
            uptime_s=time.time() - self._started_s,
            connections_outbound=tally.connections_outbound,
            connections_inbound=tally.connections_inbound,
            calls_open=len(self._proxy.live),
            is_draining=self._proxy.is_draining,
            store=self.ledger.state,
        )

    async def reload(self) -> ReloadResult:
        """Read the policy anew; keep the old document where that fails."""
        return await self._reload()

    def drain(self) -> None:
        """Begin to drain. A second call changes nothing."""
        self._stop()


def _breaker_dump(view: BreakerView, ago: float) -> BreakerDump:
    """`ago` is what must be added to monotonic seconds to make unix ones of them."""
    failure = view.failure
    return BreakerDump(
        view.upstream,
        view.model,
        view.credential,
        _state(view.state),
        reopens_in_s=None if view.reopens_s is None else round(view.reopens_s, 3),
        reopens_at_s=None if view.reopens_s is None else round(time.time() + view.reopens_s, 3),
        limit=view.limit,
        in_flight=view.in_flight,
        queued=view.queued,
        held_for_s=round(view.held_s, 3),
        error_share=round(view.error_share, 4),
        last_failure="" if failure is None else _failure(failure),
        last_failure_at_s=None if failure is None else round(failure.at_s + ago, 3),
    )


def _failure(failure: Failure) -> str:
    return str(failure.status) if failure.fault is Fault.NONE else failure.fault.value


def _registry_of(proxy: Proxy) -> Registry:
    return next(one.registry for one in proxy.chain.per_call if isinstance(one, Prompts))


def _state(state: State) -> str:
    return state.value.replace("-", "_")
