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
    from meshd.policy.compiled import Policy, Upstream
    from meshd.wire.message import Request

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_INBOUND: Final = Direction.INBOUND
_LLM: Final = Kind.LLM

MESH_SUFFIX: Final = ".mesh"
RUN_SEGMENT: Final = "w"
APP: Final = "app"
"""Name of the upstream to which inbound calls go: the agent beside this sidecar."""

KNOWN_MAX: Final = 256
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
            if upstream.is_session:
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
        if host.endswith(MESH_SUFFIX):
            name = host[: -len(MESH_SUFFIX)]
            found = self._found(name, self._upstreams.get(name), target)
            if found.upstream is not None and len(authority) + len(target) <= PATH_LENGTH_MAX:
                if len(self._by_host) >= KNOWN_MAX:
                    del self._by_host[next(iter(self._by_host))]
                self._by_host[authority, target] = found
            return found
        if host and not self._is_ours(host):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The Host {host!r} is not this sidecar's. Use 127.0.0.1, localhost or <upstream>.mesh, or add the "
                "name to hosts_allowed in the policy.",
                status=421,
            )
        if len(self._known) < KNOWN_MAX:
            self._known.add(request.fields.authority)
        return self._locate_path(target)

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
        if not separator or scheme.lower() not in ("http", "https"):
            raise Refused(Reason.MALFORMED, "The request's address is neither in origin form nor an http:// URL")
        authority, slash, path = rest.partition("/")
        if not slash:
            authority, mark, query = authority.partition("?")
            path = mark + query
        host = host_of(authority)
        if host.endswith(MESH_SUFFIX):
            name = host[: -len(MESH_SUFFIX)]
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
