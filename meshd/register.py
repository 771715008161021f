"""What a daemon says of itself in `daemon.json`: put together of its parts, and written where none else is found."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from meshd import running as registry
from meshd.config import Address

if TYPE_CHECKING:
    from pathlib import Path

    from meshd.admin.server import Servers
    from meshd.api.door import Door
    from meshd.config import Config
    from meshd.policy.compiled import Policy

log = logging.getLogger("meshd")


def running(
    config: Config, policy: Policy, listen: str, servers: Servers, door: Door | None, *, started_s: float
) -> registry.Running:
    """Return it: where each port is, and what the policy serves. `started_s` is in unix seconds."""
    doors = tuple(
        registry.Door(
            name=one.name,
            kind=one.kind.value,
            dialect=one.dialect,
            base_path=one.base_path,
            is_keyed=one.key_header is not None,
        )
        for one in policy.upstreams.values()
    )
    return registry.Running(
        pid=os.getpid(),
        listen=listen,
        started_s=started_s,
        admin=str(Address(config.admin.host, servers.admin_port)),
        metrics=str(Address(config.metrics.host, servers.metrics_port)),
        api=str(door.address or "") if door is not None else "",
        api_socket=str(door.path or "") if door is not None else "",
        agent=config.agent or policy.agent,
        mesh_key=str(config.mesh_key.absolute()) if config.mesh_key else "",
        doors=doors,
    )


def tell(home: Path, found: registry.Running) -> None:
    """Write it, unless the state directory is another's that is alive. What keeps it from being written is logged."""
    other = registry.find(home)
    if other is not None and other.pid != os.getpid() and registry.is_alive(other.pid):
        log.warning("the daemon %d has this state directory: meshd exec goes on finding that one", other.pid)
        return
    try:
        registry.write(home, found)
    except OSError as error:
        log.warning("meshd exec will not find this daemon: %s: %s", home, error.strerror)
