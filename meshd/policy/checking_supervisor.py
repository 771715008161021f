"""What types cannot say of `on_exceeded`: one who can be asked, and can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.policy.problem import shown
from meshd.policy.report import nearest
from meshd.policy.upstreams import parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import Document
    from meshd.policy.report import Report
    from meshd.upstream import Upstream

HERE: Final = ("on_exceeded",)
_TOPIC: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def check_supervisor(document: Document, upstreams: Mapping[str, Upstream], report: Report) -> None:
    """Report what is wrong with `on_exceeded`."""
    section = document.on_exceeded
    if section is None:
        return
    named = [key for key in ("agent", "url", "topic", "people") if getattr(section, key)]
    if len(named) != 1:
        words = f"here are {' and '.join(named)}" if named else "here is none"
        report.error(HERE, f"on_exceeded names exactly one of agent, url, topic and people; {words}", is_key=True)
        return
    if section.agent is not None:
        _agent(section.agent, upstreams, report)
    elif section.url is not None:
        try:
            parse_url(section.url)
        except ValueError as error:
            report.error((*HERE, "url"), str(error))
    elif section.topic is not None:
        if not set(section.topic) <= _TOPIC or "" in section.topic.split("."):
            report.error((*HERE, "topic"), "a topic is words of letters, digits, - and _ with dots between them")
    elif not document.approvers:
        report.error((*HERE, "people"), "there is nobody to ask: the policy names no approvers", is_key=True)


def _agent(name: str, upstreams: Mapping[str, Upstream], report: Report) -> None:
    upstream = upstreams.get(name)
    agents = sorted(other.name for other in upstreams.values() if other.kind is Kind.AGENT)
    if upstream is None:
        hint = nearest(name, agents) or f"; there are: {', '.join(agents) or 'none'}"
        report.error((*HERE, "agent"), f"there is no upstream {shown(name)}{hint}")
    elif upstream.kind is not Kind.AGENT:
        report.error((*HERE, "agent"), f"{shown(name)} is of kind {upstream.kind.value}: a supervisor is an agent")
