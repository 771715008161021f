"""`meshd tools` and `meshd agents`: what can be called, how its servers stand, and what waits to be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshd.cli.approvals import _client, _key, _shared, _told

if TYPE_CHECKING:
    from meshd.cli.admin_client import AdminClient

PAGE: Final = 500
ENTRIES_MAX: Final = 20_000
_TOOLS: Final = "tool,model,prompt,resource"
_AGENTS: Final = "agent,skill"

_TOOLS_HELP = """Show what can be called through a running daemon: tools, models, prompts, resources.

Without a command: all of it, and the servers that have it. What a server has changed since it was first seen, or what
gives models orders in place of describing itself, is in quarantine: nobody can call it by its name until somebody has
looked at it and approved it.

\b
Examples:
  meshd tools
  meshd tools --owner files
  meshd tools search "refund a customer"
  meshd tools show files/read_file
  meshd tools approve files/read_file
  meshd tools --json | jq '.entries[] | select(.quarantined != "")'

The daemon is found as `meshd budget` finds it.
"""
_AGENTS_HELP = """Show the agents that can be called through a running daemon, and what they say that they can do.

\b
Examples:
  meshd agents
  meshd agents --owner research
  meshd agents --json

The daemon is found as `meshd budget` finds it. `meshd tools search` finds agents, too.
"""


def _owned(function: Any) -> Any:
    return click.option("--owner", default="", metavar="NAME", help="Of this upstream or agent alone.")(function)


@click.group("tools", help=_TOOLS_HELP, invoke_without_command=True)
@_owned
@_shared
@click.pass_context
def tools(ctx: click.Context, owner: str, is_json: bool, home: Path | None) -> None:
    """Show all, where no command says what else to do."""
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _list(home, _TOOLS, owner, is_json=is_json)


@tools.command("list", epilog="Example: meshd tools list --owner files")
@_owned
@_shared
@click.pass_context
def listed(ctx: click.Context, owner: str, is_json: bool, home: Path | None) -> None:
    """Show all of it, and the servers that have it."""
    _list(home or ctx.obj, _TOOLS, owner, is_json=is_json)


@tools.command("show", epilog="Example: meshd tools show files/read_file")
@click.argument("name", metavar="OWNER/NAME")
@_shared
@click.pass_context
def show(ctx: click.Context, name: str, is_json: bool, home: Path | None) -> None:
    """Show one in full. That is its description, its schemas, and why it is in quarantine, if it is."""
    owner, bare = _split(name)

    def run() -> None:
        from meshd.cli.catalogue_text import whole

        found = _client(home or ctx.obj).get("/v1/catalogue/entry", owner=owner, name=bare)["entries"]
        click.echo(json.dumps({"entries": found}, indent=2) if is_json else "\n\n".join(whole(one) for one in found))

    _told(run)


@tools.command("search", epilog='Example: meshd tools search "refund a customer"')
@click.argument("words", metavar="WORDS", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="At most so many.")
@_shared
@click.pass_context
def search(ctx: click.Context, words: tuple[str, ...], limit: int, is_json: bool, home: Path | None) -> None:
    """Find tools, agents and skills by words. The best come first."""

    def run() -> None:
        from meshd.cli.catalogue_text import matches

        found = _client(home or ctx.obj).get("/v1/catalogue/search", q=" ".join(words), limit=limit)["matches"]
        click.echo(json.dumps({"matches": found}, indent=2) if is_json else matches(found))

    _told(run)


@tools.command("approve", epilog="Example: meshd tools approve files/read_file")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--digest", default="", metavar="HEX", help="What was looked at. [default: what is shown now]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with your approver's key, where the policy names approvers.",
)
@_shared
@click.pass_context
def approve(
    ctx: click.Context, name: str, digest: str, yes: bool, key_file: Path | None, is_json: bool, home: Path | None
) -> None:
    """Let one out of quarantine, exactly as it is now. Another change quarantines it again."""
    owner, bare = _split(name)

    def run() -> None:
        from meshd.cli.catalogue_text import whole

        client = _client(home or ctx.obj)
        chosen = digest
        if not chosen:
            found = client.get("/v1/catalogue/entry", owner=owner, name=bare)["entries"]
            held = [one for one in found if one["quarantined"]]
            if not held:
                raise click.ClickException(f"{name} is not in quarantine")
            if not yes:
                click.echo(whole(held[0]), err=True)
                click.confirm("Offer this to agents?", abort=True, err=True)
            chosen = held[0]["digest"]
        answer = _approve(client, {"owner": owner, "name": bare, "digest": chosen}, key_file)
        click.echo(json.dumps(answer, indent=2) if is_json else f"{name} is offered now.")

    _told(run)


@click.command("agents", help=_AGENTS_HELP)
@_owned
@_shared
def agents(owner: str, is_json: bool, home: Path | None) -> None:
    """Show agents and their skills."""
    _list(home, _AGENTS, owner, is_json=is_json)


def _approve(client: AdminClient, body: dict[str, object], key_file: Path | None) -> dict[str, Any]:
    """Approve; with a key where one is given, or is asked for."""
    from meshd.cli.admin_client import AdminProblem

    if key_file is None:
        try:
            return client.post("/v1/catalogue/approve", body)
        except AdminProblem as problem:
            if problem.status != 403 or "key needed" not in str(problem):
                raise
    return client.post("/v1/catalogue/approve", body, x_meshd_approver_key=_key(key_file))


def _split(name: str) -> tuple[str, str]:
    owner, slash, bare = name.partition("/")
    if not slash or not owner or not bare:
        raise click.UsageError("OWNER/NAME is the upstream or agent and the tool, such as files/read_file")
    return owner, bare


def _list(home: Path | None, sorts: str, owner: str, *, is_json: bool) -> None:
    def run() -> None:
        from meshd.cli.catalogue_text import table

        client = _client(home)
        entries = _entries(client, sorts, owner)
        owners = [one for one in client.get("/v1/catalogue/owners")["owners"] if owner in ("", one["owner"])]
        if is_json:
            click.echo(json.dumps({"entries": entries, "owners": owners}, indent=2))
        else:
            click.echo(table(entries, owners, what="agents" if sorts == _AGENTS else "tools"))

    _told(run)


def _entries(client: AdminClient, sorts: str, owner: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"sort": sorts, "limit": PAGE}
    if owner:
        query["owner"] = owner
    while True:
        page = client.get("/v1/catalogue", **query)
        found += page["entries"]
        if not page["next_after"] or len(found) >= ENTRIES_MAX:
            return found
        query["after"] = page["next_after"]
