"""`meshd events`: topics and groups of a running daemon's bus, dead letters, and events from a shell."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshd.cli.approvals import _client, _shared, _told

if TYPE_CHECKING:
    from meshd.cli.admin_client import AdminClient

TAIL_S: Final = 0.5
"""How often `tail` asks."""
PAGE: Final = 500
TEXT_MAX: Final = 100

_HELP = """Show what a running daemon's bus carries: without a command, its groups.

\b
Examples:
  meshd events
  meshd events topics
  meshd events dead --group billing
  meshd events redrive billing 17 18
  meshd events redrive billing --all
  meshd events publish task.assigned '{"order": 7}' --key order-7
  meshd events tail 'task.>'

`tail` takes part in no group: nobody gets fewer events for it. The daemon is found as `meshd budget` finds it.
"""


@click.group("events", help=_HELP, invoke_without_command=True)
@_shared
@click.pass_context
def command(ctx: click.Context, is_json: bool, home: Path | None) -> None:
    """Show the groups, where no command says what else to do."""
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _told(lambda: _groups(_client(home), is_json=is_json))


@command.command("groups", epilog="Example: meshd events groups")
@_shared
@click.pass_context
def groups(ctx: click.Context, is_json: bool, home: Path | None) -> None:
    """Show how far each group is, and what it has yet to settle."""
    _told(lambda: _groups(_client(home or ctx.obj), is_json=is_json))


@command.command("topics", epilog="Example: meshd events topics")
@_shared
@click.pass_context
def topics(ctx: click.Context, is_json: bool, home: Path | None) -> None:
    """Show the topics that have events."""

    def run() -> None:
        found = _client(home or ctx.obj).get("/v1/events/topics")
        rows = [(one["topic"], one["events"], one["bytes"], one["latest"]) for one in found["topics"]]
        _print(found, ("TOPIC", "EVENTS", "BYTES", "LATEST"), rows, "No topic has events.", is_json=is_json)

    _told(run)


@command.command("dead", epilog="Example: meshd events dead --group billing")
@click.option("--group", default="", metavar="NAME", help="Of this group alone.")
@_shared
@click.pass_context
def dead(ctx: click.Context, group: str, is_json: bool, home: Path | None) -> None:
    """Show dead letters: events that a group has given up, and why."""

    def run() -> None:
        client = _client(home or ctx.obj)
        found = client.get("/v1/events/dead", group=group, limit=PAGE)
        if group and not (is_json or found["dead"] or _is_known(client, group)):
            # A program may ask before its group is there; a person has mistyped.
            raise click.ClickException(f"there is no group {group!r}; `meshd events` shows those that there are")
        rows = [
            (one["id"], one["group"], one["event_topic"], one["event"]["id"], one["attempts"], _when(one["died_s"]),
             one["reason"])
            for one in found["dead"]
        ]  # fmt: skip
        heads = ("ID", "GROUP", "TOPIC", "EVENT", "ATTEMPTS", "DIED", "REASON")
        _print(found, heads, rows, "There are no dead letters.", is_json=is_json)

    _told(run)


@command.command("redrive", epilog="Example: meshd events redrive billing 17 18")
@click.argument("group", metavar="GROUP")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "is_all", is_flag=True, help="All dead letters of the group.")
@_shared
@click.pass_context
def redrive(
    ctx: click.Context, group: str, ids: tuple[int, ...], is_all: bool, is_json: bool, home: Path | None
) -> None:
    """Hand dead letters to their group again. It is as if for the first time."""
    if bool(ids) == is_all:
        raise click.UsageError("name dead letters by their ids (`meshd events dead`), or all with --all")

    def run() -> None:
        body: dict[str, object] = {"group": group} if is_all else {"group": group, "ids": list(ids)}
        found = _client(home or ctx.obj).post("/v1/events/redrive", body)
        click.echo(json.dumps(found) if is_json else f"{found['redriven']} redriven")
        if not is_all and found["redriven"] < len(set(ids)):
            raise click.ClickException(
                f"{len(set(ids)) - found['redriven']} of these ids are no dead letters of {group}; "
                f"`meshd events dead --group {group}` lists those that there are"
            )

    _told(run)


@command.command("publish", epilog="Example: meshd events publish task.assigned '{\"order\": 7}' --key order-7")
@click.argument("topic", metavar="TOPIC")
@click.argument("data", metavar="[DATA]", default="")
@click.option("--file", type=click.Path(path_type=Path), metavar="FILE", help="Read the data from it; - for stdin.")
@click.option("--id", "id", default="", metavar="ID", help="The same id of the same source is published once.")
@click.option("--type", "type_", default="", metavar="TYPE", help="What has happened. [default: TOPIC]")
@click.option("--key", default="", metavar="KEY", help="Events of one key are handed out in order.")
@click.option("--content-type", default="", metavar="TYPE", help="[default: JSON, or plain text where it is none]")
@click.option("--as", "agent", default="", metavar="AGENT", help="Who publishes. [default: the daemon's agent]")
@_shared
@click.pass_context
def publish(
    ctx: click.Context,
    topic: str,
    data: str,
    file: Path | None,
    id: str,
    type_: str,
    key: str,
    content_type: str,
    agent: str,
    is_json: bool,
    home: Path | None,
) -> None:
    """Publish an event. The agent's rules hold for it; it is in the workflow of MESHD_CONTEXT, where that is set."""

    def run() -> None:
        raw = data.encode("utf-8", "surrogateescape") if file is None else _read(file)
        event = {
            "topic": topic,
            "id": id,
            "type": type_,
            "partitionKey": key,
            "dataContentType": content_type or _guessed(raw),
            "data": base64.b64encode(raw).decode(),
        }
        token = "" if agent else os.environ.get("MESHD_CONTEXT", "")
        found = _api(home or ctx.obj).ask("EventService/Publish", {"token": token, "agent": agent, "event": event})
        again = " (published before: nothing was done)" if found.get("isDuplicate") else ""
        click.echo(json.dumps(found) if is_json else f"{found['eventId']}  {found['sequence']}{again}")

    _told(run)


@command.command("tail", epilog="Example: meshd events tail 'task.>'")
@click.argument("topic", metavar="[TOPIC]", default=">")
@click.option("--all", "is_all", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--once", is_flag=True, help="Show what is kept, and end.")
@_shared
@click.pass_context
def tail(ctx: click.Context, topic: str, is_all: bool, once: bool, is_json: bool, home: Path | None) -> None:
    """Follow a topic until interrupted. With --json, a line of CloudEvents each."""

    def run() -> None:
        client = _client(home or ctx.obj)
        after = 0 if is_all or once else int(client.get("/v1/events/latest")["sequence"] or 0)
        while True:
            found = client.get("/v1/events/kept", topic=topic, after=after, limit=PAGE)["events"]
            for one in found:
                click.echo(json.dumps(one, ensure_ascii=False) if is_json else _line(one))
                after = int(one["sequence"])
            sys.stdout.flush()
            if len(found) < PAGE:
                if once:
                    return
                time.sleep(TAIL_S)

    _told(run)


def _is_known(client: AdminClient, group: str) -> bool:
    return any(one["group"] == group for one in client.get("/v1/events/groups")["groups"])


def _groups(client: AdminClient, *, is_json: bool) -> None:
    found = client.get("/v1/events/groups")
    keys = ("group", "topic", "sequence", "lag", "under_way", "waiting", "dead", "dropped", "expired")
    rows = [tuple("-" if one[key] is None else one[key] for key in keys) for one in found["groups"]]
    heads = tuple(key.replace("_", " ").upper() for key in keys)
    _print(found, heads, rows, "No group has subscribed yet.", is_json=is_json)


def _print(
    found: dict[str, Any], heads: tuple[str, ...], rows: list[tuple[Any, ...]], nothing: str, *, is_json: bool
) -> None:
    if is_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not rows:
        click.echo(nothing)
        return
    shown = [heads, *[tuple(_safe(str(one)) for one in row) for row in rows]]
    widths = [max(len(row[at]) for row in shown) for at in range(len(heads))]
    for row in shown:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _line(event: dict[str, Any]) -> str:
    data = event.get("data", event.get("data_base64", ""))
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return "  ".join(map(_safe, (event.get("time", ""), event["topic"], event["source"], event["id"], text)))


def _safe(text: str) -> str:
    """Return a text as one line that moves no terminal: agents write it."""
    shown = "".join(one if one.isprintable() else "?" for one in text)
    return shown if len(shown) <= TEXT_MAX else f"{shown[: TEXT_MAX - 3]}..."


def _when(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _guessed(raw: bytes) -> str:
    try:
        json.loads(raw)
    except ValueError:
        return "text/plain" if raw else ""
    return ""


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None


def _api(home: Path | None) -> Any:
    from meshd.cli.api_client import ApiClient
    from meshd.cli.budget import daemon_of

    api = daemon_of(home).running.api
    if not api:
        raise click.ClickException("this daemon serves no API (MESHD_API=off), and events are published through it")
    return ApiClient(api)
