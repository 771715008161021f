"""What a policy document becomes: frozen objects that the hot path reads, with nothing left to parse.

A call keeps the `Policy` that it began with; a reload puts a new one beside it. Everything here is immutable but
for two things that no decision depends on: the bounded memo of plans and the hit counters of rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.discovery.intent_terms import IntentTerms
from meshd.discovery.told import Told
from meshd.limits import Limits
from meshd.policy.gateway import McpSettings
from meshd.policy.matching import GlobSet, Matcher, Rule
from meshd.policy.model import ApprovalsSection, SupervisorSection
from meshd.policy.model_events import SubscriptionSection
from meshd.policy.model_intents import SemanticSection
from meshd.policy.model_state import StateSection
from meshd.policy.pricing import PriceBook
from meshd.prompts.terms import PromptTerms
from meshd.upstream import Upstream

if TYPE_CHECKING:
    from meshd.call import Target
    from meshd.filters.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One document, compiled. Swapped whole, never changed."""

    agent: str
    """Name of the agent beside this sidecar."""
    limits: Limits
    upstreams: Mapping[str, Upstream]
    rules: tuple[Rule, ...]
    """In the document's order; the last is the short form's, where it sets something."""
    matcher: Matcher
    prices: PriceBook
    turns_span_s: float = 86_400.0
    """How long a workflow without a turn is remembered: the longest of what `limits.turns` and the rules say."""
    tenant: str = ""
    """Whose sidecar this is, for budgets that are counted so."""
    workflow_tokens: int | None = None
    """Tokens of the smallest budget that counts a workflow's own account; None where there is none."""
    expose_amounts: bool = True
    """Refusals and warnings say how much was used and allowed."""
    owner: str = ""
    """The approver whose agent this is; empty where none is named."""
    approvers: Mapping[str, str] = field(default_factory=dict)
    """By name: SHA-256 of the key, in hex."""
    approvals: ApprovalsSection | None = None
    """How approvers learn that they are asked."""
    supervisor: SupervisorSection | None = None
    """Whom to ask about a workflow that goes in circles; None for nobody."""
    gateway: Upstream | None = None
    """Stands for all MCP servers together, under a name of its own; None where there are none."""
    mcp: McpSettings | None = None
    """What the gateway shows."""
    told: Mapping[str, Told] = field(default_factory=dict)
    """By upstream: what the document says of it for the catalogue."""
    intents: IntentTerms = field(default_factory=IntentTerms)
    """How an agent is found by what is wanted."""
    subscriptions: tuple[SubscriptionSection, ...] = ()
    """Topics whose events go to agents as calls."""
    parked: GlobSet
    """Topics whose events are not handed out again where nothing was heard of an attempt."""
    semantic: SemanticSection | None = None
    """How events are led that say what is wanted; None where this sidecar leads none."""
    prompts: PromptTerms = field(default_factory=PromptTerms)
    """Where prompts are, and in whose messages they are looked for."""
    state: StateSection | None = None
    """What agents may share, and how much of it is kept."""
    hosts_allowed: tuple[str, ...] = ()
    """Host names that the listener accepts besides its own, for pods; lower case, without ports."""
    digest: str = ""
    """SHA-256 over the documents' bytes, in hex."""
    source: str = ""
    """Where the document was read, for logs."""
    warnings: tuple[str, ...] = ()

    def plan(self, target: Target, agent: str, operation: str, tool: str = "") -> Plan:
        """Return the settings that the rules give to a call. Never raises; the cost does not grow with the rules."""
        return self.matcher.plan(target, agent, operation, tool)

    def hits(self) -> dict[str, int]:
        """Return how many calls used each rule, by the rule's name, in the document's order."""
        return {rule.name: rule.hits.count for rule in self.rules}

    def never_matched(self) -> tuple[str, ...]:
        """Return the names of the rules that no call has used."""
        return tuple(rule.name for rule in self.rules if not rule.hits.count)
