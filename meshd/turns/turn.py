"""What is judged, by which limits, and what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from meshd.turns.edge import Edge
    from meshd.turns.question import Question
    from meshd.turns.rewording import Round

AGENT: Final = "agent"
"""From an agent to an agent: such calls, and events, are what is counted as turns."""
EVENT: Final = "event"
COUNTED: Final = (AGENT, EVENT)
TOOL: Final = "tool"
LLM: Final = "llm"

PASS: Final = "pass"
WAIT: Final = "wait"
LOOP: Final = "loop"
MAX_TURNS: Final = "max_turns"
VERDICTS: Final = (PASS, WAIT, LOOP, MAX_TURNS)
"""Values of `Judgement.verdict`."""

STOPS: Final = (LOOP, MAX_TURNS)

DETECTORS: Final = (
    "reentry",
    "edge",
    "connected",
    "workflow",
    "repetition",
    "open",
    "period",
    "history",
    "spending",
    "unheeded",
    "stopped",
)
"""Values of `Judgement.detector`: what found that a workflow goes in circles."""


class Limits(NamedTuple):
    """When agents that go in circles are stopped: see `meshd.filters.turns_settings`."""

    reentry: int = 2
    edge: int = 20
    connected: int = 40
    workflow: int = 200
    periods: int = 3
    stale_tokens: int = 0
    """Tokens that may be spent since anything new was said; 0 for any number."""
    polls: int = 10
    """A second."""


class Turn:
    """One call or event, as far as it matters here. Kept until it is answered."""

    __slots__ = (
        "at_s", "edge", "is_counted", "is_known", "is_many", "is_read_only", "is_sampled", "kind", "mark", "nearness",
        "operation", "path", "payload", "period", "question", "round", "rounds", "source", "target", "tenths",
    )  # fmt: skip

    def __init__(
        self,
        source: str,
        target: str,
        kind: str = AGENT,
        operation: str = "",
        payload: bytes | None = None,
        path: tuple[str, ...] = (),
        at_s: float = 0.0,
        is_read_only: bool = False,
        rounds: int = 0,
        is_many: bool = False,
        period: int = 2,
    ) -> None:
        self.source = source
        self.target = target
        self.kind = kind
        self.operation = operation
        """Method and path, a tool's name, a topic: the same question to another operation is another question."""
        self.mark = crc32(operation.encode("utf-8", "replace"))
        """Of the operation."""
        self.payload = payload
        """What is asked, or a sample of it; None where it streams and is not known yet."""
        self.path = path
        """The agents that called one another to get to `source`, without it."""
        self.at_s = at_s
        """Seconds on any clock that goes on: gaps between turns are measured by it."""
        self.is_read_only = is_read_only
        """It asks how something stands: to ask again is polling, and no loop however often the answer is the same."""
        self.rounds = rounds
        """How often a request's own history goes round already: see `meshd.turns.asking`."""
        self.period = period
        """Messages of one of those rounds."""
        self.is_many = is_many
        """The turns of many tasks are counted together: an equal request to a model may be another's."""
        self.edge: Edge | None = None
        self.question: Question | None = None
        self.round: Round | None = None
        self.nearness = 0
        """How near its question is to one before: see `meshd.turns.said`."""
        self.is_known = False
        """Its question was asked before."""
        self.is_counted = False
        self.tenths = 0
        """How much it was counted for."""
        self.is_sampled = False
        """A model is asked for one of the answers that it may give, and nothing of a talk with it is told."""


class Judgement(NamedTuple):
    """What is to be done with a turn, and why."""

    verdict: str
    detector: str = ""
    wait_s: float = 0.0
    amount: int = 0
    """What was counted: turns, rounds or tokens, as the detector has it."""
    limit: int = 0
    parties: tuple[str, ...] = ()
    """The agents and tools that take part, as far as they are known."""


PASSED: Final = Judgement(PASS)
