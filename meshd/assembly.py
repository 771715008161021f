"""How the filters of a sidecar are made: each once, with what it keeps, in the order of the chain."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from meshd.chain import FILTERS, Chain
from meshd.filters.allow_list import AllowList, judge
from meshd.filters.approval import Approval
from meshd.filters.breaker import Breaker
from meshd.filters.budget import Budget
from meshd.filters.context import Context
from meshd.filters.delegation import Delegation
from meshd.filters.fallback import Fallback
from meshd.filters.hop_limit import HopLimit
from meshd.filters.idempotency import Idempotency
from meshd.filters.routing import Routing
from meshd.filters.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.filters.bounds import Bounds
    from meshd.ledger import Ledger
    from meshd.mesh_key import MeshKeys


def build_chain(
    *,
    keys: MeshKeys,
    ledger: Ledger,
    agent: str,
    shadowed: Callable[..., None],
    breaker_changed: Callable[..., None] | None = None,
    bounds: Bounds | None = None,
) -> Chain:
    """Make the filters and put them in their order."""
    filters: dict[type, Any] = {
        Context: Context(keys, os.urandom, agent),
        HopLimit: HopLimit(),
        Routing: Routing(),
        AllowList: AllowList(shadowed),
        Idempotency: Idempotency(),
        Turns: Turns(shadowed, judge),
        Approval: Approval(shadowed),
        Delegation: Delegation(ledger, os.urandom),
        Fallback: Fallback(random.random),
        Budget: Budget(ledger, shadowed, bounds, judge),
        Breaker: Breaker(random.random, os.urandom(32), breaker_changed),
    }
    assert set(filters) == {place.filter for place in FILTERS}
    return Chain(filters, shadowed)
