"""Turns of agents that publish and are handed events: judged as calls are, by the same book and the same steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Kind, Target
from meshd.turns.book import key_of
from meshd.turns.sample import sampled
from meshd.turns.turn import EVENT, PASS, WAIT, Limits, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.filters.turns_ladder import Ladder
    from meshd.filters.turns_settings import TurnsSettings
    from meshd.refusal import Refused
    from meshd.turns.book import Book
    from meshd.turns.sharing import Sharing
    from meshd.turns.supervision import Action
    from meshd.turns.turn import Judgement
    from meshd.turns.workflow import Workflow
    from meshd_sdk.context import Context

PUBLISHING: Final[tuple[Action, ...]] = ("continue", "redirect", "finish", "stop")
HANDING: Final[tuple[Action, ...]] = ("continue", "stop")
"""What a supervisor may answer: an event that is published already says what it says, where it says it."""


class HeldEvent:
    """An event with which a workflow goes in circles, for `Ladder.ask_event`."""

    __slots__ = (
        "actions", "context", "data", "is_going_out", "judgement", "operation", "policy", "settings", "topic",
        "turn", "workflow",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        topic: str,
        verb: str,
        data: bytes,
        policy: Any,
        actions: tuple[Action, ...],
        found: tuple[Workflow, Turn, Judgement, TurnsSettings],
    ) -> None:
        """`found` is whose turn it is, which, what was found, and by what settings."""
        self.context = context
        self.topic = topic
        self.data = data
        self.operation = f"{verb} {topic}"
        self.policy = policy
        self.actions = actions
        self.is_going_out = verb == "PUBLISH"
        self.workflow, self.turn, self.judgement, self.settings = found


class EventTurns:
    """Judges events, at both ends."""

    __slots__ = ("_book", "_ladder", "_limits_of", "_sharing")

    def __init__(
        self,
        book: Book,
        ladder: Ladder,
        limits_of: Callable[[TurnsSettings, Any], Limits],
        sharing: Callable[[], Sharing | None],
    ) -> None:
        """`limits_of` returns the limits of settings under a policy; `sharing` what shares the book, None for nothing
        that does."""
        self._book = book
        self._ladder = ladder
        self._limits_of = limits_of
        self._sharing = sharing

    def publish(
        self, context: Context, topic: str, data: bytes, policy: Any, *, now_s: float, wall_s: float
    ) -> HeldEvent | None:
        """Judge an event before it is published: return what the supervisor is to be asked about, None where it may be
        published. Raises Refused(LOOP) or Refused(MAX_TURNS).

        An event is a turn without an answer. One that follows from nothing belongs to no workflow, and is not counted:
        what an agent publishes of its own accord may be the same all day.
        """
        if not context.workflow:
            return None
        settings = policy.plan(Target(Kind.EVENT, topic), context.agent, f"PUBLISH {topic}").turns
        if settings is None:
            return None
        turn = Turn(context.agent, topic, EVENT, "", sampled(data, settings.sample), context.path, now_s)
        key = key_of(context.workflow, context.account, wall_s)
        workflow = self._book.of(key)
        limits = self._limits_of(settings, policy)
        again = context.path.count(context.agent)
        if again > limits.reentry:
            turn = _again(context, now_s)
        judgement = workflow.judge(turn, limits)
        if judgement.verdict in (PASS, WAIT):
            workflow.answered(turn, None)
            if again > limits.reentry:
                # Of the room that a supervisor has given: where it is handed out, it is no turn once more.
                workflow.let_in = max(workflow.let_in, again)
            sharing = self._sharing()
            if not workflow.is_read and sharing is not None:
                sharing.want(key, workflow)
            return None
        return self._stop(
            HeldEvent(context, topic, "PUBLISH", data, policy, PUBLISHING, (workflow, turn, judgement, settings))
        )

    def reenters(
        self, context: Context, topic: str, data: bytes, policy: Any, *, now_s: float, wall_s: float
    ) -> HeldEvent | None:
        """Judge an event that came back to the agent of `context`, before it is handed to it: return what the
        supervisor is to be asked about, None where it may be handed out. Raises Refused(LOOP).

        Judged on the consumer's side as well, since the path came signed, whatever its publisher's policy says; and one
        time later, so that who only listens may hear how it ended, and who goes on is told at publishing.
        """
        settings = policy.plan(Target(Kind.EVENT, topic), context.agent, f"HANDLE {topic}").turns
        again = context.path.count(context.agent)
        if settings is None or again <= settings.reentry + 1:
            return None
        workflow, turn = self._book.of(key_of(context.workflow, context.account, wall_s)), _again(context, now_s)
        if again <= workflow.let_in + 1 and not workflow.is_stopped:
            return None
        judgement = workflow.judge(turn, Limits(reentry=settings.reentry))
        if judgement.verdict in (PASS, WAIT):
            return None
        return self._stop(
            HeldEvent(context, topic, "HANDLE", data, policy, HANDING, (workflow, turn, judgement, settings))
        )

    def _stop(self, held: HeldEvent) -> HeldEvent | None:
        """Take the step of the ladder that the policy allows."""
        ladder, settings = self._ladder, held.settings
        ladder.tally.found(held.judgement)
        if settings.is_shadow or settings.ladder in ("note", "tell"):
            ladder.tally.noted += 1
            return None
        held.workflow.withdraw(held.turn)
        if ladder.asks(held.policy, held.judgement):
            ladder.tally.held += 1
            return held
        refused: Refused = ladder.refused_event(held)
        raise refused


def _again(context: Context, now_s: float) -> Turn:
    """Return the turn by which an event has come back to an agent."""
    return Turn(context.path[-1], context.agent, EVENT, "", b"", context.path[:-1], now_s)
