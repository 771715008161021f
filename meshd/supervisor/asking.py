"""One question for a workflow at a time: calls that are held for the same reason share its answer.

Whoever is slow, dead or answers nonsense has not answered, and the workflow is stopped. That is said loudly: in the
log, in a metric, and in the refusal that the caller gets.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from meshd.supervisor import story as telling
from meshd.supervisor.answer import NonsenseError, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.policy.model import SupervisorSection
    from meshd.turns.supervision import Story, Verdict

log = logging.getLogger("meshd.supervisor")

SHARED: Final = frozenset({"continue", "stop"})
"""Answers about the workflow; the others are about one call."""


class Unreachable(Exception):
    """Who is to be asked cannot be: the message says why, in words for an operator."""


class Way(Protocol):
    """How one kind of supervisor is asked."""

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        """Return the answer's body. Raises Unreachable; may be cancelled, since who asks has a time of its own."""
        ...


class Asker:
    """See `meshd.turns.supervision.Supervisor`."""

    def __init__(
        self,
        section: Callable[[], SupervisorSection | None],
        ways: dict[str, Way],
        told: Callable[[str, str, Story], None],
    ) -> None:
        """`section` returns what the policy in force says; `ways` has one for each of `agent`, `url`, `topic` and
        `people`; `told` hears of a question: by which way, what became of it, and what it was about."""
        self._section = section
        self._ways = ways
        self._told = told
        self._asked: dict[tuple[str, str], asyncio.Task[Verdict | None]] = {}

    async def ask(self, story: Story) -> Verdict | None:
        """Return the verdict; None where nobody has answered, or there is nobody to ask."""
        section = self._section()
        if section is None:
            return None
        key = story.account, story.workflow
        # The question is a task of its own: whoever hangs up leaves it to the others.
        task = self._asked.get(key)
        if task is not None:
            shared = await asyncio.shield(task)
            if shared is None or shared.action in SHARED:
                return shared
        task = self._asked.get(key)
        if task is None or task.done():
            task = self._asked[key] = asyncio.get_running_loop().create_task(self._put(section, story))
            task.add_done_callback(lambda done: self._forget(key, done))
            return await asyncio.shield(task)
        return await self._put(section, story)

    def _forget(self, key: tuple[str, str], done: asyncio.Task[Verdict | None]) -> None:
        if self._asked.get(key) is done:
            del self._asked[key]

    def close(self) -> None:
        """Ask nobody any more: what waits is told that nobody has answered."""
        for task in self._asked.values():
            task.cancel()

    async def _put(self, section: SupervisorSection, story: Story) -> Verdict | None:
        name = next(name for name in ("agent", "url", "topic", "people") if getattr(section, name))
        fields = {"workflow": story.workflow, "call": story.call_id, "detector": story.detector, "way": name}
        log.warning("asking the supervisor: %s", telling.headline(story), extra={"fields": fields})
        result = "cancelled"
        try:
            async with asyncio.timeout(section.timeout):
                body = await self._ways[name].ask(section, story)
            verdict = read(body, story, by=_who(section))
        except TimeoutError:
            result = "late"
            log.error(
                "the supervisor did not answer within %g s, so the workflow is stopped", section.timeout,
                extra={"fields": fields},
            )  # fmt: skip
        except Unreachable as error:
            result = "unreachable"
            log.error("the supervisor cannot be asked, so the workflow is stopped: %s", error, extra={"fields": fields})
        except NonsenseError as error:
            result = "nonsense"
            log.error(
                "the supervisor answered nonsense, so the workflow is stopped: %s", error, extra={"fields": fields}
            )
        else:
            result = verdict.action
            log.warning("the supervisor says %s: %s", verdict.action, verdict.reason, extra={"fields": fields})
            return verdict
        finally:
            self._told(name, result, story)
        return None


def _who(section: SupervisorSection) -> str:
    return section.agent or section.url or section.topic or "people"
