"""What of an MCP server is in quarantine is not called, whichever way the call has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.json_pairs import member, read_body, read_object, text
from meshd.dialects.mcp import TOOLS_CALL
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call

Held = dict[str, frozenset[tuple[str, str]]]
"""By server: the sort (tool, prompt, resource) and the name of each thing in quarantine. Of most servers, nothing."""
_SORTS: Final = {
    TOOLS_CALL: ("tool", "name"),
    "prompts/get": ("prompt", "name"),
    "resources/read": ("resource", "uri"),
    "resources/subscribe": ("resource", "uri"),
}


def check_quarantine(call: Call, held: Held) -> None:
    """Raise Refused where a message calls what is in quarantine."""
    rpc, upstream = call.rpc, call.upstream
    if upstream is None or rpc is None or rpc.method not in _SORTS:
        return
    names = held.get(upstream.name)
    if not names:
        return
    sort, key = _SORTS[rpc.method]
    name = rpc.tool
    if sort != "tool":
        raw = member(read_body(call.body or b""), "params")
        name = "" if raw is None else text(read_object(raw, "params"), key, "params") or ""
    if (sort, name) in names:
        raise in_quarantine(sort, name, upstream.name)


def in_quarantine(sort: str, name: str, server: str) -> Refused:
    """Return the refusal of what is in quarantine."""
    name = name[:128]
    return Refused(
        Reason.NOT_ALLOWED,
        f"The {sort} {name} of {server} is in quarantine, and nobody may call it: what its server says "
        f"of it has changed, or is for a person to look at. See `meshd tools show {server}/{name}`.",
    )
