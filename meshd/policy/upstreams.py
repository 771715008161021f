"""Upstreams: the well-known LLM APIs, what a URL may be, and how a section of the document becomes an `Upstream`."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from meshd.call import Kind
from meshd.policy.gateway import endpoint_of, prefix_of
from meshd.policy.problem import shown
from meshd.policy.process import compile_process
from meshd.upstream import Upstream

if TYPE_CHECKING:
    from meshd.policy.model import UpstreamSection
    from meshd.upstream import DialectName

WELL_KNOWN: dict[str, tuple[str, DialectName]] = {
    "openai": ("https://api.openai.com", "openai"),
    "anthropic": ("https://api.anthropic.com", "anthropic"),
    "gemini": ("https://generativelanguage.googleapis.com", "gemini"),
    "groq": ("https://api.groq.com/openai", "openai"),
    "mistral": ("https://api.mistral.ai", "openai"),
    "openrouter": ("https://openrouter.ai/api", "openai"),
    "deepseek": ("https://api.deepseek.com", "openai"),
    "together": ("https://api.together.xyz", "openai"),
    "xai": ("https://api.x.ai", "openai"),
    "ollama": ("http://127.0.0.1:11434", "ollama"),
}
"""LLM APIs whose base URL behind meshd is `http://127.0.0.1:7400/<name>`, with `/v1` behind it for OpenAI's SDK."""

KINDS_OF_RPC: dict[str, Kind] = {"mcp": Kind.TOOL, "a2a": Kind.AGENT}
"""What an upstream is that speaks these, where the document does not say so. Either may be spoken by either."""

_KEY_HEADERS: dict[DialectName, str] = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}
"""Where a provider's key stands that is no bearer token."""

RESERVED_NAMES = frozenset({"w", "app", "intent"})
"""`/w/<opaque>/...` is a per-run address; `app` is the target of calls that come in: the agent beside the sidecar;
`/intent/<words>/...` names none, but what is wanted."""

SESSION = "session"
"""Stands where others have a URL: the agent is called through the session that it opens."""
PROCESS = "process"
"""The same of an MCP server that meshd starts."""

# Where clouds hand credentials to whoever asks from inside: no agent's call may go there, whatever a document says.
_METADATA_HOSTS = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google, Azure, OpenStack and others
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "100.100.100.200",  # Alibaba Cloud
        "192.0.0.192",  # Oracle Cloud, classic
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # Google
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/*\Z")


@dataclass(frozen=True, slots=True)
class Location:
    """A URL, taken apart and found fit to be called."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    base_path: str
    authority: bytes

    @property
    def url(self) -> str:
        """The URL without a trailing slash."""
        return f"{self.scheme}://{self.authority.decode()}{self.base_path}"


def is_metadata_host(host: str) -> bool:
    """Say whether a host name or address is a cloud's metadata service, in any spelling of the address."""
    name = host.rstrip(".").lower()
    if name in _METADATA_HOSTS:
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            # `inet_aton` reads what resolvers read: 2852039166, 0xa9fea9fe, 0251.0376.0251.0376, 169.254.43518.
            address = ipaddress.IPv4Address(socket.inet_aton(name)) if re.match(r"[0-9]", name) else _NAT64[0]
        except (OSError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address in _METADATA_ADDRESSES


def parse_url(url: str) -> Location:
    """Take an upstream's URL apart. Raises ValueError saying what is wrong with it."""
    if any(c.isspace() or not c.isprintable() for c in url) or "\\" in url:
        raise ValueError("a URL has no spaces, control characters or backslashes")
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise ValueError(f'expected a URL such as "https://api.example.com", not {shown(url)}')
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").lower()
    except ValueError as error:
        raise ValueError(f"{shown(url)} is not a URL: {error}") from None
    if "@" in parts.netloc:
        raise ValueError("a URL here carries no user or password: see key: for a provider's key")
    if parts.query or "?" in url:
        raise ValueError("a URL here carries no query")
    if parts.fragment or "#" in url:
        raise ValueError("a URL here carries no fragment")
    if parts.netloc.endswith(":") or port == 0:
        raise ValueError(f"{shown(url)} has no usable port")
    _check_host(host)
    if not _PATH.match(parts.path) or any(part in (".", "..") for part in parts.path.split("/")):
        raise ValueError(
            f"the path {shown(parts.path)} must be plain segments, without dots, escapes or doubled slashes"
        )
    default = 443 if scheme == "https" else 80
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port in (None, default) else f"{bracketed}:{port}"
    return Location(
        "https" if scheme == "https" else "http", host, port or default, parts.path.rstrip("/"), authority.encode()
    )


def _check_host(host: str) -> None:
    if is_metadata_host(host):
        raise ValueError(f"{host} is a cloud's metadata service, which gives out credentials: never an upstream")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"[{host}] is not an IPv6 address") from None
        if "%" in host:
            raise ValueError("an IPv6 address here has no zone")
    elif not host.isascii():
        raise ValueError(f"write the host {shown(host)} in its ASCII form (xn--...)")
    elif len(host) > 253 or not _HOST_NAME.match(host):
        raise ValueError(f"{shown(host)} is not a host name")


def dialect_of(name: str, section: UpstreamSection) -> DialectName:
    """Return the dialect that an upstream's section says, or that its name or host is known for."""
    if section.dialect is not None:
        return section.dialect
    if section.kind in (None, "llm") and section.url is not None:
        return _known(name, section.url) or "plain"
    return "plain"


def kind_of(name: str, section: UpstreamSection) -> Kind | None:
    """Return what an upstream is; None where neither kind nor dialect nor a well-known name says so."""
    if section.kind is not None:
        return Kind(section.kind)
    if section.session:
        return Kind.AGENT
    dialect = dialect_of(name, section)
    return KINDS_OF_RPC.get(dialect) or (Kind.LLM if dialect != "plain" else None)


def known_llm(url: str) -> str | None:
    """Return the name of the well-known LLM API that a URL's host belongs to."""
    host = urlsplit(url).hostname
    hosts = {urlsplit(known).hostname: name for name, (known, _) in WELL_KNOWN.items() if name != "ollama"}
    return hosts.get(host)


def _known(name: str, url: str) -> DialectName | None:
    known = known_llm(url)
    return WELL_KNOWN[known or name][1] if known or name in WELL_KNOWN else None


def session_upstream(name: str) -> Upstream:
    """Return the upstream that stands for an agent's session."""
    return Upstream(
        name=name,
        kind=Kind.AGENT,
        url=SESSION,
        scheme="http",
        host="",
        port=0,
        base_path="",
        authority=name.encode("ascii"),
        dialect="plain",
        is_dialect_told=False,
        is_session=True,
        sends_trace=True,
    )


def agent_upstream(name: str, url: str) -> Upstream:
    """Return the upstream of an agent at a URL, or at its session. Raises ValueError saying what is wrong with it."""
    if url == SESSION:
        return session_upstream(name)
    location = parse_url(url)
    return replace(
        session_upstream(name),
        is_session=False,
        url=location.url,
        scheme=location.scheme,
        host=location.host,
        port=location.port,
        base_path=location.base_path,
        authority=location.authority,
    )


def compile_session(name: str, section: UpstreamSection) -> Upstream:
    """Make the upstream of an agent that the policy names without an address."""
    return replace(
        session_upstream(name),
        sends_trace=section.sends_trace is not False,
        pending_max=section.pool.pending,
        first_byte_timeout_s=section.timeouts.first_byte,
        gap_timeout_s=section.timeouts.gap,
    )


def compile_started(name: str, section: UpstreamSection, kind: Kind) -> Upstream:
    """Make the upstream of an MCP server that the policy starts. `section.process` is set."""
    assert section.process is not None
    return replace(
        session_upstream(name),
        is_session=False,
        is_dialect_told=True,
        url=PROCESS,
        kind=kind,
        dialect="mcp",
        process=compile_process(section.process),
        prefix=prefix_of(name, section),
        endpoint=endpoint_of(section, ""),
        result_tokens_max=section.result_tokens_max,
        sends_trace=False,
        pending_max=section.pool.pending,
        first_byte_timeout_s=section.timeouts.first_byte,
        gap_timeout_s=section.timeouts.gap,
    )


def compile_upstream(name: str, section: UpstreamSection, location: Location, kind: Kind) -> Upstream:
    """Make the object that the hot path reads."""
    dialect = dialect_of(name, section)
    key_header = None
    if section.key is not None:
        default = _KEY_HEADERS.get(dialect, "authorization")
        key_header = (section.key.header or default).lower().encode()
    return Upstream(
        name=name,
        kind=kind,
        url=location.url,
        scheme=location.scheme,
        host=location.host,
        port=location.port,
        base_path=location.base_path,
        authority=location.authority,
        dialect=dialect,
        is_dialect_told=dialect != "plain" or section.dialect is not None or kind in (Kind.LLM, Kind.HOST),
        protocol=section.protocol,
        is_sse=section.transport == "sse",
        is_unmetered=section.unmetered,
        is_peer=section.peer,
        sends_trace=kind is Kind.AGENT if section.sends_trace is None else section.sends_trace,
        ca_file=section.tls.ca,
        key_header=key_header,
        key_prefix=b"Bearer " if key_header == b"authorization" else b"",
        key_env=None if section.key is None else section.key.env,
        key_file=None if section.key is None else section.key.file,
        card_keys=section.card.keys,
        is_card_signed=section.card.require_signature,
        card_origins=tuple([(one.host, one.port) for one in map(parse_url, section.card.origins)]),
        takes_extension=section.extension,
        charges_usage=section.charges_usage,
        connections_max=section.pool.connections,
        pending_max=section.pool.pending,
        connect_timeout_s=section.pool.connect_timeout,
        idle_timeout_s=section.pool.idle_timeout,
        first_byte_timeout_s=section.timeouts.first_byte,
        first_token_timeout_s=section.timeouts.first_token,
        gap_timeout_s=section.timeouts.gap,
        prefix=prefix_of(name, section),
        endpoint=endpoint_of(section, location.base_path),
        result_tokens_max=section.result_tokens_max,
    )
