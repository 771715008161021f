"""How often who has called whom: by edge, among agents that call one another in a circle, and over all."""

from __future__ import annotations

from typing import Final

from meshd.turns.connected import circle_of
from meshd.turns.edge import COUNT_MASK, Edge
from meshd.turns.turn import COUNTED, LLM, MAX_TURNS, Judgement, Limits

EDGES_MAX: Final = 32
"""Beyond them, edges of agents are counted together."""
_NONE: Final[dict[int, int]] = {}
OTHERS: Final = "*"
TENTHS: Final = 10
"""Of a turn that brings nothing new."""
AGAIN_TENTHS: Final = 3
"""Of one that asks again what was asked before, and something new came in between."""
FRESH_SHARE: Final = 3
"""Where nobody calls back, only one in so many turns with something new is counted: work is handed out there."""


class Counting:
    """The edges of one workflow, in tenths of turns."""

    __slots__ = ("_last", "edges", "news", "news_elsewhere")

    def __init__(self) -> None:
        self.edges: dict[tuple[str, str], Edge] = {}
        self._last: Edge | None = None
        self.news: dict[str, int] = {}
        """How often something new came, by agent."""
        self.news_elsewhere: dict[str, dict[int, int]] = {}
        """The same by other sidecars, as `Edge.elsewhere` has counts."""

    def _edge(self, source: str, target: str, kind: str) -> Edge:
        last = self._last
        if last is not None and last.source == source and last.target == target:
            return last
        edge = self.edges.get((source, target))
        if edge is None:
            if len(self.edges) >= EDGES_MAX:
                self._forget()
            if len(self.edges) >= EDGES_MAX and kind in COUNTED:
                source = target = OTHERS
                edge = self.edges.get((OTHERS, OTHERS))
            if edge is None:
                edge = self.edges[source, target] = Edge(source, target, kind)
                if kind in COUNTED:
                    self.close_circle(edge)
        self._last = edge
        return edge

    def close_circle(self, edge: Edge) -> None:
        """Note of which edges a new one makes a circle."""
        edges = self.edges
        if not any(source == edge.target for source, _ in edges):
            return
        circle = circle_of(edge.source, edges)
        if edge.target in circle:
            for one in edges.values():
                if one.source in circle and one.target in circle:
                    one.is_circle = True

    def _forget(self) -> None:
        """Make room: what is no edge between agents counts nothing."""
        for key, edge in self.edges.items():
            if edge.kind not in COUNTED:
                del self.edges[key]
                return

    def _counted(self, edge: Edge, limits: Limits) -> Judgement | None:
        tenths = edge.tenths
        least = limits.edge if limits.edge < limits.connected else limits.connected
        if tenths >= limits.edge * TENTHS:
            return Judgement(MAX_TURNS, "edge", 0.0, tenths // TENTHS, limits.edge, (edge.source, edge.target))
        if least > limits.workflow:
            least = limits.workflow
        if len(self.edges) == 1 and tenths < least * TENTHS:
            return None
        total = 0
        for one in self.edges.values():
            if one.own or one.elsewhere:
                total += one.tenths
        if total >= limits.workflow * TENTHS:
            return Judgement(MAX_TURNS, "workflow", 0.0, total // TENTHS, limits.workflow)
        if total >= limits.connected * TENTHS:
            circle = circle_of(edge.source, [(one.source, one.target) for one in self.edges.values() if one.tenths])
            if edge.target in circle:
                within = sum(one.tenths for one in self.edges.values() if one.source in circle and one.target in circle)
                if within >= limits.connected * TENTHS:
                    agents = tuple(sorted(circle))
                    return Judgement(MAX_TURNS, "connected", 0.0, within // TENTHS, limits.connected, agents)
        return None

    def news_of(self, edge: Edge) -> int:
        """Return how often something new came for the two of an edge, over all sidecars."""
        news = self.news
        found = news.get(edge.source, 0) + news.get(edge.target, 0)
        if edge.kind == LLM:
            # Its answers are not looked at before a question comes again: another question is news enough.
            found += edge.fresh
        if self.news_elsewhere:
            for agent in (edge.source, edge.target):
                found += sum([count & COUNT_MASK for count in self.news_elsewhere.get(agent, _NONE).values()])
        return found

    def bring(self, edge: Edge) -> None:
        """Something new came for the two of an edge."""
        news = self.news
        for agent in (edge.source, edge.target):
            if agent in news or len(news) < EDGES_MAX:
                news[agent] = news.get(agent, 0) + 1
