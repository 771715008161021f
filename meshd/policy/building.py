"""The last step of loading: a document without problems becomes the objects that the hot path reads."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from meshd.call import Kind
from meshd.filters.allow_list_settings import AllowSettings
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.budget_settings import BudgetSettings
from meshd.limits import Limits
from meshd.policy.card_section import talking_problems
from meshd.policy.cataloguing import CATALOGUE_KEYS, catalogue_problems, told
from meshd.policy.checking import compile_match, rule_name
from meshd.policy.compiled import Policy
from meshd.policy.gateway import check_gateway, gateway_problems, gateway_upstream
from meshd.policy.intending import intent_terms
from meshd.policy.matching import GlobSet, Match, Matcher, Rule
from meshd.policy.model import NAME_PATTERN, UpstreamSection
from meshd.policy.planning import named, planner
from meshd.policy.pricing import price_book
from meshd.policy.problem import Problem, shown
from meshd.policy.prompting import prompt_terms
from meshd.policy.starting import started_problems
from meshd.policy.upstreams import (
    KINDS_OF_RPC,
    RESERVED_NAMES,
    WELL_KNOWN,
    compile_session,
    compile_started,
    compile_upstream,
    dialect_of,
    kind_of,
    known_llm,
    parse_url,
)
from meshd.upstream import DialectName, Upstream

if TYPE_CHECKING:
    from meshd.policy.document import Overrides
    from meshd.policy.model import Document, RuleSection
    from meshd.policy.report import Location, Report

GOVERNANCE = "governance"
_DIALECTS: tuple[str, ...] = get_args(DialectName)
_LLM_DIALECTS = " or ".join(
    ", ".join(name for name in _DIALECTS if name != "plain" and name not in KINDS_OF_RPC).rsplit(", ", 1)
)
_NAME = re.compile(NAME_PATTERN[:-1] + r"\Z")
_KEY_HEADERS_REFUSED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect", "keep-alive"}
)


def sections(document: Document) -> dict[str, UpstreamSection]:
    """Return the upstreams that a document names, or the well-known ones where it has no `upstreams`."""
    if document.upstreams is not None:
        return dict(document.upstreams)
    return {name: UpstreamSection(url=url, kind="llm", dialect=dialect) for name, (url, dialect) in WELL_KNOWN.items()}


def upstreams(document: Document, overrides: Overrides, report: Report) -> dict[str, Upstream] | None:
    """Make the upstreams, with the command line's over the document's; None where one of them has a problem."""
    count = len(report.problems)
    made: dict[str, Upstream] = {}
    named_sections = sections(document)
    for text in overrides.upstreams:
        try:
            name, section = override(text, named_sections)
            if name in made:
                raise ValueError(f"{name} is given twice")
            made_one = _upstream(name, section)
        except ValueError as error:
            report.problems.append(Problem("--upstream", 1, 1, f"{shown(text)}: {error}"))
        else:
            made[name] = made_one
            named_sections.pop(name, None)
    for name, section in named_sections.items():
        here: Location = ("upstreams", name)
        if name in RESERVED_NAMES:
            report.error(here, f"the name {shown(name)} is taken by meshd itself", is_key=True)
        for key, message in section_problems(name, section):
            report.error((*here, *key), message)
        if section.url is None and not section.session and section.process is None:
            continue
        try:
            made[name] = _upstream(name, section)
        except ValueError as error:
            report.error((*here, "url"), str(error))
    check_gateway(made, report)
    return made if len(report.problems) == count else None


def _upstream(name: str, section: UpstreamSection) -> Upstream:
    if section.process is not None:
        return compile_started(name, section, kind_of(name, section) or Kind.TOOL)
    if section.url is None:
        return compile_session(name, section)
    return compile_upstream(name, section, parse_url(section.url), kind_of(name, section) or Kind.HOST)


def override(text: str, known: dict[str, UpstreamSection]) -> tuple[str, UpstreamSection]:
    """Read `NAME=URL[,dialect=D][,kind=K]`. Raises ValueError saying what is wrong."""
    name, equals, rest = text.partition("=")
    if not equals or not _NAME.match(name) or name in RESERVED_NAMES:
        raise ValueError("expected NAME=URL, for example local=http://127.0.0.1:11434,dialect=openai")
    url, *options = rest.split(",")
    section = known.get(name)
    if section is None and name in WELL_KNOWN:
        section = UpstreamSection(url=WELL_KNOWN[name][0], kind="llm", dialect=WELL_KNOWN[name][1])
    # Its prices, and what is said of it for the catalogue, stay the document's: they are found by the upstream's name.
    left = {"prices", "process", "session", *CATALOGUE_KEYS}
    fields = {} if section is None else section.model_dump(exclude_unset=True, by_alias=True, exclude=left)
    fields["url"] = url
    for option in options:
        key, _, value = option.partition("=")
        if key not in ("dialect", "kind"):
            raise ValueError(f"{shown(option)} is neither dialect=... nor kind=...")
        choices = {"dialect": _DIALECTS, "kind": ("llm", "tool", "agent", "host")}[key]
        if value not in choices:
            raise ValueError(f"{key} is one of {', '.join(choices)}, not {shown(value)}")
        fields[key] = value
    if section is None and not options and known_llm(url) is None:
        fields["kind"] = "host"
    made = UpstreamSection.model_validate(fields)
    for _, message in section_problems(name, made):
        raise ValueError(message)
    return name, made


def section_problems(name: str, section: UpstreamSection) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with a section beyond its types and its URL: (key path, message) each."""
    found = catalogue_problems(section, kind_of(name, section))
    if section.process is not None:
        return found + started_problems(section)
    if section.session:
        return found + _session_problems(section)
    if section.url is None:
        found.append(((), 'the key "url" is missing; only an agent with session: true, or a process, has none'))
    if section.transport == "sse" and section.dialect != "mcp":
        found.append((("transport",), "only a server of dialect: mcp has the transport sse"))
    kind, dialect = kind_of(name, section), dialect_of(name, section)
    if kind is None:
        found.append(((), "kind is missing: llm (with a dialect), tool, agent or host"))
    elif dialect in KINDS_OF_RPC and kind not in (Kind.TOOL, Kind.AGENT):
        found.append((("dialect",), f"only a tool or an agent speaks {dialect}; this is of kind {kind.value}"))
    elif kind is Kind.LLM and dialect == "plain" and not section.unmetered:
        found.append(
            ((), f"an LLM needs dialect: {_LLM_DIALECTS}, or unmetered: true if nobody is to count its tokens")
        )
    elif kind is not Kind.LLM and dialect != "plain" and dialect not in KINDS_OF_RPC:
        found.append((("dialect",), f"only an LLM speaks {dialect}; this is of kind {kind.value}"))
    elif kind is not Kind.LLM and section.unmetered:
        found.append((("unmetered",), f"only an LLM is metered; this is of kind {kind.value}"))
    elif kind is Kind.LLM and section.peer:
        found.append((("peer",), "an LLM is not another sidecar: context tokens never leave the mesh"))
    if section.timeouts.first_token is not None and kind is not None and kind is not Kind.LLM:
        found.append((("timeouts", "first_token"), f"only an LLM sends tokens; this is of kind {kind.value}"))
    found += gateway_problems(section, dialect)
    if section.tls.ca is not None and (section.url or "").startswith("http://"):
        found.append((("tls", "ca"), "there is no TLS on an http:// URL"))
    if section.key is not None:
        if (section.key.env is None) == (section.key.file is None):
            found.append((("key",), "key needs either env or file"))
        if section.key.header is not None and section.key.header.lower() in _KEY_HEADERS_REFUSED:
            found.append((("key", "header"), f"a key cannot stand in {shown(section.key.header)}"))
    found += talking_problems(section, dialect)
    return found


def _session_problems(section: UpstreamSection) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with the section of an agent that is called through its session."""
    if section.url is not None:
        return [(("session",), "an agent is called either through its session or at a url")]
    found: list[tuple[tuple[str, ...], str]] = []
    if section.kind not in (None, "agent"):
        found.append((("kind",), f"only an agent has a session; this is of kind {section.kind}"))
    if section.timeouts.first_token is not None:
        found.append((("timeouts", "first_token"), "only an LLM sends tokens; this is an agent"))
    said = {"description", "version", "intents", "labels", "tools"}
    meaningless = section.model_fields_set - {"session", "kind", "sends_trace", "pool", "timeouts", *said}
    found += [
        ((key,), f"{key} says nothing of an agent that is called through its session") for key in sorted(meaningless)
    ]
    return found


def check_names(document: Document, overrides: Overrides, report: Report) -> None:
    """Check the names that no other step looks at."""
    for index, host in enumerate(document.hosts_allowed):
        if ":" in host and not _is_ipv6(host):
            report.error(("hosts_allowed", index), f"{shown(host)}: a host name or an address, without a port")
    if overrides.agent and not _NAME.match(overrides.agent):
        message = f"{shown(overrides.agent)} is no name: a-z, 0-9, '-', '_' and '.', at most 63"
        report.problems.append(Problem("--agent", 1, 1, message))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def policy(
    document: Document, upstreams: dict[str, Upstream], *, agent: str, digest: str, source: str, report: Report
) -> Policy:
    """Make the policy of a document that has no problems."""
    rules = [_rule(rule, index) for index, rule in enumerate(document.rules)]
    if (governance := _governance(document, rules)) is not None:
        rules.append(governance)
    _warn(document, upstreams, report)
    return Policy(
        agent=agent,
        limits=_limits(document),
        upstreams=upstreams,
        rules=tuple(rules),
        matcher=Matcher(rules, planner(document.limits.turns)),
        workflow_tokens=_workflow_tokens(rules),
        prices=price_book(document),
        turns_span_s=max([document.limits.turns.span, *[rule.turns.span for rule in rules if rule.turns is not None]]),
        tenant=document.tenant or "",
        expose_amounts=document.errors.expose_amounts,
        owner=document.owner or "",
        approvers={name: section.key.removeprefix("sha256:") for name, section in document.approvers.items()},
        approvals=document.approvals,
        supervisor=document.on_exceeded,
        gateway=gateway_upstream(upstreams),
        mcp=document.mcp,
        told=told(document, upstreams),
        intents=intent_terms(document),
        subscriptions=document.subscriptions,
        parked=GlobSet(document.park),
        semantic=document.intents.events,
        prompts=prompt_terms(document),
        state=document.state,
        hosts_allowed=tuple(host.lower() for host in document.hosts_allowed),
        digest=digest,
        source=source,
        warnings=tuple(str(warning) for warning in sorted(report.warnings, key=lambda w: w[:3])),
    )


def _rule(section: RuleSection, index: int) -> Rule:
    name = rule_name(section, index)
    allow = section.allow if section.deny is None else AllowSettings.model_validate({"denied": section.deny})
    shadow = section.shadow
    return Rule(
        name=name,
        match=compile_match(section.match),
        is_shadow=shadow,
        route=None if section.route is None else named(section.route, name, is_shadow=shadow),
        allow=None if allow is None else named(allow, name, is_shadow=shadow),
        budget=None if section.budget is None else named(section.budget, name, is_shadow=shadow),
        breaker=None if section.breaker is None else named(section.breaker, name, is_shadow=shadow),
        retry=None if section.retry is None else named(section.retry, name, is_shadow=shadow),
        delegate=None if section.delegate is None else named(section.delegate, name, is_shadow=shadow),
        approval=None if section.approval is None else named(section.approval, name, is_shadow=shadow),
        chain=None if section.fallback is None else named(section.fallback, name, is_shadow=shadow),
        concurrency=None if section.concurrency is None else named(section.concurrency, name, is_shadow=shadow),
        idempotency=None if section.idempotency is None else named(section.idempotency, name, is_shadow=shadow),
        turns=None if section.turns is None else named(section.turns, name, is_shadow=shadow),
    )


def _governance(document: Document, rules: list[Rule]) -> Rule | None:
    """Make the short form's rule: it is the last, and fits everything."""
    short = document.governance
    budget = allow = approval = None
    if short.max_tokens_per_workflow is not None or short.max_dollars_per_workflow is not None:
        # Read already: an int of micro-dollars must not be read as dollars again.
        settings = BudgetSettings.model_construct(
            tokens=short.max_tokens_per_workflow, dollars=short.max_dollars_per_workflow
        )
        budget = named(settings, GOVERNANCE)
    if short.allowed_tools is not None:
        allow = named(AllowSettings.model_validate({"tools": short.allowed_tools}), GOVERNANCE)
    if short.human_in_the_loop_required:
        approval = _short_approval(document, rules)
    if budget is None and allow is None and approval is None:
        return None
    return Rule(name=GOVERNANCE, match=Match(), budget=budget, allow=allow, approval=approval)


def _short_approval(document: Document, rules: list[Rule]) -> ApprovalSettings:
    """Make what `human_in_the_loop_required` means: calls to tools that are not read-only ask, and calls to LLMs that
    may cost more than half of the smallest budget of a workflow, unless the document says more than what."""
    short, said = document.governance, document.approvals
    budgets = [rule.budget for rule in rules if rule.budget is not None and not rule.is_shadow]
    plain = [one for one in budgets if one.per == "workflow"]
    above: dict[str, int | None] = {"above_tokens": said.above_tokens, "above_dollars": said.above_dollars}
    for key, limit, limits in (
        ("above_tokens", short.max_tokens_per_workflow, [one.tokens for one in plain]),
        ("above_dollars", short.max_dollars_per_workflow, [one.dollars for one in plain]),
    ):
        least = min((one for one in (limit, *limits) if one is not None), default=None)
        if above[key] is None and least is not None:
            above[key] = max(1, least // 2)
    # Read already: an int of micro-dollars must not be read as dollars again.
    settings = named(ApprovalSettings.model_construct(None, **above), GOVERNANCE)
    settings.__dict__["is_short"] = True
    return settings


def _workflow_tokens(rules: list[Rule]) -> int | None:
    """What is delegated on a call to an agent comes out of every budget of the workflow, whichever calls it is for."""
    budgets = [rule.budget for rule in rules if rule.budget is not None and not rule.is_shadow]
    plain = [one for one in budgets if one.per == "workflow" and not one.account and one.window is None]
    return min((one.tokens for one in plain if one.tokens is not None), default=None)


UNATTRIBUTED_TOKENS = 100_000
ACTING = ("breaker", "concurrency", "delegate", "fallback", "idempotency", "retry", "route")
"""Keys whose settings do something to a call, which they must not do in shadow."""


def _unattributed_tokens(document: Document) -> int:
    """Calls that belong to no workflow must not have more than a workflow has, unless the document says so."""
    set_tokens = document.limits.unattributed_tokens
    if set_tokens is not None:
        return set_tokens
    budgets = [rule.budget for rule in document.rules if rule.budget is not None and not rule.shadow]
    tokens = [UNATTRIBUTED_TOKENS]
    tokens += [one.tokens for one in budgets if one.per == "workflow" and one.tokens is not None]
    if document.governance is not None and document.governance.max_tokens_per_workflow is not None:
        tokens.append(document.governance.max_tokens_per_workflow)
    return min(tokens)


def _limits(document: Document) -> Limits:
    section = document.limits
    return Limits(
        hops=section.hops,
        deadline_s=section.deadline,
        header_count_max=section.header_count,
        header_bytes_max=section.header_size,
        url_bytes_max=section.url_size,
        request_body_bytes_max=section.request_body,
        reply_body_bytes_max=section.reply_body,
        connections_per_peer_max=section.connections_per_peer,
        streams_per_connection_max=section.streams_per_connection,
        resets_per_minute_max=section.resets_per_minute,
        header_timeout_s=section.header_timeout,
        idle_timeout_s=section.idle_timeout,
        body_rate_min_bytes_s=section.body_rate_min,
        drain_s=section.drain,
        names_workflows=section.names_workflows,
        infers_context=section.infers_context,
        unattributed_tokens=_unattributed_tokens(document),
    )


def _warn(document: Document, upstreams: dict[str, Upstream], report: Report) -> None:
    """Report what loads, and may not be what was meant."""
    short = document.governance
    binds = [rule for rule in document.rules if rule.budget is not None and not rule.shadow]
    is_short_set = short.max_tokens_per_workflow is not None or short.max_dollars_per_workflow is not None
    if not is_short_set and not binds and any(u.kind is Kind.LLM for u in upstreams.values()):
        report.warn((), "no budget is set: nothing limits what a workflow may spend")
    if short.allowed_tools is not None:
        report.warn(
            ("governance", "allowed_tools"),
            "covers the tools that are offered to a model, called in its answers, called at upstreams with "
            "dialect: mcp, and other upstreams of kind tool by their names; not what an agent runs within itself",
            is_key=True,
        )
    for index, rule in enumerate(document.rules):
        if rule.shadow:
            unjudged = [key for key in ACTING if getattr(rule, key) is not None]
            more = f"; in shadow its {' and '.join(unjudged)} only adds to its hits" if unjudged else ""
            words = f"{shown(rule_name(rule, index))} is in shadow: it is counted and refuses nothing{more}"
            report.warn(("rules", index), words)
    for name, upstream in upstreams.items():
        _warn_upstream(name, upstream, report)


def _warn_upstream(name: str, upstream: Upstream, report: Report) -> None:
    here: Location = ("upstreams", name)
    if upstream.kind is not Kind.LLM and (known := known_llm(upstream.url)) is not None:
        report.warn(
            here, f"{upstream.host} is the LLM API {known}: as kind {upstream.kind.value} nobody counts its tokens"
        )
    if upstream.process is not None and upstream.process.sandbox == "none":
        report.warn((*here, "process"), f"{shown(name)} runs without a sandbox: it can read and do what meshd can")
    if upstream.is_unmetered:
        report.warn((*here, "unmetered"), f"calls to {shown(name)} that no dialect reads cost nothing here")
    if (
        upstream.key_header is not None
        and upstream.scheme == "http"
        and upstream.host not in ("127.0.0.1", "::1", "localhost")
    ):
        report.warn((*here, "key"), f"the key of {shown(name)} leaves this machine unencrypted")
    cards = [("card", path) for path in upstream.card_keys]
    for key, path in (("tls", upstream.ca_file), ("key", upstream.key_file), *cards):
        if path is not None and not Path(path).is_file():
            report.warn((*here, key), f"there is no file {shown(path)} here")
