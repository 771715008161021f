"""The sync face: `Agent` and `Ctx` as in `meshd_sdk`, with methods that wait. Derived, see `meshd_sdk.facing`.

    from meshd_sdk.sync import Agent

    with Agent("manager") as agent, agent.workflow("report-42", tokens=20_000) as ctx:
        print(ctx.call("researcher/search", {"query": "tides"}))

All of it is driven by one background thread. What it is for type checkers stands in `sync.pyi`, which
`python sdk/derive.py` writes from the async classes.
"""

from __future__ import annotations

from typing import Any

from meshd_sdk import agent as _agent
from meshd_sdk import ctx as _ctx
from meshd_sdk import facing as _facing
from meshd_sdk import state as _state
from meshd_sdk.state_values import State
from meshd_sdk.step import Step

__all__ = ["Agent", "CheckedOut", "Ctx", "SharedState", "State", "Step", "face"]

Ctx = _facing.derived(_ctx.Ctx, without=frozenset({"record", "record_later"}))
SharedState = _facing.derived(_state.SharedState)
CheckedOut = _facing.derived(_state.CheckedOut)
_Agent = _facing.derived(_agent.Agent, without=frozenset({"run"}))


class Agent(_Agent):  # type: ignore[misc,valid-type]
    """See `meshd_sdk.agent.Agent`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._it = _agent.Agent(*args, **kwargs)
        self._of = _facing.background()


def face(ctx: _ctx.Ctx) -> Any:
    """Return the sync face of a handler's context; it is driven by the agent's own loop."""
    return _facing.face(ctx, ctx.loop)
