"""What an operator is told of the servers that the policy starts: how each is confined, or why it cannot be started."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.bridge")


def tell(policy: Policy, hidden: tuple[str, ...]) -> None:
    """Log it of each, where there are any: in a thread, since a sandbox is tried, which takes some 20 ms."""
    started = [one for one in policy.upstreams.values() if one.process is not None]
    if started:
        asyncio.get_running_loop().run_in_executor(None, _tell, started, hidden)


def _tell(started: list[Upstream], hidden: tuple[str, ...]) -> None:
    from meshd.bridge import sandbox

    for upstream in started:
        process = upstream.process
        assert process is not None
        try:
            sandbox.prepare(process, hidden)
        except sandbox.Unusable as error:
            log.error("%s cannot be started, and its calls fail: %s", upstream.name, error)
        else:
            level = logging.WARNING if process.sandbox == "none" else logging.INFO
            log.log(level, "%s is started for its clients: %s", upstream.name, sandbox.words(process))
