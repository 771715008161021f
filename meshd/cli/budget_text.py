"""What `meshd budget` prints, from the answers of the admin API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from meshd.filters.units import dollars

Account = dict[str, Any]

BAR_MIN, BAR_MAX = 8, 24
_HEAD = ("ACCOUNT", "USED", "", "LIMIT", "IN FLIGHT", "LEFT", "")


def amount_text(amount: int, unit: str) -> str:
    """Return an amount with its unit: `50,000 tokens`, or `$5.00`."""
    return dollars(amount) if unit == "microdollars" else f"{amount:,} tokens"


def _bare(amount: int, unit: str) -> str:
    return dollars(amount) if unit == "microdollars" else f"{amount:,}"


def share_of(account: Account) -> float:
    """Return the part of its limit that an account has used; 0 where there is no limit yet."""
    total = account["total"]
    return float(account["used"] / total) if total > 0 else 0.0


def table(accounts: list[Account], *, rows: int, columns: int, is_whole: bool) -> str:
    """Return the accounts as lines, the one nearest to its limit first, those in use before the others.

    `columns` is the width of the terminal; 0 where the lines go elsewhere, which then have no bars.
    """
    if not accounts:
        return "No account has been used yet: a budget's account is made by its first call."
    found = sorted(accounts, key=lambda one: (not one["is_open_here"], -share_of(one), -one["used"], one["id"]))
    lines = [_HEAD, *(_row(one) for one in found[:rows])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    used = sum(widths[:-1]) + 2 * (len(widths) - 1) + max(widths[-1], 1)
    bar = min(BAR_MAX, columns - used - 2)
    shown = []
    for number, line in enumerate(lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)),
        ]
        if bar >= BAR_MIN:
            cells.append(_bar(share_of(found[number - 1]), bar) if number else " " * bar)
        shown.append("  ".join([*cells, line[-1]]).rstrip())
    if len(found) > rows:
        shown.append(f"and {len(found) - rows:,} more: --all shows them")
    if not is_whole:
        shown.append(f"these are the first {len(found):,} by name; there are more")
    return "\n".join(shown)


def _row(account: Account) -> tuple[str, ...]:
    unit = account["unit"]
    if account["damage"]:
        return (_printable(account["id"]), "", "", "", "", "", "damaged")
    return (
        _printable(account["id"]),
        _bare(account["used"], unit),
        f"{share_of(account) * 100:.0f}%",
        _bare(account["total"], unit),
        _bare(account["reserved"], unit),
        _bare(account["left"], unit),
        ", ".join(_notes(account)),
    )


def _notes(account: Account) -> list[str]:
    notes = []
    if account["frozen"]:
        notes.append("frozen")
    if account["is_closed"]:
        notes.append("closed")
    elsewhere = sum(lease["outstanding"] for lease in account["leases"] if not lease["is_own"])
    if elsewhere:
        notes.append(f"{_bare(elsewhere, account['unit'])} on lease elsewhere")
    if account["delegated"]:
        notes.append(f"{_bare(account['delegated'], account['unit'])} delegated")
    return notes


def _bar(share: float, width: int) -> str:
    filled = min(width, max(0, round(share * width)))
    return f"{'#' * filled}{'-' * (width - filled)}"


def account_text(account: Account) -> str:
    """Return all that is known of one account."""
    unit = account["unit"]
    lines = [_printable(account["id"])]
    if account["damage"]:
        return "\n".join([*lines, f"  damaged     {account['damage']}"])
    extra = f", {amount_text(account['extra'], unit)} of it topped up" if account["extra"] else ""
    lines += [
        f"  limit       {amount_text(account['total'], unit)}{extra}",
        f"  used        {amount_text(account['used'], unit)} ({share_of(account) * 100:.0f}%)",
        f"  in flight   {amount_text(account['reserved'], unit)} here",
    ]
    if account["delegated"]:
        lines.append(f"  delegated   {amount_text(account['delegated'], unit)}")
        lines += [f"    {_printable(child)}  {_bare(tokens, unit)}" for child, tokens in account["children"].items()]
    lines.append(f"  left        {amount_text(account['left'], unit)}")
    if account["parent"]:
        lines.append(f"  given by    {_printable(account['parent'])}")
    lines += _leases(account)
    lines += [
        f"  waiting     {_printable(holder)} for {amount_text(need, unit)}" for holder, need in account["wants"].items()
    ]
    if account["is_closed"]:
        lines.append(f"  closed      `meshd budget reopen {account['id']}` lets it spend again")
    if account["frozen"]:
        lines.append(f"  frozen      {account['frozen']}")
        lines.append(f"              look at why; then `meshd budget reopen {account['id']}` lets it spend again")
    return "\n".join(lines)


def _leases(account: Account) -> list[str]:
    leases = [one for one in account["leases"] if one["is_open"] or one["spent"] or one["outstanding"]]
    if not leases:
        return []
    rows = [("  leases", "holder", "spent", "on lease")]
    for one in leases:
        holder = f"{_printable(one['holder'])}{' (this one)' if one['is_own'] else ''}"
        rows.append(("", holder, _bare(one["spent"], account["unit"]), _bare(one["outstanding"], account["unit"])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:<12}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip() for row in rows
    ]


def ordered_text(order: str, done: dict[str, Any], body: dict[str, object]) -> str:
    """Return one line on what an order led to."""
    account = done["account"]
    id, unit = _printable(account["id"]), account["unit"]
    left = f"{amount_text(account['used'], unit)} used, {amount_text(account['left'], unit)} left"
    if order == "close":
        return f"{id} is closed: {left}, which nobody can spend"
    if order == "reopen":
        return f"{id} is open: {left}"
    if order == "write-off":
        return f"{amount_text(done['written_off'], unit)} on lease to {body['holder']} count as spent: {left}"
    if done["is_new"]:
        return f"{id} is new: {amount_text(account['extra'], unit)} on top of what the policy gives its first call"
    return f"{id} may spend {amount_text(account['total'], unit)} in all: {left}"


def call_text(call: dict[str, Any]) -> str:
    """Return what was decided of a call, step by step."""
    began = datetime.fromtimestamp(call["began_at_s"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    what = " ".join(filter(None, [call["operation"], _printable(call["model"])])) or call["kind"]
    workflow = f", workflow {_printable(call['workflow'])}" if call["workflow"] else ""
    who = _printable(call["agent"] or "an unknown agent") + workflow
    where = _printable(call["target"] or "no known upstream")
    lines = [f"{call['id']}  {began}", f"  {call['direction']} call of {who}: {what} at {where}"]
    lines += [f"  shadow     {_refusal(one)}" for one in call["refusals"] if one["is_shadow"]]
    for attempt in call["attempts"]:
        lines += _attempt(attempt)
    for refusal in call["refusals"]:
        if not refusal["is_shadow"]:
            lines.append(f"  refused    {_refusal(refusal)}")
            if refusal["account"]:
                unit = refusal["unit"]
                lines.append(
                    f"             {_printable(refusal['account'])}: limit {_bare(refusal['limit'], unit)}, used "
                    f"{_bare(refusal['used'], unit)}, in flight {_bare(refusal['reserved'], unit)}; asked for "
                    f"{_bare(refusal['bound'], unit)}, {_bare(refusal['least'], unit)} at the least"
                )
    if call["is_open"]:
        lines.append("  it is still in flight: what it costs is not known yet")
    return "\n".join(lines)


def _refusal(refusal: dict[str, Any]) -> str:
    rule = f" (rule {_printable(refusal['rule'])})" if refusal["rule"] else ""
    return f"{refusal['status']} {refusal['reason']}{rule}: {_printable(refusal['message'])}"


def _attempt(attempt: dict[str, Any]) -> list[str]:
    sent = f" as {_printable(attempt['model_sent'])}" if attempt["model_sent"] else ""
    end = attempt["fault"] if attempt["fault"] != "none" else attempt["verdict"]
    status = f"{attempt['status']} " if attempt["status"] else ""
    lines = [f"  attempt {attempt['number']}  {status}{end} after {attempt['took_s']:.3f} s{sent}"]
    if not attempt["accounts"]:
        return [*lines, "             no budget counts it"]
    by = f" by {attempt['bound_by']}" if attempt["bound_by"] else ""
    cap = "no output cap" if attempt["output_cap"] is None else f"output cap {attempt['output_cap']:,}"
    if attempt["output_cap_asked"] not in (None, attempt["output_cap"]):
        cap += f" (asked for {attempt['output_cap_asked']:,})"
    if attempt["choices"] > 1:
        cap += f" x {attempt['choices']}"
    lines.append(f"    bound    input at most {attempt['input_bound']:,} tokens{by}, {cap}")
    lines += [f"    account  {_taken(taken)}" for taken in attempt["accounts"]]
    return [*lines, f"    usage    {_usage(attempt)}"]


def _taken(taken: dict[str, Any]) -> str:
    limit, bound, charged = (_bare(taken[name], taken["unit"]) for name in ("limit", "bound", "charged"))
    return f"{_printable(taken['account'])} (limit {limit}): reserved {bound}, charged {charged}"


def _usage(attempt: dict[str, Any]) -> str:
    if attempt["input_tokens"] is None:
        usage = "none was reported"
    else:
        cached = f" ({attempt['cached_tokens']:,} cached)" if attempt["cached_tokens"] else ""
        usage = f"{attempt['input_tokens']:,} in{cached}, {attempt['output_tokens']:,} out"
    if attempt["is_estimated"]:
        usage += "; the charge is meshd's own count or the bound"
    if not attempt["is_forwarded"]:
        usage += "; nothing was sent"
    if attempt["is_bound_passed"]:
        usage += "; it passed its bound"
    return usage


def _printable(text: str) -> str:
    """Return a name fit for a terminal: whoever calls meshd can name a workflow."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
