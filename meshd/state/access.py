"""Who may read and write what, decided in one place. Pure.

| scope | reads | writes |
|---|---|---|
| workflow | whoever acts in it | whoever acts in it |
| agent | that agent, in any workflow | that agent |
| tenant | every agent of the tenant | every agent of the tenant |
| mesh | agents that the policy's `state.mesh_readers` fits | those that `state.mesh_writers` fits |

A reference grants nothing: it is handed to those who may read what it names, and judged again when it is read.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.state.keys import KeyMalformed, Scope, reference_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.state.keys import Key, Who


class Act(str, Enum):
    """What somebody is about to do with an object."""

    READ = "read"
    WRITE = "write"


class Terms(NamedTuple):
    """What the policy says of the mesh's own scope: whether an agent may."""

    may_read: Callable[[str], bool]
    may_write: Callable[[str], bool]


def _everybody(agent: str) -> bool:
    return True


OPEN: Final = Terms(_everybody, _everybody)
"""A policy that says nothing."""


def denied(key: Key, act: Act, who: Who, terms: Terms = OPEN) -> str:
    """Say why somebody may not do that, in words for them; empty where they may."""
    if key.scope is Scope.MESH:
        is_allowed = terms.may_read(who.agent) if act is Act.READ else terms.may_write(who.agent)
        setting = "mesh_readers" if act is Act.READ else "mesh_writers"
        return "" if is_allowed else f"the policy's state.{setting} does not name {who.agent or 'who names no agent'}"
    own = who.own(key.scope)
    if own and own == key.owner:
        return ""
    if key.scope is Scope.WORKFLOW:
        return f"it belongs to the workflow {key.owner}, and this context to {own or 'none'}"
    if key.scope is Scope.AGENT:
        return f"it belongs to the agent {key.owner}, and this context is {own or 'nobody'}'s"
    return f"it belongs to the tenant {key.owner}, and this sidecar to {own or 'none'}"


def handed(references: Iterable[str], callee: Who, terms: Terms = OPEN) -> tuple[str, ...]:
    """Return those of a context's references that its callee is handed: of what the callee may read, in their order.

    What is no reference to state is handed on as it is: it is not ours to judge.
    """
    return tuple([one for one in references if _is_for(one, callee, terms)])


def _is_for(text: str, callee: Who, terms: Terms) -> bool:
    try:
        key = reference_of(text).key
    except KeyMalformed:
        return True
    return not denied(key, Act.READ, callee, terms)
