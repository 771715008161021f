"""Who may speak to a port: its own names, and no page of another origin.

A web page that the operator's browser shows can reach loopback: a name that was rebound to 127.0.0.1 shows in Host,
a foreign page in Origin.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from meshd.admin.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence


def host_name(field: str) -> str:
    """Return the name in a Host field in lower case, without port and brackets; empty for what is none."""
    field = field.strip().lower()
    if field.startswith("["):
        name, closing, port = field[1:].partition("]")
        if not closing or (port and not (port[0] == ":" and _is_port(port[1:]))):
            return ""
        return name if _address(name) is not None else ""
    name, colon, port = field.partition(":")
    if colon and not _is_port(port):
        return ""
    return name.rstrip(".") if name and all(char.isalnum() or char in "-._" for char in name) else ""


def _is_port(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 5


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class HostRule:
    """Which Host fields a port answers to."""

    __slots__ = ("_are_addresses_allowed", "_names")

    def __init__(self, names: tuple[str, ...], *, are_addresses_allowed: bool) -> None:
        self._names = frozenset(name.lower().rstrip(".").strip("[]") for name in names) | {"localhost"}
        self._are_addresses_allowed = are_addresses_allowed

    def allows(self, field: str | None) -> bool:
        """Say whether a Host field names this port.

        An address cannot be rebound, so where probes and Prometheus come by the pod's address any will do; the admin
        port takes loopback only.
        """
        name = host_name(field or "")
        if name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._are_addresses_allowed or address.is_loopback)

    def judge(self, fields: Sequence[str], authority: str | None) -> None:
        """Raise Problem(403) where a request names another host than this port's own.

        `fields` are its Host fields; `authority` that of an absolute-form target, which overrides them, None where the
        target is a path.
        """
        if len(fields) != 1 or not self.allows(fields[0]):
            raise Problem(403, "Host not allowed", "This port answers to its own address only.")
        if authority is not None and not self.allows(authority):
            raise Problem(403, "Host not allowed", "This port answers to its own address only.")


def judge_origin(own: str, origins: Sequence[str], fetch_sites: Sequence[str]) -> None:
    """Raise Problem(403) where a page of another origin than `own` asks, by its Origin and Sec-Fetch-Site fields."""
    is_foreign = origins and list(origins) != [own]
    if is_foreign or (fetch_sites and fetch_sites[0] not in ("none", "same-origin")):
        raise Problem(403, "Origin not allowed", "Pages of other origins have no business here.")
