"""The tables: ratios with the goal beside each, absolute figures, machine and method. Text in, text out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.results import Row

BEGIN, END = "<!-- table: written by python -m bench --write -->", "<!-- end of table -->"
NOISY = 0.1
"""Share of the proxy's core that others may use, in the median round of a peer, before the reader is warned."""
_OTHERS = ("nginx", "haproxy", "aiohttp", "litellm")
_LABELS = {
    "cpu_us": "CPU us",
    "per_s": "per s",
    "busy": "core used",
    "foreign": "core used by others",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "added_p50_us": "added p50 us",
    "added_p99_us": "added p99 us",
}


def number(value: float | None, unit: str = "") -> str:
    """Write a figure as short as it stays true."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{value:.0%}"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def grid(head: list[str], lines: Iterable[list[str]]) -> str:
    """Return a Markdown table whose columns line up in a terminal too."""
    cells = [head, *lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


def _goal(row: Row) -> str:
    if row.goal is None:
        return "-"
    return f"{row.goal.bound.value} {row.goal.value:g} {row.unit}"


def _ours(row: Row) -> str:
    values = row.absolute.get("meshd", {})
    for name in ("cpu_us", "added_p50_us"):
        if name in values:
            return f"{number(values[name])} us"
    return "-"


def ratios(rows: list[Row], absent: dict[str, str]) -> str:
    """The table that the goals are judged by. A peer that is absent has `absent` in its column."""
    others = [name for name in _OTHERS if name in absent or any(name in row.ratios for row in rows)]
    head = ["row", "goal", "measured", "", "meshd", *(f"over {name}" for name in others)]
    lines = []
    for row in rows:
        figure = "absent" if row.figure is None and "envoy" in absent and "Envoy" in row.unit else number(row.figure)
        measured = f"{figure} {row.unit}" if row.figure is not None else figure
        beside = ["absent" if name in absent else number(row.ratios.get(name)) for name in others]
        lines.append([row.title, _goal(row), measured, row.verdict, _ours(row), *beside])
    return grid(head, lines)


def absolute(rows: list[Row]) -> str:
    """All figures of all peers, one small table a row."""
    parts = []
    for row in rows:
        if not row.absolute:
            continue
        keys = list(dict.fromkeys(key for values in row.absolute.values() for key in values))
        lines = [
            [name, *(number(values.get(key), "share" if key in ("busy", "foreign") else "") for key in keys)]
            for name, values in row.absolute.items()
        ]
        notes = "".join(f"\n- {note}" for note in row.notes)
        head = ["", *(_LABELS.get(key, key.replace("at_", "us at ")) for key in keys)]
        parts.append(f"**{row.name}**: {row.title}\n\n{grid(head, lines)}\n{notes}".rstrip())
    return "\n\n".join(parts)


def failures(rows: list[Row]) -> str:
    """What the reader must know about rows that have no figures."""
    return "\n".join(f"- {row.name}: {note}" for row in rows if not row.absolute for note in row.notes)


def document(
    rows: list[Row], machine: dict[str, str], versions: dict[str, str], absent: dict[str, str], settings: str
) -> str:
    """The whole result, as it is printed and as it is written."""
    met = sum(row.verdict == "met" for row in rows)
    judged = sum(row.goal is not None for row in rows)
    about = [f"- {name}: {value}" for name, value in machine.items()]
    about.append("- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    about += [f"- absent, and so not beaten: {name} ({why.splitlines()[0]})" for name, why in absent.items()]
    about.append(f"- run: {settings}")
    foreign = max((v.get("foreign", 0.0) for row in rows for v in row.absolute.values()), default=0.0)
    if foreign > NOISY:
        about.append(f"- **NOISY**: others used up to {foreign:.0%} of the proxy's core; repeat it on a quiet machine")
    parts = [
        "\n".join(about),
        ratios(rows, absent),
        f"{met} of {judged} goals met. A ratio is meshd's cost over the peer's: below 1 is less than theirs.",
        failures(rows),
        "### Absolute figures",
        absolute(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def replaced(text: str, table: str) -> str:
    """Return a document with what stands between the markers replaced. Raises ValueError where they are not there."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError("the document has no place for the table: its markers are missing")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{table}\n\n{END}", text, count=1)
