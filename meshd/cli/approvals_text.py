"""Approvals as people read them in a terminal. What an agent wrote is shown, and never obeyed: see `visible`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from meshd.approvals.question import visible
from meshd.approvals.record import OWN
from meshd.filters.units import dollars

_SECONDS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def table(approvals: list[dict[str, Any]], state: str, now_s: float) -> str:
    """Return one line for each, the newest last, so that it stands beside the prompt."""
    if not approvals:
        return "Nothing waits for people." if state == "pending" else f"There are no approvals ({state})."
    lines = [line(one, now_s) for one in reversed(approvals)]
    if state == "pending":
        lines += ["", f"Look at one: meshd approvals show {approvals[0]['id']}"]
    return "\n".join(lines)


def line(approval: dict[str, Any], now_s: float) -> str:
    """Return one approval in a line."""
    state = approval["state"]
    when = f"expires in {_span(approval['expires_s'] - now_s)}" if state in ("pending", "approved") else ""
    by = ", ".join(one["approver"] for one in approval["decisions"])
    parts = [approval["id"], f"{state:<9}", visible(approval["summary"]), when, f"by {by}" if by else ""]
    return "  ".join(part for part in parts if part)


def whole(approval: dict[str, Any], now_s: float) -> str:
    """Return one approval in full."""
    rows = [
        ("approval", f"{approval['id']}, {approval['state']}"),
        ("agent", visible(approval["agent"])),
        ("workflow", _workflow(approval)),
        ("target", _target(approval)),
        ("operation", visible(approval["operation"])),
        ("it says", visible(approval["said"])),
        ("tool", visible(approval["tool"])),
        ("definition", approval["definition"]),
        ("model", visible(approval["model"])),
        ("may serve", ", ".join(map(visible, approval["also"]))),
        ("asks", f"{visible(approval['rule'] or 'the policy')}: {visible(approval['why'])}"),
        ("may cost", _cost(approval, "cost") or ("" if approval["kind"] == OWN else "nobody knows")),
        ("left", _cost(approval, "left")),
        ("asked", f"{_moment(approval['asked_s'])}, {_span(now_s - approval['asked_s'])} ago"),
        ("expires", _expires(approval, now_s)),
        ("decide", f"{approval['quorum']} of {', '.join(approval['approvers'])}"),
        *(("", _decision(one)) for one in approval["decisions"]),
        ("cancelled", visible(approval["cancelled_for"])),
        ("used by", _used(approval)),
        ("digest", approval["digest"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows if text]
    return "\n".join([*lines, *_arguments(approval)])


def _target(approval: dict[str, Any]) -> str:
    if approval["kind"] == OWN:
        return "none: the agent does it by itself, and meshd neither sends it nor sees it"
    return f"{approval['kind']} {visible(approval['target'])}"


def _workflow(approval: dict[str, Any]) -> str:
    name = visible(approval["workflow"] or "none")
    if approval["is_inferred"]:
        return f"{name} (meshd concludes that from {approval['evidence']}: it is likely, and nobody's word)"
    return name


def _cost(approval: dict[str, Any], of: str) -> str:
    tokens, money = approval[f"{of}_tokens"], approval[f"{of}_microdollars"]
    parts = [f"{tokens:,} tokens"] if tokens is not None else []
    parts += [dollars(money)] if money is not None else []
    return " and ".join(parts)


def _expires(approval: dict[str, Any], now_s: float) -> str:
    if approval["state"] not in ("pending", "approved"):
        return ""
    what = "if nobody decides" if approval["state"] == "pending" else "if it is not used"
    return f"{_moment(approval['expires_s'])}, in {_span(approval['expires_s'] - now_s)}, {what}"


def _decision(one: dict[str, Any]) -> str:
    did = "allows it" if one["is_allowed"] else "denies it"
    return f"{one['approver']} {did}, {_moment(one['at_s'])}{': ' + visible(one['reason']) if one['reason'] else ''}"


def _used(approval: dict[str, Any]) -> str:
    if not approval["used_by"]:
        return ""
    if approval["kind"] == OWN:
        return f"the agent, as {visible(approval['used_by'])}"
    ended = approval["outcome"] or "how it ended is not known: it runs, or its sidecar ended with it"
    return f"the call {approval['used_by']} ({ended})"


def _arguments(approval: dict[str, Any]) -> list[str]:
    lines = [""]
    if approval["fields"]:
        lines += ["Header fields:", *(f"  {visible(name)}: {visible(one)}" for name, one in approval["fields"].items())]
    size = approval["arguments_bytes"]
    lines.append(f"Arguments ({size:,} bytes):" if size else "No arguments.")
    if approval.get("is_emptied"):
        lines.append("  They are not kept any more, since nobody decided in time; the digest says what they were.")
    else:
        lines += [f"  {one}" for one in visible(approval["arguments"]).split("\n")] if size else []
    if approval["is_cut"]:
        lines.append("NOT ALL OF IT IS SHOWN: there is more than can be kept. What is not shown would be sent too.")
    if approval["hidden"]:
        lines.append(f"{approval['hidden']} places are not shown, since they look like secrets. They would be sent.")
    return lines


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(seconds: float) -> str:
    """Return a length of time in its largest two units."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in _SECONDS:
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
