"""`meshd prompts`: versions of prompts, where their labels stand, and whether they say what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshd.cli.approvals import _client, _shared, _told

if TYPE_CHECKING:
    from meshd.cli.admin_client import AdminClient

PAGE = 500
NAMES_MAX = 20_000

_NOWHERE = "nowhere"
"""Where a label stands that points at no version, as messages say it."""
_HELP = """Keep the prompts that requests name by prompt://NAME.

Without a command: all of them. A version never changes; a label such as production points at one, or at two with a
share of the workflows each.

\b
Examples:
  meshd prompts add summarise 1.2.0 summarise.md --author ana
  meshd prompts diff summarise 1.2.0 1.3.0
  meshd prompts test summarise.test.yaml
  meshd prompts promote summarise 1.3.0 --share 10
  meshd prompts promote summarise 1.3.0 --expect 1.2.0
  meshd prompts rollback summarise

The daemon is found as `meshd budget` finds it. Sidecars that share a store share its prompts: ask any of them.
"""


@click.group("prompts", help=_HELP, invoke_without_command=True)
@_shared
@click.pass_context
def command(ctx: click.Context, is_json: bool, home: Path | None) -> None:
    """Show all, where no command says what else to do."""
    ctx.obj = home
    if ctx.invoked_subcommand is None:
        _told(lambda: _list(home, is_json=is_json))


@command.command("list", epilog="Example: meshd prompts list")
@_shared
@click.pass_context
def listed(ctx: click.Context, is_json: bool, home: Path | None) -> None:
    """Show all names, with newest versions and labels."""
    _told(lambda: _list(home or ctx.obj, is_json=is_json))


@command.command("show", epilog="Example: meshd prompts show summarise@1.2.0")
@click.argument("name", metavar="NAME[@VERSION]")
@_shared
@click.pass_context
def show(ctx: click.Context, name: str, is_json: bool, home: Path | None) -> None:
    """Show one name, or a text. NAME has its versions, and where labels are and were; NAME@VERSION a text."""

    def run() -> None:
        from meshd.cli.prompts_text import one, text

        bare, at, _ = name.partition("@")
        path = _path(bare)
        client = _client(home or ctx.obj)
        if at:
            found = _version(client, name)
            click.echo(json.dumps(found, indent=2) if is_json else text(found))
        else:
            found = client.get(path)
            click.echo(json.dumps(found, indent=2) if is_json else one(found))

    _told(run)


@command.command("add", epilog="Example: meshd prompts add summarise 1.2.0 summarise.md --author ana")
@click.argument("name", metavar="NAME")
@click.argument("version", metavar="VERSION")
@click.argument("file", type=click.File("rb"), metavar="FILE")
@click.option("--author", default="", metavar="TEXT", help="Who wrote it. [default: what FILE says]")
@click.option("--notes", default="", metavar="TEXT", help="What is new in it. [default: what FILE says]")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model that it is for; may be repeated.")
@_shared
@click.pass_context
def add(
    ctx: click.Context,
    name: str,
    version: str,
    file: Any,
    author: str,
    notes: str,
    models: tuple[str, ...],
    is_json: bool,
    home: Path | None,
) -> None:
    """Add a version of NAME. Its text is in FILE; - is standard input. It can never be changed.

    FILE may begin with what is said of it, in YAML between two lines of three dashes: author, notes, models.
    """

    def run() -> None:
        from meshd.prompts.document import FILE_BYTES_MAX, DocumentError, read_prompt

        try:
            prompt = read_prompt(file.read(FILE_BYTES_MAX + 1), name, version)
        except DocumentError as error:
            raise click.ClickException(f"{getattr(file, 'name', '-')}:{error}") from None
        body: dict[str, object] = {
            "name": name,
            "version": version,
            "text": prompt.text,
            "author": author or prompt.author,
            "notes": notes or prompt.notes,
            "models": list(models or prompt.models),
        }
        found = _client(home or ctx.obj).post("/v1/prompts", body)
        state = "added" if found["is_new"] else "there already, the very same"
        said = f"{name}@{version} is {state} ({found['digest'][:12]})"
        click.echo(json.dumps(found, indent=2) if is_json else said)

    _told(run)


@command.command("diff", epilog="Example: meshd prompts diff summarise 1.2.0 1.3.0")
@click.argument("name", metavar="NAME")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@_shared
@click.pass_context
def diff(ctx: click.Context, name: str, old: str, new: str, is_json: bool, home: Path | None) -> None:
    """Show what differs between two versions. Each may be a range or a label, too."""

    def run() -> None:
        from meshd.cli.prompts_text import difference

        client = _client(home or ctx.obj)
        before, after = _version(client, f"{name}@{old}"), _version(client, f"{name}@{new}")
        lines = difference(before, after)
        if is_json:
            click.echo(json.dumps({"old": before, "new": after, "diff": lines}, indent=2))
        elif lines:
            click.echo("\n".join(lines))

    _told(run)


@command.command("promote", epilog="Example: meshd prompts promote summarise 1.3.0 --share 10")
@click.argument("name", metavar="NAME")
@click.argument("version", metavar="VERSION")
@click.option("--label", default="production", show_default=True, metavar="LABEL", help="Which label.")
@click.option(
    "--share",
    type=click.IntRange(1, 100),
    default=100,
    metavar="PERCENT",
    help="Only so many of a hundred workflows; the others stay with the version before. [default: 100]",
)
@click.option("--expect", default=None, metavar="VERSION", help="Move it only if it stands here, or `nowhere`.")
@_shared
@click.pass_context
def promote(
    ctx: click.Context,
    name: str,
    version: str,
    label: str,
    share: int,
    expect: str | None,
    is_json: bool,
    home: Path | None,
) -> None:
    """Let a label point at VERSION. Workflows that have begun keep what they have."""
    body: dict[str, object] = {"label": label, "version": version, "share": share, **_expected(expect)}
    _move(home or ctx.obj, name, "promote", body, is_json=is_json)


@command.command("rollback", epilog="Example: meshd prompts rollback summarise")
@click.argument("name", metavar="NAME")
@click.option("--label", default="production", show_default=True, metavar="LABEL", help="Which label.")
@click.option("--expect", default=None, metavar="VERSION", help="Move it only if it stands here.")
@_shared
@click.pass_context
def rollback(ctx: click.Context, name: str, label: str, expect: str | None, is_json: bool, home: Path | None) -> None:
    """Let a label point at where it pointed before. Done again, at where it pointed before that."""
    _move(home or ctx.obj, name, "rollback", {"label": label, **_expected(expect)}, is_json=is_json)


@command.command("test", epilog="Example: meshd prompts test summarise.test.yaml")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Take the prompts of this folder, and ask no daemon but for models' answers.",
)
@click.option("--only-text", is_flag=True, help="Ask no model.")
@_shared
@click.pass_context
def test(
    ctx: click.Context, file: Path, folder: Path | None, only_text: bool, is_json: bool, home: Path | None
) -> None:
    """Check what FILE says of a prompt. It says it of the text with variables filled in, and of a model's answer to it.

    Exits with 1 where something is not so, with 2 where FILE is no such file.
    """
    from meshd.cli.prompts_checking import read_suite, run_suite
    from meshd.cli.prompts_text import verdicts
    from meshd.prompts.document import DocumentError

    try:
        suite = read_suite(file.read_bytes())
    except DocumentError as error:
        raise click.UsageError(f"{file}:{error}") from None

    def run() -> None:
        results = run_suite(suite, home or ctx.obj, folder, is_text_only=only_text)
        shown = [result._asdict() for result in results]
        click.echo(json.dumps({"cases": shown}, indent=2) if is_json else verdicts(results))
        if any(result.failures for result in results):
            raise click.exceptions.Exit(1)

    _told(run)


def _move(home: Path | None, name: str, what: str, body: dict[str, object], *, is_json: bool) -> None:
    def run() -> None:
        from meshd.cli.prompts_text import stands

        path = _path(name)
        found = _client(home).post(f"{path}/{what}", body)
        label = str(body["label"])
        said = f"{name}@{label} is {stands(found['labels'].get(label, {}))}"
        click.echo(json.dumps(found, indent=2) if is_json else said)

    _told(run)


def _expected(expect: str | None) -> dict[str, object]:
    if expect is None:
        return {}
    return {"expected": {} if expect in ("", _NOWHERE) else {expect: 1}}


def _path(name: str) -> str:
    from meshd.prompts.reference import NAME

    if NAME.fullmatch(name) is None:
        raise click.UsageError("NAME is of a-z, 0-9, '-', '_' and '.', at most 63")
    return f"/v1/prompts/{name}"


def _version(client: AdminClient, name: str) -> dict[str, Any]:
    """Return a version that is named by a version, a range or a label."""
    from meshd.prompts.choosing import Unresolved, choose
    from meshd.prompts.record import Head
    from meshd.prompts.reference import BadReference, read_selector

    bare, _, selected = name.partition("@")
    found = client.get(_path(bare))
    try:
        head = Head(bare, {one["version"]: one["digest"] for one in found["versions"]}, found["labels"])
        version = choose(head, read_selector(selected), "")
    except (Unresolved, BadReference) as error:
        raise click.ClickException(str(error)) from None
    return client.get(f"{_path(bare)}/{version}")


def _list(home: Path | None, *, is_json: bool) -> None:
    from meshd.cli.prompts_text import table

    client = _client(home)
    found: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"limit": PAGE}
    while True:
        page = client.get("/v1/prompts", **query)
        found += page["prompts"]
        if not page["next_after"] or len(found) >= NAMES_MAX:
            break
        query["after"] = page["next_after"]
    problems = page["problems"]
    if is_json:
        click.echo(json.dumps({"prompts": found, "problems": problems}, indent=2))
        return
    click.echo(table(found))
    for problem in problems:
        click.echo(problem, err=True)
