"""Which upstream a request names, and the path that is left for it. By name only: never by a free URL.

An agent names an upstream by the first segment of its path (`/openai/v1/...`), by a host name (`openai.mesh`), or by
an absolute-form request for an origin that the policy has; `/w/<token>/` before that ties the call to a run.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.call import Direction, Kind, Target
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream
    from meshd.wire.message import Request

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_INBOUND: Final = Direction.INBOUND
_LLM: Final = Kind.LLM

MESH_SUFFIX: Final = ".mesh"
LOCAL_SUFFIX: Final = ".localhost"
"""Of a name that is loopback everywhere (RFC 6761, 6.3), so that a client can dial it and nobody else can claim it."""
TARGET_FIELD: Final = b"x-meshd-target"
"""Names the upstream of a gRPC call, whose path has no room for a name. Read here, and never forwarded."""
RUN_SEGMENT: Final = "w"
INTENT: Final = "intent"
"""In an upstream's place: the call says what it wants, and not from whom. See `meshd.intent`."""
MESH_SCHEME: Final = "mesh"
APP: Final = "app"
"""Name of the upstream to which inbound calls go: the agent beside this sidecar."""

KNOWN_MAX: Final = 256
UPSTREAMS_SHOWN_MAX: Final = 10
PATH_LENGTH_MAX: Final = 1024
_NOBODY: Final = Target(Kind.HOST, "")
# A dot segment, plain or escaped: it could leave the upstream's base path, or the path that a rule is for.
_DOTS: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
# A backslash or an escaped separator: a path that an LLM upstream might read otherwise than we judged it.
_AMBIGUOUS: Final = re.compile(r"\\|%5c|%2f|%00", re.IGNORECASE)


class Located(NamedTuple):
    """What a request's address says."""

    name: str
    upstream: Upstream | None
    """None where the policy has no upstream of that name."""
    path: str
    """Path and query for the upstream, its base path included."""
    run_token: str = ""
    target: Target = _NOBODY


class AddressBook:
    """The addresses of one policy. Made once for each document."""

    __slots__ = ("_app", "_by_host", "_by_origin", "_hosts", "_hosts_allowed", "_known", "_paths", "_upstreams")

    def __init__(self, policy: Policy, app: Upstream | None = None, listen_hosts: tuple[str, ...] = ()) -> None:
        self._app = app
        self._upstreams = policy.upstreams
        if policy.gateway is not None:
            self._upstreams = {**policy.upstreams, policy.gateway.name: policy.gateway}
        self._known: set[str] = set()
        """Host fields that were found to be ours; a caller sends the same one all the time."""
        self._paths: dict[str, Located] = {}
        """What the paths that were seen are for, likewise."""
        self._by_host: dict[tuple[str, str], Located] = {}
        """The same where the host names the upstream."""
        self._by_origin: dict[tuple[str, str, int], list[Upstream]] = {}
        """Several names may stand for one origin. What is metered stands first, so that no second name of an LLM is a
        way around its meter; else the order is the document's."""
        for upstream in sorted(policy.upstreams.values(), key=lambda one: one.kind is not _LLM or one.is_unmetered):
            if upstream.is_session or upstream.process is not None:
                continue
            origin = (upstream.scheme, upstream.host, upstream.port)
            self._by_origin.setdefault(origin, []).append(upstream)
        self._hosts_allowed = policy.hosts_allowed
        self._hosts = frozenset(host.lower() for host in (*policy.hosts_allowed, *listen_hosts, "localhost"))

    def is_origin_allowed(self, origin: bytes) -> bool:
        """Say whether a web page of this origin may call."""
        return host_of(origin.decode("latin-1").rpartition("://")[2]) in self._hosts_allowed

    def locate(self, request: Request, direction: Direction) -> Located:
        """Say which upstream `request` is for. Raises Refused for an address that is malformed or not ours.

        Host is checked against DNS rebinding: a page that a browser was lured to may reach a loopback port, but
        only under its own host name.
        """
        target = request.target
        if direction is _INBOUND:
            if target[:1] != "/":
                raise Refused(Reason.MALFORMED, "An inbound call must be addressed in origin form (RFC 9112, 3.2.1)")
            return self._found(APP, self._app, target)
        if target[:1] != "/":
            return self._locate_absolute(target)
        if request.fields.authority in self._known:
            return self._paths.get(target) or self._locate_path(target)
        authority = request.fields.authority
        found = self._by_host.get((authority, target))
        if found is not None:
            return found
        host = host_of(authority)
        name = self._named(host)
        if name:
            found = self._found(name, self._upstreams.get(name), target)
            if found.upstream is not None and len(authority) + len(target) <= PATH_LENGTH_MAX:
                if len(self._by_host) >= KNOWN_MAX:
                    del self._by_host[next(iter(self._by_host))]
                self._by_host[authority, target] = found
            return found
        self._check_host(host)
        if len(self._known) < KNOWN_MAX:
            self._known.add(request.fields.authority)
        return self._locate_path(target)

    def locate_rpc(self, request: Request, direction: Direction) -> Located:
        """Do what `locate` does for a gRPC call: its upstream may be named in metadata too. Raises Refused."""
        fields = request.fields
        names = [value for name, value in fields.governed if name == TARGET_FIELD] if fields.governed else []
        if direction is _INBOUND or not names:
            found = self.locate(request, direction)
            if found.upstream is None and direction is not _INBOUND and found.name != INTENT:
                raise _unnamed(found.name, self._upstreams)
            return found
        name = names[0].decode("latin-1")
        host = host_of(fields.authority)
        is_other = self._named(host) not in ("", name)
        if len(names) > 1 or is_other or request.target[:1] != "/":
            raise Refused(Reason.MALFORMED, "x-meshd-target must name one upstream, and the same as :authority does")
        self._check_host(host)
        upstream = self._upstreams.get(name)
        if upstream is None and name != INTENT:
            raise _unnamed(name, self._upstreams)
        return self._found(name, upstream, request.target)

    def named(self, name: str, path: str, run_token: str) -> Located:
        """Say what a call to an upstream by its name is for. Raises Refused for a path that no call may have."""
        return self._found(name, self._upstreams.get(name), path, run_token)

    def _check_host(self, host: str) -> None:
        """Raise Refused for a host that is not this sidecar's, nor an upstream's name."""
        if host and not self._named(host) and not self._is_ours(host):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The Host {host!r} is not this sidecar's. Use 127.0.0.1, localhost or <upstream>.mesh, or add the "
                "name to hosts_allowed in the policy.",
                status=421,
            )

    def _named(self, host: str) -> str:
        """Return the upstream that a host name names, as in `writer.mesh`; empty for another host."""
        if host.endswith(MESH_SUFFIX):
            return host[: -len(MESH_SUFFIX)]
        return host[: -len(LOCAL_SUFFIX)] if host.endswith(LOCAL_SUFFIX) and host not in self._hosts else ""

    def _locate_path(self, target: str) -> Located:
        name, slash, rest = target[1:].partition("/")
        run_token = ""
        if name == RUN_SEGMENT and slash:
            run_token, _, rest = rest.partition("/")
            name, slash, rest = rest.partition("/")
        if not slash:
            name, mark, query = name.partition("?")
            rest = mark + query
        located = self._found(name, self._upstreams.get(name), f"/{rest}", run_token)
        if located.upstream is not None and len(target) <= PATH_LENGTH_MAX:
            if len(self._paths) >= KNOWN_MAX:
                del self._paths[next(iter(self._paths))]
            self._paths[target] = located
        return located

    def _locate_absolute(self, target: str) -> Located:
        scheme, separator, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if scheme.lower() == MESH_SCHEME and separator and authority.lower() == INTENT:
            return self._found(INTENT, None, f"/{path}")
        if not separator or scheme.lower() not in ("http", "https"):
            raise Refused(
                Reason.MALFORMED,
                "The request's address is neither in origin form nor an http:// URL, nor mesh://intent/<words>",
            )
        if not slash:
            authority, mark, query = authority.partition("?")
            path = mark + query
        if "@" in authority:
            raise Refused(Reason.MALFORMED, "The request's address names a user, which is never sent (RFC 9110, 4.2.4)")
        host = host_of(authority)
        if name := self._named(host):
            return self._found(name, self._upstreams.get(name), f"/{path}")
        if self._is_ours(host) and (scheme.lower(), host, port_of(authority, scheme)) not in self._by_origin:
            return self._locate_path(f"/{path}")
        for upstream in self._by_origin.get((scheme.lower(), host, port_of(authority, scheme)), ()):
            # An absolute address already holds the base path; only what lies below it is the upstream's.
            base = upstream.base_path.removeprefix("/")
            if not base:
                return self._found(upstream.name, upstream, f"/{path}")
            if path == base or path.startswith((f"{base}/", f"{base}?")):
                return self._found(upstream.name, upstream, "/" + path[len(base) :].removeprefix("/"))
        return Located(authority, None, f"/{path}", target=Target(Kind.HOST, authority))

    def locate_tunnel(self, authority: str) -> Located:
        """Say which upstream a CONNECT for HOST:PORT is for."""
        host, port = host_of(authority), port_of(authority, "")
        for scheme in ("https", "http"):
            if found := self._by_origin.get((scheme, host, port)):
                return Located(found[0].name, found[0], authority, target=Target(found[0].kind, found[0].name))
        return Located(authority, None, authority, target=Target(Kind.HOST, authority))

    def _found(self, name: str, upstream: Upstream | None, path: str, run_token: str = "") -> Located:
        if upstream is None:
            return Located(name, None, path, run_token, Target(Kind.HOST, name))
        if "#" in path:
            raise Refused(Reason.MALFORMED, "The request's address has a fragment, which is never sent (RFC 9112, 3.2)")
        bare = path.partition("?")[0]
        if ("." in bare or "%" in bare) and _DOTS.search(bare):
            raise Refused(Reason.MALFORMED, "The path holds dot segments, which the upstream may resolve")
        if upstream.kind is _LLM and _AMBIGUOUS.search(bare):
            raise Refused(Reason.MALFORMED, "The path holds escaped separators, which an LLM upstream may resolve")
        return Located(name, upstream, upstream.base_path + path, run_token, Target(upstream.kind, name))

    def _is_ours(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _unnamed(name: str, upstreams: Mapping[str, Upstream]) -> Refused:
    known = ", ".join(sorted(upstreams)[:UPSTREAMS_SHOWN_MAX]) or "none"
    return Refused(
        Reason.UNKNOWN_TARGET,
        f"The policy has no upstream {name[:64]!r}; it has: {known}. A gRPC call names its upstream by the channel's "
        "authority (grpc.default_authority, <upstream>.mesh) or by the metadata x-meshd-target: <upstream>.",
    )


def host_of(authority: str) -> str:
    """Return the host of HOST[:PORT] in lower case, an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().removesuffix(".")


def port_of(authority: str, scheme: str) -> int:
    """Return the port of HOST[:PORT], the scheme's own where there is none, -1 where it is no number."""
    port = authority.rpartition("]")[2].partition(":")[2]
    if not port:
        return {"http": 80, "https": 443}.get(scheme.lower(), -1)
    return int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1
