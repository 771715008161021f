"""Approvals that nobody could give, or that nothing would ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meshd.call import Kind
from meshd.engines.bus_event import check_topic
from meshd.engines.bus_port import EventMalformed
from meshd.policy.problem import shown
from meshd.policy.report import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.filters.approval_settings import ApprovalSettings
    from meshd.policy.model import Document, RuleSection
    from meshd.policy.report import Location, Report

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ApprovalChecker:
    """Checks of one document's approvals and approvers; everything is reported, nothing is raised."""

    def __init__(self, document: Document, report: Report) -> None:
        self.document = document
        self.report = report

    def rule(self, here: Location, rule: RuleSection, kinds: set[Kind]) -> None:
        """Check the approval of one rule, which fits targets of these kinds."""
        approval = rule.approval
        if approval is None:
            return
        here = (*here, "approval")
        for index, name in enumerate(approval.approvers):
            if name not in self.document.approvers:
                known = sorted(self.document.approvers)
                hint = nearest(name, known) or f"; there are: {', '.join(known) or 'none'}"
                self.report.error((*here, "approvers", index), f"there is no approver {shown(name)}{hint}")
        if not approval.required or not set(approval.approvers) <= set(self.document.approvers):
            return
        self._people(here, approval)
        has_threshold = approval.above_tokens is not None or approval.above_dollars is not None
        if has_threshold and not kinds & {Kind.LLM, Kind.AGENT}:
            key = "above_tokens" if approval.above_tokens is not None else "above_dollars"
            self.report.error(
                (*here, key), "what a call costs is known of LLMs and agents, and this rule fits neither", is_key=True
            )
        if not has_threshold and not approval.reads and kinds == {Kind.LLM}:
            self.report.error(
                here,
                "a call to an LLM changes nothing by itself, so this asks for none: set above_tokens or "
                "above_dollars, or reads: true for every call",
                is_key=True,
            )

    def _people(self, here: Location, approval: ApprovalSettings) -> None:
        document = self.document
        if not document.approvers:
            self.report.warn(
                here,
                "nobody can approve, so these calls are refused at once: `meshd approvals key NAME` makes a key and "
                "prints the line for `approvers`",
                is_key=True,
            )
            return
        able = self.able(approval.approvers or document.approvers)
        if len(able) < approval.quorum:
            owner = f" (the owner {shown(document.owner)} may not)" if document.owner else ""
            self.report.error(
                (*here, "quorum") if "quorum" in approval.model_fields_set else here,
                f"{approval.quorum} must allow it, and {len(able)} could{owner}",
                is_key=True,
            )

    def able(self, names: Iterable[str]) -> list[str]:
        """Return who of these may decide on the calls of this document's agent."""
        return [
            one
            for one in names
            if one in self.document.approvers and one not in (self.document.owner, self.document.agent)
        ]

    def check(self) -> None:
        """Check what is no rule's."""
        document = self.document
        seen: dict[str, str] = {}
        for name, section in document.approvers.items():
            if section.key in seen:
                where: Location = ("approvers", name, "key")
                self.report.error(where, f"this is the key of {seen[section.key]} too: each person has their own")
            seen.setdefault(section.key, name)
        short = document.governance.human_in_the_loop_required
        settings = document.approvals
        for key in ("above_tokens", "above_dollars"):
            if getattr(settings, key) is not None and not short:
                self.report.error(
                    ("approvals", key), "says nothing without governance.human_in_the_loop_required", is_key=True
                )
        if short:
            self._short()
        self._addresses()
        if settings.topic is not None:
            try:
                check_topic(settings.topic)
            except EventMalformed as error:
                self.report.error(("approvals", "topic"), str(error).removeprefix("topic: "))

    def _short(self) -> None:
        here: Location = ("governance", "human_in_the_loop_required")
        document = self.document
        if not document.approvers:
            self.report.warn(
                here,
                "there are no approvers, so nobody can allow anything: every call to a tool that is not read-only, and "
                "every costly one, is refused. `meshd approvals key NAME` makes a key and prints the line for "
                "`approvers`",
                is_key=True,
            )
        elif not self.able(document.approvers):
            self.report.error(here, "the only approver is the agent's owner, who may not decide", is_key=True)

    def _addresses(self) -> None:
        settings = self.document.approvals
        key = settings.webhook_key
        if key is not None:
            if (key.env is None) == (key.file is None):
                self.report.error(("approvals", "webhook_key"), "webhook_key needs either env or file", is_key=True)
            if settings.webhook is None:
                self.report.error(("approvals", "webhook_key"), "there is no webhook to sign for", is_key=True)
        if settings.webhook is not None:
            self._url("webhook", settings.webhook, "sign with webhook_key", "notices leave this machine unencrypted")
        if settings.page is not None:
            self._url("page", settings.page, "people sign in at the page", "people decide there unencrypted")

    def _url(self, key: str, value: str, instead: str, unencrypted: str) -> None:
        here: Location = ("approvals", key)
        try:
            parts = urlsplit(value)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        is_plain = value.isascii() and value.isprintable() and " " not in value
        if not is_url or not is_plain:
            self.report.error(here, "expected an http or https URL")
        elif parts.username is not None or parts.password is not None:
            self.report.error(here, f"a password does not belong in a URL: {instead}")
        elif parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            self.report.warn(here, unencrypted)
