"""Which requests go to the sidecar, and what of the current context belongs on them. Pure, stdlib only.

A token that reached anybody but the sidecar would let them spend from the workflow, so what is not known to go to
the sidecar gets nothing. Where a proxy stands between, it is the proxy that reads the request: it must be the sidecar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshd_sdk.current import Current

DEFAULT: Final = "http://127.0.0.1:7400"
MESH_SUFFIX: Final = ".mesh"
"""`<upstream>.mesh` names an upstream of the sidecar. Anybody's DNS may answer to such a name, so by itself it counts
at a port of the sidecar's alone, as where a file of hosts has it."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104
_PORTS: Final = {"http": 80, "https": 443}
_IDENTITY: Final = ("x-meshd-context", "x-meshd-workflow")


class Sidecar:
    """The addresses at which agents reach the sidecar beside them."""

    __slots__ = ("_ports", "addresses")

    def __init__(self, addresses: Iterable[str]) -> None:
        """Each as in `MESHD_URL`, with or without a run's path. Raises ValueError for what is no http(s) address."""
        self.addresses = frozenset(place for address in addresses for place in _places(address))
        self._ports = frozenset(port for _, port in self.addresses)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Sidecar:
        """Return the one that the environment names in MESHD_URL or MESHD_URL_<NAME>; else the default address.

        Raises ValueError, naming the variable, for what is no address.
        """
        named = {name: value for name, value in environ.items() if name == "MESHD_URL" or name[:10] == "MESHD_URL_"}
        for name, value in named.items():
            if value:
                try:
                    _places(value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return cls([value for value in named.values() if value] or [DEFAULT])

    def is_at(self, host: str, port: int) -> bool:
        """Say whether a connection to this host and port is one to the sidecar."""
        host = host.strip("[]").lower().rstrip(".")
        return (host, port) in self.addresses or (host.endswith(MESH_SUFFIX) and port in self._ports)

    def receives(self, scheme: str, host: str, port: int | None, proxy: tuple[str, int] | None = None) -> bool:
        """Say whether the sidecar reads a request; `proxy` is the HTTP proxy that it is sent through, if any.

        A port of None is the scheme's own. Through a proxy, https is a tunnel: its other end reads the request.
        """
        if proxy is not None and scheme == "http":
            return proxy in self.addresses
        number = _PORTS.get(scheme, 0) if port is None else port
        return self.is_at(host, number)

    def is_target(self, target: str) -> bool:
        """Say whether a gRPC channel with this target goes to the sidecar, and to nobody else."""
        kind, colon, rest = target.partition(":")
        if kind in ("ipv4", "ipv6"):
            return all(self._is_pair(one) for one in rest.split(","))
        if colon and kind == "dns":
            # dns:host:port, or dns://server/host:port
            target = rest[2:].partition("/")[2] if rest.startswith("//") else rest.lstrip("/")
        elif "/" in target or kind in ("unix", "unix-abstract", "vsock", "xds"):
            return False
        return self._is_pair(target)

    def _is_pair(self, pair: str) -> bool:
        try:
            split = urlsplit(f"//{pair.strip()}")
            host, port = split.hostname, split.port
        except ValueError:
            return False
        return host is not None and not split.path and self.is_at(host, _PORTS["https"] if port is None else port)


def place(address: str) -> tuple[str, int]:
    """Return host and port of an http(s) address, the host in lower case. Raises ValueError for anything else."""
    split = urlsplit(address)
    if split.scheme not in _PORTS or not split.hostname:
        raise ValueError(f"an address such as {DEFAULT}, not {address!r}")
    return split.hostname.lower().rstrip("."), split.port or _PORTS[split.scheme]


def _places(address: str) -> set[tuple[str, int]]:
    host, port = place(address)
    if host in _ANY:
        return {(name, port) for name in LOOPBACK}
    # One machine's loopback is one place under several names; 127.0.0.2 may be another sidecar's.
    return {(name, port) for name in LOOPBACK} if host in LOOPBACK else {(host, port)}


def due(now: Current, has: Callable[[str], bool]) -> dict[str, str]:
    """Return the fields to add to a request that goes to the sidecar; `has` says which names (lower case) it has.

    What the caller has set stays. One that has said itself to which workflow the call belongs gets nothing of ours:
    half of one context and half of another would say something that is true of neither.
    """
    if any(has(name) for name in _IDENTITY):
        return {}
    fields = now.headers()
    if has("traceparent"):
        # A tracestate belongs to the traceparent that it came with.
        fields.pop("tracestate", None)
    return {name: value for name, value in fields.items() if not has(name)}
