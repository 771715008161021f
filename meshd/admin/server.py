"""Starts and stops the two ports of this package."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.admin import token as admin_token
from meshd.admin.aiohttp_web import web  # before the others, which import aiohttp as it is
from meshd.admin.api import Api
from meshd.admin.doors import BODY_BYTES_MAX, HostRule, doors, seal
from meshd.admin.health import Health

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry

METRICS_ADDRESS = ("127.0.0.1", 9464)
ADMIN_ADDRESS = ("127.0.0.1", 7403)
IDLE_TIMEOUT_S = 15.0
"""Also how long a peer may take to send its first request's head."""
LINGER_S = 1.0
"""How long the rest of a body that nobody wants is read."""
SHUTDOWN_TIMEOUT_S = 2.0

Address = tuple[str, int]

# Of each malformed head aiohttp logs a traceback: whoever reaches the port could fill the disk. What fails behind
# the doors is logged there.
_unheard = logging.getLogger("meshd.admin.unheard")
_unheard.setLevel(logging.CRITICAL + 1)


class AdminError(Exception):
    """A port cannot be served; says which and why."""


@dataclass(slots=True)
class Servers:
    """What runs. A port is 0 where it was not asked for."""

    metrics_port: int = 0
    admin_port: int = 0
    token_path: Path | None = None
    """The file that holds the admin port's bearer token: print the path, never what is in it."""
    _runners: list[web.AppRunner] = field(default_factory=list)

    async def close(self) -> None:
        """Stop both ports. A second call changes nothing."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()


async def start(
    view: AdminView,
    telemetry: Telemetry,
    *,
    state_dir: Path,
    metrics: Address | None = METRICS_ADDRESS,
    admin: Address | None = ADMIN_ADDRESS,
    hosts: Sequence[str] = (),
) -> Servers:
    """Serve metrics and health on one address and the admin API on another; None leaves a port out, port 0 takes a
    free one. `hosts` are names beside localhost and addresses by which the metrics port may be called.

    Raises AdminError where an address cannot be taken or the admin address is not loopback, TokenError where the
    token's file cannot be used. What was started before is stopped then.
    """
    servers = Servers()
    try:
        if metrics is not None:
            rule = HostRule((*hosts, metrics[0]), are_addresses_allowed=True)
            servers.metrics_port = await _serve(
                servers, "metrics", metrics, _app(rule, None, Health(view, telemetry).routes())
            )
        if admin is not None:
            _require_loopback(admin)
            secret, servers.token_path = admin_token.obtain(state_dir)
            rule = HostRule((admin[0],), are_addresses_allowed=False)
            servers.admin_port = await _serve(
                servers, "admin", admin, _app(rule, secret, Api(view, telemetry).routes())
            )
    except BaseException:
        await servers.close()
        raise
    return servers


def _app(rule: HostRule, secret: str | None, routes: list[web.RouteDef]) -> web.Application:
    app = web.Application(middlewares=[doors(rule, secret)], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(seal)
    app.add_routes(routes)
    return app


def _require_loopback(address: Address) -> None:
    """The token travels in the clear, so the admin port stays on this machine."""
    host = address[0].strip("[]").lower()
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise AdminError(f"admin address {address[0]}:{address[1]}: must be a loopback address")


async def _serve(servers: Servers, what: str, address: Address, app: web.Application) -> int:
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_unheard,
        keepalive_timeout=IDLE_TIMEOUT_S,
        lingering_time=LINGER_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    servers._runners.append(runner)
    await runner.setup()
    host = address[0].strip("[]")
    if not 0 <= address[1] <= 65535:
        # One loop refuses it, the other takes what is left of it modulo 65536.
        raise AdminError(f"{what} address {address[0]}:{address[1]}: no such port")
    try:
        await web.TCPSite(runner, host, address[1], backlog=128).start()
    except (OSError, socket.gaierror) as error:
        reason = getattr(error, "strerror", None) or str(error)
        taken = f". Another meshd may run already; choose another port with MESHD_{what.upper()}."
        hint = taken if error.errno == errno.EADDRINUSE else ""
        raise AdminError(f"{what} address {address[0]}:{address[1]}: {reason}{hint}") from None
    bound: list[Address] = runner.addresses
    return bound[0][1]
