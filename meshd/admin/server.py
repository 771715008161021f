"""Starts and stops the two ports of this package."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.admin import token as admin_token
from meshd.admin.health import Health
from meshd.admin.hosts import HostRule
from meshd.admin.late import LateServer
from meshd.admin.metrics_port import MetricsPort
from meshd.config import cannot_listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from meshd.admin.late import Make
    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry

METRICS_ADDRESS = ("127.0.0.1", 9464)
ADMIN_ADDRESS = ("127.0.0.1", 7403)

Address = tuple[str, int]


class AdminError(Exception):
    """A port cannot be served; says which and why."""


@dataclass(slots=True)
class Servers:
    """What runs. A port is 0 where it was not asked for."""

    metrics_port: int = 0
    admin_port: int = 0
    token_path: Path | None = None
    """The file that holds the admin port's bearer token: print the path, never what is in it."""
    _listening: list[asyncio.Server] = field(default_factory=list)
    _serving: list[MetricsPort | LateServer] = field(default_factory=list)

    async def close(self) -> None:
        """Stop both ports. A second call changes nothing."""
        for listening in self._listening:
            listening.close()
        serving, self._serving = self._serving, []
        for one in serving:
            await one.close()


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
            port = MetricsPort(rule, Health(view, telemetry).routes())
            servers._serving.append(port)
            servers.metrics_port = await _listen(servers, "metrics", metrics, port.session)
        if admin is not None:
            _require_loopback(admin)
            secret, servers.token_path = admin_token.obtain(state_dir)
            late = LateServer(_admin(view, telemetry, HostRule((admin[0],), are_addresses_allowed=False), secret))
            servers._serving.append(late)
            servers.admin_port = await _listen(servers, "admin", admin, late.protocol)
    except BaseException:
        await servers.close()
        raise
    return servers


def _admin(view: AdminView, telemetry: Telemetry, rule: HostRule, secret: str) -> Callable[[], Make]:
    def load() -> Make:
        from meshd.admin import app

        return lambda: (app.runner(view, telemetry, rule, secret), lambda server: server())

    return load


def _require_loopback(address: Address) -> None:
    """The token travels in the clear, so the admin port stays on this machine."""
    host = address[0].strip("[]").lower()
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise AdminError(f"admin address {address[0]}:{address[1]}: must be a loopback address")


async def _listen(servers: Servers, what: str, address: Address, protocol: Callable[[], asyncio.Protocol]) -> int:
    host = address[0].strip("[]")
    if not 0 <= address[1] <= 65535:
        # One loop refuses it, the other takes what is left of it modulo 65536.
        raise AdminError(f"{what} address {address[0]}:{address[1]}: no such port")
    try:
        server = await asyncio.get_running_loop().create_server(protocol, host, address[1], backlog=128)
    except OSError as error:
        why = cannot_listen(error, f"MESHD_{what.upper()}")
        raise AdminError(f"{what} address {address[0]}:{address[1]}: {why}") from None
    servers._listening.append(server)
    bound: Address = server.sockets[0].getsockname()
    return bound[1]
