"""`meshd budget`: the accounts of a running daemon, shown, topped up, closed, reopened, written off."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshd.cli.amounts import Amount

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.cli.admin_client import AdminClient
    from meshd.cli.exec_daemon import Place

PAGE = 200
"""Accounts asked for at once: the daemon makes a page between two calls of its agent, in some milliseconds."""
ACCOUNTS_MAX = 20_000
ROWS_DEFAULT = 20
_MONEY = "/@usd"

_HELP = """Show the budgets of a running daemon, and give orders to them.

Without a command: a table of the accounts, the one nearest to its limit first. An account is named as refusals name
it, `workflow/report-42` or `agent/researcher`; a name without a slash is a workflow's.

\b
Examples:
  meshd budget
  meshd budget show report-42
  meshd budget top-up report-42 50k
  meshd budget top-up report-42 '$5'
  meshd budget close agent/researcher
  meshd budget call 3f9c01d2a4b6-17

The daemon is found as `meshd exec` finds it: at MESHD_LISTEN, or in the state directory (MESHD_HOME, else
~/.local/state/meshd). Sidecars that share a store share its accounts: ask any of them.
"""


def _shared(function: Any) -> Any:
    """Add the options that every command here takes."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="Print one JSON document."),
        click.option(
            "--home", type=click.Path(path_type=Path), metavar="DIR", help="State directory of the daemon to ask."
        ),
    ):
        function = option(function)
    return function


@click.group("budget", help=_HELP, invoke_without_command=True)
@_shared
@click.option("--rows", type=click.IntRange(min=1), default=ROWS_DEFAULT, show_default=True, help="Accounts to show.")
@click.option("--all", "is_all", is_flag=True, help="Show all accounts.")
@click.pass_context
def command(ctx: click.Context, is_json: bool, home: Path | None, rows: int, is_all: bool) -> None:
    """Show the accounts, where no command says what else to do."""
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _told(lambda: _list(home, is_json=is_json, rows=ACCOUNTS_MAX if is_all else rows))


@command.command("show", epilog="Example: meshd budget show report-42")
@click.argument("account", metavar="ID")
@_shared
@click.pass_context
def show(ctx: click.Context, account: str, is_json: bool, home: Path | None) -> None:
    """Show one account: its limit, what was used, who holds it."""

    def run() -> None:
        from meshd.cli.budget_text import account_text

        found = _client(home or ctx.obj).get("/v1/account", id=_named(account))
        _print(found, is_json=is_json, text=account_text)

    _told(run)


@command.command("top-up", epilog="Example: meshd budget top-up report-42 50k, or meshd budget top-up report-42 '$5'")
@click.argument("account", metavar="ID")
@click.argument("amount", type=Amount(), metavar="AMOUNT")
@_shared
@click.pass_context
def top_up(ctx: click.Context, account: str, amount: dict[str, object], is_json: bool, home: Path | None) -> None:
    """Let an account spend more. AMOUNT is tokens (50000, 50k, 2M) or dollars ('$5', 5usd).

    It comes on top of whatever the policy says, now and after a reload, and cannot be taken back. An account that
    nobody has used yet can be topped up too.
    """
    id = _named(account)
    if "dollars" in amount and not id.endswith(_MONEY):
        id += _MONEY
    _order(home or ctx.obj, "top-up", {"id": id, **amount}, is_json=is_json)


@command.command("close", epilog="Example: meshd budget close report-42")
@click.argument("account", metavar="ID")
@_shared
@click.pass_context
def close(ctx: click.Context, account: str, is_json: bool, home: Path | None) -> None:
    """Let an account spend no more. Calls in flight end as they would, new ones are refused."""
    _order(home or ctx.obj, "close", {"id": _named(account)}, is_json=is_json)


@command.command("reopen", epilog="Example: meshd budget reopen report-42")
@click.argument("account", metavar="ID")
@_shared
@click.pass_context
def reopen(ctx: click.Context, account: str, is_json: bool, home: Path | None) -> None:
    """Undo a close. Where an account was frozen, say that you have looked at why: its books hold from now on."""
    _order(home or ctx.obj, "reopen", {"id": _named(account)}, is_json=is_json)


@command.command("write-off", epilog="Example: meshd budget write-off report-42 HOLDER")
@click.argument("account", metavar="ID")
@click.argument("holder", metavar="HOLDER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_shared
@click.pass_context
def write_off(ctx: click.Context, account: str, holder: str, yes: bool, is_json: bool, home: Path | None) -> None:
    """Count as spent what a lost sidecar has on lease.

    A sidecar takes tokens on lease and spends them without asking. One that is gone for good keeps them from everybody
    else; nobody but an operator can know that it is gone, and nobody can know what it has spent. So all of it counts
    as spent: that costs the tokens, and giving them back could grant them twice. A sidecar that comes back after all
    can still spend what it had, and overspends nothing. HOLDER is a name from `meshd budget show ID`.
    """

    def run() -> None:
        client, id = _client(home or ctx.obj), _named(account)
        if not yes:
            from meshd.cli.budget_text import amount_text

            found = client.get("/v1/account", id=id)
            lease = next((one for one in found["leases"] if one["holder"] == holder and one["is_open"]), None)
            if lease is None:
                raise click.ClickException(f"{holder} has no open lease on {id}; `meshd budget show {id}` lists them")
            amount = amount_text(lease["outstanding"], found["unit"])
            click.echo(f"{holder} may still spend {amount} of {id}. They will count as spent, for good.", err=True)
            click.confirm("Is it gone for good?", abort=True, err=True)
        _ordered(client, "write-off", {"id": id, "holder": holder}, is_json=is_json)

    _told(run)


@command.command("call", epilog="Example: meshd budget call 3f9c01d2a4b6-17")
@click.argument("call", metavar="CALL_ID")
@_shared
@click.pass_context
def call(ctx: click.Context, call: str, is_json: bool, home: Path | None) -> None:
    """Say what was reserved, charged and refused for one call.

    CALL_ID stands in `x-meshd-call` of each reply, and in `x-request-id` of a refusal. The sidecar that served the call
    remembers its last ten thousand decisions, until it ends.
    """

    def run() -> None:
        from urllib.parse import quote

        from meshd.cli.budget_text import call_text

        found = _client(home or ctx.obj).get(f"/v1/calls/{quote(call, safe='')}")
        _print(found, is_json=is_json, text=call_text)

    _told(run)


def _list(home: Path | None, *, is_json: bool, rows: int) -> None:
    from meshd.cli.budget_text import table

    client, after = _client(home), ""
    accounts: list[dict[str, Any]] = []
    while len(accounts) < ACCOUNTS_MAX:
        page = client.get("/v1/accounts", limit=PAGE, after=after)
        accounts += page["accounts"]
        before, after = after, page["next_after"]
        if after <= before:  # the end; or a name that is not shown as it is, since it looks like a key
            break
    if is_json:
        click.echo(json.dumps({"accounts": accounts, "is_whole": not after}, indent=2))
        return
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    click.echo(table(accounts, rows=rows, columns=columns, is_whole=not after))


def _order(home: Path | None, order: str, body: dict[str, object], *, is_json: bool) -> None:
    _told(lambda: _ordered(_client(home), order, body, is_json=is_json))


def _ordered(client: AdminClient, order: str, body: dict[str, object], *, is_json: bool) -> None:
    from meshd.cli.budget_text import ordered_text

    done = client.post(f"/v1/accounts/{order}", body)
    _print(done, is_json=is_json, text=lambda found: ordered_text(order, found, body))


def _print(found: dict[str, Any], *, is_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    click.echo(json.dumps(found, indent=2) if is_json else text(found))


def _named(account: str) -> str:
    """Return an account's whole name: one without a slash is a workflow's."""
    return account if "/" in account else f"workflow/{account}"


def _told(work: Callable[[], None]) -> None:
    """Do it; whatever keeps the daemon from doing it is said in one line."""
    from meshd.cli.admin_client import AdminProblem
    from meshd.config import ConfigError

    try:
        work()
    except (AdminProblem, ConfigError) as error:
        raise click.ClickException(str(error)) from None


def _client(home: Path | None) -> AdminClient:
    """Return the admin port of the daemon that runs. Raises ClickException where none does."""
    from meshd.cli.admin_client import AdminClient

    place = daemon_of(home)
    return AdminClient(place.running.admin, place.home)


def daemon_of(home: Path | None) -> Place:
    """Return the daemon that runs. Raises ClickException where none does."""
    from meshd.cli.exec_daemon import find
    from meshd.config import from_environment

    # A directory that is named is meant, whatever the environment says of another daemon.
    environ = os.environ if home is None else {}
    config = from_environment(environ)
    if home is not None:
        config = replace(config, home=home)
    place = find(config, environ)
    if place is not None:
        return place
    if why := _unreadable(config.home):
        hint = "It may be another user's: ask as that user, or name another with --home DIR."
        raise click.ClickException(f"the state directory {config.home} cannot be read: {why}. {hint}")
    where = f"in the state directory {config.home}"
    if environ.get("MESHD_LISTEN"):
        where = f"at {config.listen} (MESHD_LISTEN), nor {where}"
    hint = "Start one with `meshd run`, or name another's directory with --home DIR."
    raise click.ClickException(f"no daemon runs {where}. {hint}{_others(config.home)}")


def _unreadable(home: Path) -> str:
    """Say why what a daemon says of itself cannot be read there; "" where it can, or where there is nothing."""
    from meshd import running as registry

    try:
        (home / registry.FILE_NAME).open("rb").close()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _others(home: Path) -> str:
    """Say which directories below this one have a daemon that runs, as those have that `meshd exec` starts."""
    from meshd import running as registry

    found = [path.parent for path in sorted(home.glob("*/" + registry.FILE_NAME)) if registry.find(path.parent)]
    said = "\nBelow it, these have one (`meshd exec` starts private ones):\n" if found else ""
    return said + "\n".join(f"  --home {one}" for one in found)
