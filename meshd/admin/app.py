"""The admin port's application: imported with the first connection to it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiohttp import web

from meshd.admin.api import Api
from meshd.admin.doors import BODY_BYTES_MAX, doors, seal

if TYPE_CHECKING:
    from meshd.admin.hosts import HostRule
    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry

IDLE_TIMEOUT_S = 15.0
"""Also how long a peer may take to send its first request's head."""
LINGER_S = 1.0
"""How long the rest of a body that nobody wants is read."""
SHUTDOWN_TIMEOUT_S = 2.0

# Of each malformed head aiohttp logs a traceback: whoever reaches the port could fill the disk. What fails behind
# the doors is logged there.
_unheard = logging.getLogger("meshd.admin.unheard")
_unheard.setLevel(logging.CRITICAL + 1)


def runner(view: AdminView, telemetry: Telemetry, rule: HostRule, secret: str) -> web.AppRunner:
    """Return what serves the admin API to those who know the token."""
    app = web.Application(middlewares=[doors(rule, secret)], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(seal)
    app.add_routes(Api(view, telemetry).routes())
    return web.AppRunner(
        app,
        access_log=None,
        logger=_unheard,
        keepalive_timeout=IDLE_TIMEOUT_S,
        lingering_time=LINGER_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
