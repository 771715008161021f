"""Agents that call one another in a circle: the strongly connected sets of a workflow's edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def circle_of(agent: str, edges: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the agents that `agent` reaches and that reach it, itself among them; none where nobody calls back."""
    towards: dict[str, list[str]] = {}
    back: dict[str, list[str]] = {}
    for source, target in edges:
        towards.setdefault(source, []).append(target)
        back.setdefault(target, []).append(source)
    return frozenset(_reached(agent, towards) & _reached(agent, back))


def _reached(agent: str, by: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    pending = list(by.get(agent, ()))
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending += by.get(one, ())
    return found
