"""What `meshd prompts` prints for people."""

from __future__ import annotations

import difflib
import time
from typing import TYPE_CHECKING, Any

from meshd.prompts.shelf import words_of

if TYPE_CHECKING:
    from meshd.cli.prompts_checking import Result

DIGEST_DIGITS = 12


def table(found: list[dict[str, Any]]) -> str:
    """Return a line for each name."""
    if not found:
        return "There are no prompts. `meshd prompts add NAME VERSION FILE` adds one."
    rows = [("NAME", "NEWEST", "VERSIONS", "LABELS", "KEPT IN")]
    for one in found:
        labels = ", ".join(f"{label}: {stands(weights)}" for label, weights in sorted(one["labels"].items()))
        rows.append((one["name"], one["newest"] or "-", str(one["versions"]), labels or "-", one["source"]))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def stands(weights: dict[str, int]) -> str:
    """Return where a label stands."""
    return words_of(weights)


def one(found: dict[str, Any]) -> str:
    """Return all but the texts of a name."""
    lines = [f"{found['name']}, kept in the {found['source']}", "", "labels"]
    lines += [f"  {label}: {stands(weights)}" for label, weights in sorted(found["labels"].items())] or ["  none"]
    lines += ["", "versions, the newest first"]
    lines += [f"  {each['version']}  {each['digest'][:DIGEST_DIGITS]}" for each in found["versions"]] or ["  none"]
    if found["history"]:
        lines += ["", "moves, the newest first"]
    for move in found["history"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(move["at_s"]))
        what = "rolled back to" if move["is_rollback"] else "to"
        lines.append(f"  {at}Z  {move['label']} {what} {stands(move['to'])}")
    return "\n".join(lines)


def text(found: dict[str, Any]) -> str:
    """Return a version with its text."""
    said = [
        ("digest", found["digest"]),
        ("author", found["author"]),
        ("notes", found["notes"]),
        ("models", ", ".join(found["models"])),
        ("variables", ", ".join(found["variables"])),
    ]
    lines = [f"{found['name']}@{found['version']}", *(f"{name}: {value}" for name, value in said if value)]
    return "\n".join([*lines, "", found["text"]])


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the lines of a unified diff of two texts; none where they are the same."""
    old, new = [f"{one['name']}@{one['version']}" for one in (before, after)]
    lines = (before["text"].split("\n"), after["text"].split("\n"))
    return list(difflib.unified_diff(*lines, fromfile=old, tofile=new, lineterm=""))


def verdicts(results: list[Result]) -> str:
    """Return a line for each case, and one for each thing in it that is not so."""
    lines = []
    for result in results:
        lines.append(f"{'FAIL' if result.failures else 'ok':<4} {result.case}  ({result.version})")
        lines += [f"     {failure}" for failure in result.failures]
    failed = sum(1 for result in results if result.failures)
    return "\n".join([*lines, "", f"{len(results) - failed} of {len(results)} cases hold"])
