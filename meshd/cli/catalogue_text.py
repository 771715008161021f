"""The catalogue as people read it in a terminal. What a server wrote is shown, and never obeyed: see `visible`."""

from __future__ import annotations

import json
from typing import Any, Final

from meshd.approvals.question import visible

WIDTH: Final = 100
"""Of a description in a list."""
_LINES_MAX: Final = 40
"""Of a schema."""


def table(entries: list[dict[str, Any]], owners: list[dict[str, Any]], *, what: str) -> str:
    """Return a line for each entry, then how the servers stand, then what is to be done."""
    if not entries and not owners:
        return f"There are no {what}: the policy names nobody who says what it offers (dialect: mcp or a2a, openapi)."
    rows = [(_name(one), "quarantine" if one["quarantined"] else one["sort"], _line(one)) for one in entries]
    widths = [max((len(row[at]) for row in rows), default=0) for at in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {sort:<{widths[1]}}  {text}".rstrip() for name, sort, text in rows]
    if not rows:
        lines.append(f"No {what} are known yet.")
    lines += ["", *(_owner(one) for one in owners)]
    held = [one for one in entries if one["quarantined"]]
    if held:
        name = _name(held[0])
        lines += ["", f"{len(held)} in quarantine. Look at one: meshd tools show {name}"]
        lines.append(f"Then: meshd tools approve {name}")
    return "\n".join(lines)


def matches(found: list[dict[str, Any]]) -> str:
    """Return a line for each match, the best first."""
    if not found:
        return "Nothing is found for these words."
    rows = [(f"{one['score']:.2f}", _name(one["entry"]), one["entry"]["sort"], _line(one["entry"])) for one in found]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows
    )


def whole(one: dict[str, Any]) -> str:
    """Return one entry in full."""
    rows = [
        (one["sort"], _name(one)),
        ("title", visible(one["title"])),
        ("version", visible(one["version"])),
        ("known by", f"{one['origin']}{'' if one['is_local'] else ', of another sidecar'}"),
        ("quarantine", one["why"]),
        *(("", f"{finding['flaw']}: {visible(finding['detail'])}") for finding in one["findings"]),
        ("digest", one["digest"]),
        ("read-only", "yes" if one["is_read_only"] else "not known to be"),
        ("intents", "; ".join(visible(intent) for intent in one["intents"])),
    ]
    lines = [f"{name:<10}  {text}" for name, text in rows if text]
    lines += ["", visible(one["description"]) or "It does not say what it is for."]
    for key in ("input_schema", "output_schema", "annotations"):
        if one[key]:
            text = visible(json.dumps(one[key], indent=2, ensure_ascii=False)).splitlines()
            more = [f"  ... {len(text) - _LINES_MAX} lines more: --json shows them"] if len(text) > _LINES_MAX else []
            lines += ["", f"{key}:", *(f"  {line}" for line in text[:_LINES_MAX]), *more]
    return "\n".join(lines)


def _name(one: dict[str, Any]) -> str:
    return visible(one["name"]) if one["sort"] == "agent" else f"{one['owner']}/{visible(one['name'])}"


def _line(one: dict[str, Any]) -> str:
    if one["quarantined"]:
        return str(one["why"])
    text = " ".join(visible(one["description"] or one["title"]).split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _owner(one: dict[str, Any]) -> str:
    parts = [f"{one['owner']} ({one['origin']}): {one['state']}", f"{one['offered']} offered"]
    if one["quarantined"]:
        parts.append(f"{one['quarantined']} in quarantine")
    if one["refused"]:
        first = one["refused"][0]
        parts.append(f"{len(one['refused'])} refused (such as {visible(first['name'])}: {visible(first['detail'])})")
    if one["noted"]:
        parts.append(f"{len(one['noted'])} noted (such as {visible(one['noted'][0]['detail'])})")
    if one["breaker"] not in ("", "closed"):
        parts.append(f"breaker {one['breaker']}")
    if one["answered_s_ago"] is not None:
        parts.append(f"answered {one['answered_s_ago']:.0f} s ago")
    if one["why"]:
        parts.append(visible(one["why"]))
    return ", ".join(parts)
