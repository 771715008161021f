"""How the filters of a sidecar are made: each once, with what it keeps, in the order of the chain."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

from meshd.chain import FILTERS, Chain
from meshd.claims.tape import spill_in
from meshd.filters.allow_list import AllowList, judge
from meshd.filters.approval import Approval
from meshd.filters.asking import bound_fields, is_unbound, task_words
from meshd.filters.breaker import Breaker
from meshd.filters.budget import Budget
from meshd.filters.context import Context
from meshd.filters.deferring import Deferring
from meshd.filters.delegation import Delegation
from meshd.filters.fallback import Fallback
from meshd.filters.forwarding import Forwarding
from meshd.filters.hop_limit import HopLimit
from meshd.filters.idempotency import Idempotency
from meshd.filters.prompts import Prompts
from meshd.filters.resuming import Resuming
from meshd.filters.routing import Routing
from meshd.filters.turns import Turns
from meshd.prompts.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.approvals.carrying import Carrying
    from meshd.approvals.desk import Desk
    from meshd.filters.bounds import Bounds
    from meshd.ledger import Ledger
    from meshd.mesh_key import MeshKeys
    from meshd.trace.recorder import Recorder


def build_chain(
    *,
    keys: MeshKeys,
    ledger: Ledger,
    agent: str,
    shadowed: Callable[..., None],
    breaker_changed: Callable[..., None] | None = None,
    bounds: Bounds | None = None,
    desk: Desk | None = None,
    held: Callable[[float], None] | None = None,
    carrying: Carrying | None = None,
    home: Path | None = None,
    malformed: Callable[..., None] | None = None,
    trace: Recorder | None = None,
) -> Chain:
    """Make the filters and put them in their order.

    `desk` is where people are asked, `held` hears for how long; `carrying` has the calls that were answered with a
    task; `home` is where long answers are kept while they pass; `malformed` hears of usage that is none;
    `trace` is where calls are written down.
    """
    filters: dict[type, Any] = {
        Context: Context(keys, os.urandom, agent),
        HopLimit: HopLimit(),
        Routing: Routing(),
        AllowList: AllowList(shadowed),
        Prompts: Prompts(Registry(ledger.store)),
        Idempotency: Idempotency(
            ledger, wall_clock=time.time, nonce=lambda: os.urandom(12).hex(), spill=spill_in(home)
        ),
        Turns: Turns(shadowed, judge),
        Approval: Approval(
            shadowed,
            desk,
            ledger,
            observe=held,
            deferring=_deferring(desk, carrying, keys),
            resuming=Resuming(keys),
        ),
        Delegation: Delegation(ledger, os.urandom),
        Fallback: Fallback(random.random, judge),
        Budget: Budget(ledger, shadowed, bounds, judge, malformed),
        Breaker: Breaker(random.random, os.urandom(32), breaker_changed, time.monotonic),
        Forwarding: Forwarding(trace),
    }
    assert set(filters) == {place.filter for place in FILTERS}
    return Chain(filters, shadowed)


def _deferring(desk: Desk | None, carrying: Carrying | None, keys: MeshKeys) -> Deferring | None:
    if desk is None or carrying is None:
        return None
    return Deferring(
        desk,
        carrying,
        keys,
        lambda: os.urandom(8),
        bound=bound_fields,
        unbound=is_unbound,
        waiting_words=task_words,
    )
