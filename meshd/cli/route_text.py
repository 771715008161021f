"""A decision as people read it in a terminal. What a server wrote is shown, and never obeyed: see `visible`."""

from __future__ import annotations

from typing import Any, Final

from meshd.approvals.question import visible

CANDIDATES_MAX: Final = 12
_CHOICES: Final = {
    "named": "goes to {targets}: it is named",
    "chosen": "goes to {targets}",
    "fanned_out": "goes to {targets}, each with its part of the budget",
    "fallback": "goes to the fallback, {targets}",
    "unclear": "is refused (404 unknown_target)",
    "forbidden": "is refused (403 not_allowed)",
    "away": "is refused (404 unknown_target)",
}


def as_text(found: dict[str, Any]) -> str:
    """Return a line for each candidate, the best first, then what is chosen and by what measure."""
    candidates = found["candidates"]
    rows = [_row(one) for one in candidates[:CANDIDATES_MAX]]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(5)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]
    if len(candidates) > CANDIDATES_MAX:
        lines.append(f"... and {len(candidates) - CANDIDATES_MAX} more")
    if not candidates:
        lines.append("There is no agent to choose: the policy has no upstream of kind agent.")
    if found["learned_words"]:
        words = ", ".join(f"{visible(word)} {weight:+.2f}" for word, weight in found["learned_words"])
        near = "; ".join(f"{visible(text)} ({close:.2f})" for text, close in found["learned_examples"][:3])
        lines += ["", f"learned from examples: {words}", f"nearest of them: {near or 'none'}"]
    choice = _CHOICES[found["choice"]].format(targets=", ".join(found["targets"]))
    lines += [
        "",
        _measure(found),
        f"A call of {visible(found['agent'])} for {visible(found['wanted'])!r} {choice}.",
        f"Why: {visible(found['why'])}.",
    ]
    return "\n".join(lines)


def _measure(found: dict[str, Any]) -> str:
    words = f"threshold {found['threshold']:g}, margin {found['margin']:g}, fan_out {found['fan_out']}"
    return f"{words}, fallback {found['fallback'] or 'none'}"


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    said = [f"words {', '.join(visible(word) for word in one['shared'])}"] if one["shared"] else []
    if one["is_named"]:
        said.append("named")
    elif one["nearest"]:
        said.append(f"near {visible(one['nearest'])!r}")
    if one["barred"]:
        said.insert(0, f"PASSED OVER, {one['barred']}: {visible(one['why'])}")
    parts = [f"{key} {one[key]:.2f}" if one[key] else "" for key in ("words", "near", "examples")]
    return f"{one['score']:.2f}", visible(one["name"]), *parts, "; ".join(said)
