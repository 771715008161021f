"""The MCP gateway in the policy: what stands for all MCP servers, and what each of them is called by there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from meshd.call import Kind
from meshd.filters.contract import Settings
from meshd.filters.units import Count, Duration, Size
from meshd.policy.problem import shown
from meshd.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import UpstreamSection
    from meshd.policy.report import Report

GATEWAY = "mcp"
"""Name under which all MCP servers stand together, unless the document gives it to an upstream."""
SEPARATOR = "__"
"""Between a server's prefix and the name of its tool."""
DEFAULT_ENDPOINT = "/mcp"


class McpSettings(Settings):
    """The gateway to all upstreams of `dialect: mcp`, at `/mcp`."""

    disclosure: Literal["all", "search", "auto"] = "all"
    """What `tools/list` shows: `all` tools; with `search` three by which the others are found, described and called;
    `auto` is `search` where a caller has more than `above` tools."""
    above: int = Field(default=40, ge=0, le=1_000_000)
    """Tools that `auto` shows all of."""
    result_tokens_max: Annotated[Count, Field(ge=1)] | None = None
    """Tokens of a tool's result that reach the client, estimated at four bytes each; the rest is left out, and kept to
    be read. Unset: all of it."""
    result_kept: Duration = Field(default=600.0, gt=0, le=86_400)
    """For how long a result that was cut can be read as a whole."""
    results_size: Size = Field(default=64 * 2**20, ge=1024, le=2**34)
    """Bytes of memory for these results together; beyond that the oldest go."""


class ServerSection(Settings):
    """What an upstream says of its place behind the gateway: see `meshd.policy.model`."""

    result_tokens_max: Annotated[Count, Field(ge=1)] | None = None
    """Of an MCP server behind the gateway: the same as `mcp.result_tokens_max`, in its place."""


def gateway_upstream(upstreams: Mapping[str, Upstream]) -> Upstream | None:
    """Return the upstream that stands for all MCP servers; None where there is none, or its name is another's."""
    if GATEWAY in upstreams or not any(one.dialect == "mcp" for one in upstreams.values()):
        return None
    return Upstream(
        name=GATEWAY,
        kind=Kind.TOOL,
        url=GATEWAY,
        scheme="http",
        host="",
        port=0,
        base_path="",
        authority=GATEWAY.encode("ascii"),
        dialect="mcp",
        gap_timeout_s=float("inf"),
        is_gateway=True,
    )


def prefix_of(name: str, section: UpstreamSection) -> str:
    """Return what an MCP server's tools are called by, the separator included; empty for their own names."""
    if section.dialect != "mcp":
        return ""
    prefix = name if section.prefix is None else section.prefix
    # Models' APIs take names of letters, digits, "_" and "-" alone.
    return prefix.replace(".", "_") + SEPARATOR if prefix else ""


def endpoint_of(section: UpstreamSection, base_path: str) -> str:
    """Return the path at which an MCP server takes messages; empty for what is none."""
    if section.dialect != "mcp":
        return ""
    if section.endpoint is not None:
        return base_path + section.endpoint
    return base_path or DEFAULT_ENDPOINT


def gateway_problems(section: UpstreamSection, dialect: str) -> list[tuple[tuple[str, ...], str]]:
    """Return what says something of the gateway, and stands at no MCP server."""
    return [
        ((key,), f"only an upstream of dialect: mcp stands behind the gateway; this speaks {dialect}")
        for key in ("prefix", "endpoint", "result_tokens_max")
        if getattr(section, key) is not None and dialect != "mcp"
    ]


def check_gateway(upstreams: Mapping[str, Upstream], report: Report) -> None:
    """Report prefixes that two servers share, and a gateway that has no name left.

    Servers without any prefix are told apart by what their tools are called, when they say it.
    """
    servers = {name: one for name, one in upstreams.items() if one.dialect == "mcp"}
    taken: dict[str, str] = {}
    for name, upstream in servers.items():
        if upstream.prefix and taken.setdefault(upstream.prefix, name) != name:
            words = f"its tools would be called as those of {shown(taken[upstream.prefix])}: set another prefix"
            report.error(("upstreams", name), words)
    if servers and GATEWAY in upstreams:
        words = f"the name {shown(GATEWAY)} is this upstream's, so there is no gateway to all MCP servers at /{GATEWAY}"
        report.warn(("upstreams", GATEWAY), words)
