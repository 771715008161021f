"""Whether agents heed a refusal. One that goes on pays its model for each refusal, so that its model is refused too."""

from __future__ import annotations

from typing import Final

AGENTS_MAX: Final = 32
TIMES: Final = 2
"""An agent that was refused `periods` times so often in a row, and has heard nothing new, does not heed it."""
FORGIVEN_S: Final = 300.0
"""Who has called nothing for so long may ask a model again."""


class Refusals:
    """How often in a row agents were refused, and when they were last, since anything new came for them."""

    __slots__ = ("_by_agent",)

    def __init__(self) -> None:
        self._by_agent: dict[str, tuple[int, float]] = {}

    def note(self, agent: str, now_s: float) -> None:
        """A call of this agent was refused."""
        by_agent = self._by_agent
        if agent in by_agent or len(by_agent) < AGENTS_MAX:
            by_agent[agent] = (by_agent[agent][0] + 1 if agent in by_agent else 1), now_s

    def count(self, agent: str, now_s: float) -> int:
        """Return how often in a row it was refused; 0 where that is long ago."""
        if not self._by_agent:
            return 0
        count, at_s = self._by_agent.get(agent, (0, 0.0))
        return count if now_s - at_s < FORGIVEN_S else 0

    def forget(self, source: str, target: str) -> None:
        """Something new came for these two."""
        if self._by_agent:
            self._by_agent.pop(source, None)
            self._by_agent.pop(target, None)
