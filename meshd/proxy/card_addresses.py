"""By which addresses a client of this sidecar reaches agents: as it has just reached one, by its card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Direction, Kind
from meshd.discovery.card_addresses import GRPC, Origin
from meshd.policy.addressing import (
    INTENT,
    LOCAL_SUFFIX,
    MESH_SCHEME,
    MESH_SUFFIX,
    RUN_SEGMENT,
    host_of,
    port_of,
)

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.discovery.card_addresses import Place
    from meshd.upstream import Upstream

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_GRPC_SCHEMES: Final = {"http": "grpc", "https": "grpcs"}
_INBOUND: Final = Direction.INBOUND
_AGENT: Final = Kind.AGENT


class ClientAddress:
    """How one client addressed an agent, and so how it is led to that one, and to others."""

    __slots__ = (
        "_authority", "_call", "_is_proxied", "_port", "_scheme", "_suffix", "_upstream", "has_run", "is_grpc_led",
    )  # fmt: skip

    def __init__(self, call: Call, target: str, authority: str, *, scheme: str, port: int) -> None:
        """`target` is the request's, as it came; `scheme` and `port` are those of this sidecar's listener."""
        assert call.upstream is not None
        self._upstream = upstream = call.upstream
        self._call = call
        self._port = port
        self.has_run = bool(call.run_token)
        self.is_grpc_led = not self.has_run
        """gRPC has no room for the address of a run: what it calls would belong to no run."""
        self._is_proxied = False
        """The client has called the agent by the agent's own address, through this sidecar as its proxy."""
        if target[:1] != "/":
            its_scheme, _, rest = target.partition("://")
            if its_scheme.lower() == MESH_SCHEME:
                authority = f"{INTENT}{MESH_SUFFIX}"
            else:
                scheme, authority = its_scheme, rest.partition("/")[0].partition("?")[0]
                at = Origin(host_of(authority), port_of(authority, scheme))
                self._is_proxied = at == Origin(upstream.host, upstream.port)
        self._scheme = scheme
        self._authority = authority or f"127.0.0.1:{port}"
        host = host_of(authority)
        self._suffix = next((one for one in (MESH_SUFFIX, LOCAL_SUFFIX) if host.endswith(one)), "")

    @property
    def here(self) -> str:
        """The origin by which the client knows this sidecar."""
        return f"{self._scheme}://{self._authority}"

    def lead(self, place: Place, binding: str) -> str | None:
        """Return the client's address for an interface of a card; None where nothing here leads to it."""
        upstream = self._upstream_at(place)
        if upstream is None:
            return None
        if binding.upper() == GRPC:
            return self._grpc(upstream, place) if self.is_grpc_led else None
        base = upstream.base_path
        if base and place.path != base and not place.path.startswith((f"{base}/", f"{base}?")):
            return None
        return self._root_of(upstream) + place.path[len(base) :]

    def _upstream_at(self, place: Place) -> Upstream | None:
        """Return what an interface is of: the agent itself, or another one that the policy names."""
        here = self._upstream
        own = Origin(here.host, here.port)
        if place.origin.is_at(own, own) or place.origin in here.card_origins:
            return here
        if self._call.direction is _INBOUND:
            return None
        for other in self._call.policy.upstreams.values():
            if (
                other.kind is _AGENT
                and not other.is_session
                and place.origin.is_at(Origin(other.host, other.port), own)
            ):
                found: Upstream = other
                return found
        return None

    def _root_of(self, upstream: Upstream) -> str:
        """Return where an agent is, addressed by name in the way in which this one was."""
        if self._call.direction is _INBOUND:
            return self.here
        if self._is_proxied:
            return upstream.url
        if self._suffix:
            port = self._authority.partition(":")[2]
            return f"{self._scheme}://{upstream.name}{self._suffix}" + (f":{port}" if port else "")
        run = f"/{RUN_SEGMENT}/{self._call.run_token}" if self.has_run else ""
        return f"{self.here}{run}/{upstream.name}"

    def _grpc(self, upstream: Upstream, place: Place) -> str:
        """Return a target that an unmodified client can dial. A name below `localhost` is loopback (RFC 6761), and
        says in `:authority` which agent is meant; on other hosts the client has to say that itself."""
        host, port = host_of(self._authority), self._authority.rpartition("]")[2].partition(":")[2]
        if self._call.direction is _INBOUND:
            address = self._authority
        elif host in _LOOPBACK or self._suffix == LOCAL_SUFFIX:
            address = f"{upstream.name}{LOCAL_SUFFIX}:{port or self._port}"
        elif self._suffix or self._is_proxied:
            address = f"{upstream.name}{LOCAL_SUFFIX}:{self._port}"
        else:
            address = self._authority
        if not place.scheme:
            return address
        scheme = _GRPC_SCHEMES[self._scheme] if place.scheme.startswith("grpc") else self._scheme
        return f"{scheme}://{address}"
