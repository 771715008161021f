"""The shared state of a sidecar, as its API has it: made once, swept while the sidecar runs. Loads no protobuf."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from meshd.state.keeping import Keeping

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.engines.port import Store


def keeping_of(mesh: Mesh) -> Keeping:
    """Return the shared state of a sidecar, made when it is first asked for."""
    if mesh.state is None:
        mesh.state = Keeping(
            lambda: _opened(mesh),
            lambda: (mesh.ledger.holder, mesh.ledger.started.epoch),
            clock=mesh.wall_clock,
            random=os.urandom,
        )
    return mesh.state


def _opened(mesh: Mesh) -> Store | None:
    """Return the store in use. Raises StoreError: why it could not be opened."""
    fault = mesh.ledger.fault
    if fault is not None:
        raise type(fault)(str(fault))  # a new one: each place that raises one adds to its traceback
    return mesh.ledger.store()


def start_state(mesh: Mesh) -> asyncio.Task[None]:
    """Begin to sweep, and to show what is counted."""
    state = keeping_of(mesh)
    mesh.telemetry.sources.state = lambda: state.counts
    return asyncio.get_running_loop().create_task(state.sweeping.run())
