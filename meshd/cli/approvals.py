"""`meshd approvals`: what people are asked to allow, shown in full, and decided."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.cli.admin_client import AdminClient

KEY_ENV = "MESHD_APPROVER_KEY"
FOLLOW_S = 1.0
"""How often `--follow` asks."""
LIMIT = 200
STATES = ("pending", "approved", "denied", "expired", "used", "cancelled", "all")

_HELP = f"""Show the calls that wait for people, and decide on them.

Without a command: what is pending. Deciding takes a key of your own, which the agent cannot read: from --key-file, from
{KEY_ENV}, or typed in without being shown.

\b
Examples:
  meshd approvals
  meshd approvals --follow
  meshd approvals show k7x2-m9qr-tzab
  meshd approvals approve k7x2-m9qr-tzab --reason "checked with billing"
  meshd approvals deny k7x2-m9qr-tzab --reason "wrong customer"
  meshd approvals key ana

The daemon is found as `meshd budget` finds it. Sidecars that share a store share its approvals: ask any of them.
"""


def _shared(function: Any) -> Any:
    """Add the options that every command here takes."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="Print JSON."),
        click.option(
            "--home", type=click.Path(path_type=Path), metavar="DIR", help="State directory of the daemon to ask."
        ),
    ):
        function = option(function)
    return function


def _keyed(function: Any) -> Any:
    """Add the options that say who decides."""
    for option in (
        click.option("--as", "approver", default="", metavar="NAME", help="Who decides. [default: whose key it is]"),
        click.option(
            "--key-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="File with your key."
        ),
    ):
        function = option(function)
    return function


@click.group("approvals", help=_HELP, invoke_without_command=True)
@_shared
@click.option("--state", type=click.Choice(STATES), default="pending", show_default=True, help="Which to show.")
@click.option("--follow", is_flag=True, help="Go on, and show each as it comes and changes, until interrupted.")
@click.pass_context
def command(ctx: click.Context, is_json: bool, home: Path | None, state: str, follow: bool) -> None:
    """Show approvals, where no command says what else to do."""
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _told(lambda: _follow(home, state, is_json=is_json) if follow else _list(home, state, is_json=is_json))


@command.command("show", epilog="Example: meshd approvals show k7x2-m9qr-tzab")
@click.argument("id", metavar="ID")
@_shared
@click.pass_context
def show(ctx: click.Context, id: str, is_json: bool, home: Path | None) -> None:
    """Show one approval in full. That is what would be sent, what it may cost, who decides and who has."""
    _told(lambda: _print(_client(home or ctx.obj).get(_path(id)), is_json=is_json))


@command.command("approve", epilog="Example: meshd approvals approve k7x2-m9qr-tzab --key-file ~/.ana.key")
@click.argument("id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever reads the trace.")
@_keyed
@_shared
@click.pass_context
def approve(
    ctx: click.Context, id: str, reason: str, approver: str, key_file: Path | None, is_json: bool, home: Path | None
) -> None:
    """Allow a call, once: what `show` shows, and nothing else. Look at it first."""
    _decide(home or ctx.obj, id, "approve", {"reason": reason, "approver": approver}, key_file, is_json=is_json)


@command.command("deny", epilog='Example: meshd approvals deny k7x2-m9qr-tzab --reason "wrong customer"')
@click.argument("id", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why: the agent is told.")
@_keyed
@_shared
@click.pass_context
def deny(
    ctx: click.Context, id: str, reason: str, approver: str, key_file: Path | None, is_json: bool, home: Path | None
) -> None:
    """Deny a call. One who denies decides, until the call has gone out also after others have allowed it."""
    _decide(home or ctx.obj, id, "deny", {"reason": reason, "approver": approver}, key_file, is_json=is_json)


@command.command("cancel", epilog="Example: meshd approvals cancel k7x2-m9qr-tzab")
@click.argument("id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Why.")
@_shared
@click.pass_context
def cancel(ctx: click.Context, id: str, reason: str, is_json: bool, home: Path | None) -> None:
    """Take a question back: the call is not sent. It takes no key, since it allows nothing."""
    _told(lambda: _print(_client(home or ctx.obj).post(f"{_path(id)}/cancel", {"reason": reason}), is_json=is_json))


@command.command("key", epilog="Example: meshd approvals key ana")
@click.argument("name", metavar="NAME")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def key(name: str, is_json: bool) -> None:
    """Make a key for the approver NAME. It is shown once, and kept nowhere.

    The line on standard output goes into the policy; the key goes to NAME, and to nowhere that an agent can read.
    """
    from meshd.approvals.keys import hash_of, new_key

    if not name.isprintable() or not 0 < len(name) <= 63 or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_.-"):
        raise click.UsageError("NAME is of a-z, 0-9, '-', '_' and '.', at most 63")
    made = new_key()
    hashed = f"sha256:{hash_of(made)}"
    if is_json:
        click.echo(json.dumps({"approver": name, "key": made, "policy": {name: {"key": hashed}}}, indent=2))
        return
    click.echo(f"The key of {name}, shown this once. Keep it where no agent can read it:\n\n  {made}\n", err=True)
    click.echo("Put this into the policy:\n", err=True)
    click.echo(f'approvers:\n  {name}: {{key: "{hashed}"}}')


def _decide(
    home: Path | None, id: str, what: str, body: dict[str, object], key_file: Path | None, *, is_json: bool
) -> None:
    def run() -> None:
        client = _client(home)
        path = _path(id)
        secret = _key(key_file)
        _print(client.post(f"{path}/{what}", body, x_meshd_approver_key=secret), is_json=is_json)

    _told(run)


def _key(key_file: Path | None) -> str:
    """Return the approver's key. Raises ClickException where there is none to be had."""
    if key_file is not None:
        try:
            found = key_file.read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise click.ClickException(f"{key_file} cannot be read: {why}") from None
        if not found:
            raise click.ClickException(f"{key_file} is empty: the key of `meshd approvals key NAME` belongs there")
    else:
        found = os.environ.get(KEY_ENV, "").strip()
    if not found and key_file is None and sys.stdin.isatty():
        found = str(click.prompt("Your approver's key", hide_input=True, err=True)).strip()
    if not found:
        raise click.ClickException(f"deciding takes your approver's key: --key-file FILE, {KEY_ENV}, or a terminal")
    if not found.isascii() or not found.isprintable() or " " in found:
        raise click.ClickException("that is no approver's key: `meshd approvals key NAME` makes one")
    return found


def _path(id: str) -> str:
    from meshd.approvals.record import read_id

    found = read_id(id)
    if not found:
        raise click.UsageError("ID is twelve letters and digits, such as k7x2-m9qr-tzab")
    return f"/v1/approvals/{found}"


def _page(client: AdminClient, state: str) -> list[dict[str, Any]]:
    query: dict[str, str | int] = {"limit": LIMIT}
    if state != "all":
        query["state"] = state
    return list(client.get("/v1/approvals", **query)["approvals"])


def _list(home: Path | None, state: str, *, is_json: bool) -> None:
    from meshd.cli.approvals_text import table

    found = _page(_client(home), state)
    click.echo(json.dumps({"approvals": found}, indent=2) if is_json else table(found, state, time.time()))


def _follow(home: Path | None, state: str, *, is_json: bool) -> None:
    """Print each approval as it comes, and again as it changes: with --json a line each."""
    from meshd.cli.approvals_text import line

    client = _client(home)
    seen: dict[str, tuple[str, int]] = {}
    while True:
        newest = _page(client, "all")
        # What was asked for may be older than the newest: what waits must not be buried by what is over.
        older = [] if state == "all" else _page(client, state)
        known = {one["id"] for one in newest}
        for one in reversed([*newest, *(one for one in older if one["id"] not in known)]):
            stands = (one["state"], len(one["decisions"]))
            is_new = seen.get(one["id"]) != stands
            # Of what was there before, only what was asked for; of what comes later, all that happens to it.
            if is_new and (one["id"] in seen or state in ("all", one["state"])):
                click.echo(json.dumps(one) if is_json else line(one, time.time()))
                sys.stdout.flush()
                seen[one["id"]] = stands
        time.sleep(FOLLOW_S)


def _print(found: dict[str, Any], *, is_json: bool) -> None:
    from meshd.cli.approvals_text import whole

    click.echo(json.dumps(found, indent=2) if is_json else whole(found, time.time()))


def _client(home: Path | None) -> AdminClient:
    from meshd.cli.budget import _client as client_of

    return client_of(home)


def _told(work: Callable[[], None]) -> None:
    """Do it; whatever keeps the daemon from doing it is said in one line."""
    from meshd.cli.admin_client import AdminProblem
    from meshd.cli.api_client import ApiProblem
    from meshd.config import ConfigError

    try:
        work()
    except (AdminProblem, ApiProblem, ConfigError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
