"""`meshd trace`: what a workflow did, whether anybody changed it, and what another policy would have decided."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.trace.reading import Reader
    from meshd.trace.record import Event

FOLLOW_S = 0.5
"""How often `--follow` looks."""
LIMIT = 20
DIGEST_DIGITS = 64
BAD = 1
NOT_FOUND = 2

_HELP = """Show what a workflow did: calls, refusals, what agents decided and why, in the order of causes.

WORKFLOW is its name, or the id of an event, a call, a trace or a span of it. Without: the workflows heard of last. The
files are read; no daemon need run.

\b
Examples:
  meshd trace
  meshd trace report-7
  meshd trace report-7 --timeline --follow
  meshd trace --verify
  meshd trace report-7 --replay policies/strict.yaml
  meshd trace report-7 --export otlp > spans.jsonl
  meshd trace report-7 --home ~/a --home ~/b

With --verify the exit code is 1 where anything is bad. With several --home, the logs of several sidecars are read as
one, and each is held against what the others were told of it.
"""


@click.command("trace", help=_HELP)
@click.argument("workflow", metavar="[WORKFLOW]", required=False)
@click.option("--timeline", is_flag=True, help="One event a line, by its time, in place of the tree.")
@click.option("--follow", is_flag=True, help="Print what comes, until interrupted; implies --timeline.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--verify", "is_verify", is_flag=True, help="Check the whole log, and name the first bad record.")
@click.option(
    "--replay", "policy", type=click.Path(path_type=str), metavar="POLICY", help="What it would have decided."
)
@click.option("--export", "form", type=click.Choice(["otlp", "cloudevents", "prov"]), help="Print it for others.")
@click.option(
    "--erase", "digest", metavar="SHA256", help="Erase what agents said with this digest; the log stays whole."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=LIMIT, show_default=True, help="Workflows to list.")
@click.option(
    "--home", "homes", multiple=True, type=click.Path(path_type=Path), metavar="DIR", help="State directory to read."
)
def command(
    workflow: str | None,
    timeline: bool,
    follow: bool,
    is_json: bool,
    is_verify: bool,
    policy: str | None,
    form: str | None,
    digest: str | None,
    limit: int,
    homes: tuple[Path, ...],
) -> None:
    """Read the logs, and do what the options ask for."""
    _check_together(erase=digest is not None, verify=is_verify, replay=policy, export=form, follow=follow)
    try:
        readers = _readers(homes)
        if digest is not None:
            return _erase(readers, digest)
        if is_verify:
            sys.exit(_verify(readers, is_json=is_json))
        _check_sidecars(readers)
        if workflow is None:
            if policy or form or timeline or follow:
                raise click.UsageError("WORKFLOW is missing; `meshd trace` lists those that there are")
            _list(readers, limit, is_json=is_json)
        else:
            _show(readers, _named(readers, workflow, follow), timeline, follow, is_json, policy, form)
        _warn(readers)
    except (BrokenPipeError, KeyboardInterrupt):
        # Whoever reads has gone: nothing more is written, at the interpreter's end neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"the trace cannot be read: {where}{error.strerror or error}") from None


def _warn(readers: list[Reader]) -> None:
    """Say on standard error what is missing in what was shown."""
    for reader in readers:
        for name, why in reader.unreadable.items():
            click.echo(f"{reader.directory / name} is left out: {why}; --verify says more", err=True)


def _show(
    readers: list[Reader],
    workflow: str,
    timeline: bool,
    follow: bool,
    is_json: bool,
    policy: str | None,
    form: str | None,
) -> None:
    from meshd.trace import story

    if policy is not None:
        from meshd.cli.trace_replay import replay

        replay(policy, story.timeline(readers, workflow), is_json=is_json)
    elif form is not None:
        _export(form, lambda: story.timeline(readers, workflow))
    elif follow:
        _follow(readers, workflow, is_json=is_json)
    elif timeline or is_json:
        _print(readers, story.timeline(readers, workflow), is_json=is_json)
    else:
        from meshd.cli import trace_text

        with story.Tree(readers, workflow) as grown:
            click.echo(f"workflow {workflow}: {len(grown)} events")
            for line in trace_text.tree(grown.branches(), lambda event: _said(readers, event)):
                click.echo(line)


def _export(form: str, events: Callable[[], Iterator[Event]]) -> None:
    from meshd.trace.exporting import export

    # JSON is UTF-8, whatever the terminal is.
    stream, end = sys.stdout.buffer, "" if form == "prov" else "\n"
    for piece in export(form, events):
        stream.write((piece + end).encode())
    if form == "prov":
        stream.write(b"\n")
    stream.flush()


def _readers(homes: tuple[Path, ...]) -> list[Reader]:
    from meshd.config import default_home
    from meshd.trace.opening import DIRECTORY
    from meshd.trace.reading import Reader

    found: dict[Path, Reader] = {}
    for home in homes or (default_home(os.environ),):
        directory = home / DIRECTORY
        if not directory.is_dir():
            raise click.ClickException(f"{home} has no trace; name a daemon's state directory with --home")
        found.setdefault(directory.resolve(), Reader(directory))
    return list(found.values())


def _check_together(**given: object) -> None:
    """Refuse options of which each is something else to do."""
    asked = [f"--{name}" for name, value in given.items() if value]
    if len(asked) > 1:
        raise click.UsageError(f"{asked[0]} and {asked[1]} do not go together: ask for one after the other")


def _check_sidecars(readers: list[Reader]) -> None:
    """Refuse two logs of one sidecar, such as one and its copy: each event would stand there twice."""
    known: dict[str, Path] = {}
    for reader in readers:
        other = known.setdefault(reader.sidecar, reader.directory)
        if reader.sidecar and other is not reader.directory:
            raise click.ClickException(
                f"{other.parent} and {reader.directory.parent} have logs of one sidecar, {reader.sidecar}: name one of "
                "them"
            )


def _named(readers: list[Reader], text: str, follow: bool) -> str:
    """Return the workflow that a text names, or an event, call, trace or span of it."""
    if any(text in reader.workflows() for reader in readers):
        return text
    for reader in readers:
        event = reader.find(text)
        if event is not None and event.payload.workflow:
            return event.payload.workflow
    if follow:
        return text
    _warn(readers)
    raise click.ClickException(f"the trace has no workflow, event, call, trace or span {text!r}")


def _list(readers: list[Reader], limit: int, *, is_json: bool) -> None:
    from meshd.cli.trace_text import table
    from meshd.trace.event_json import when
    from meshd.trace.indexing import together

    parts = together(reader.workflows() for reader in readers)
    if not is_json:
        click.echo(table(parts, limit))
        return
    newest = sorted(((part.last_us, name, part) for name, part in parts.items() if name), reverse=True)[:limit]
    for last_us, name, part in newest:
        told = {"workflow": name, "first": when(part.first_us), "last": when(last_us), "events": part.events}
        click.echo(json.dumps(told | {"calls": part.calls, "refused": part.refused, "tokens": part.tokens}))


def _said(readers: list[Reader], event: Event) -> bytes:
    return next((found for reader in readers if (found := reader.text(event))), b"")


def _print(readers: list[Reader], events: Iterator[Event], *, is_json: bool) -> dict[str, int]:
    """Print events; return the last sequence of each sidecar."""
    from meshd.cli.trace_text import line

    last: dict[str, int] = {}
    for event in events:
        last[event.sidecar] = max(event.sequence, last.get(event.sidecar, -1))
        click.echo(_json(readers, event).encode() if is_json else line(event, lambda event: _said(readers, event)))
    return last


def _json(readers: list[Reader], event: Event) -> str:
    from meshd.trace import kinds
    from meshd.trace.event_json import as_json

    said: Any = None
    if kinds.STEP <= event.payload.kind <= kinds.NOTE and (data := _said(readers, event)):
        from google.protobuf.json_format import MessageToDict

        from meshd_sdk.v1 import trace_pb2

        said = MessageToDict(trace_pb2.TraceEntry.FromString(data))
    return json.dumps(as_json(event, said), ensure_ascii=False)


def _follow(readers: list[Reader], workflow: str, *, is_json: bool) -> None:
    from meshd.trace import story

    seen: dict[str, int] = {}
    while True:
        seen |= _print(readers, story.timeline(readers, workflow, seen), is_json=is_json)
        sys.stdout.flush()
        time.sleep(FOLLOW_S)


def _verify(readers: list[Reader], *, is_json: bool) -> int:
    from meshd.cli.trace_text import verified
    from meshd.trace.verifying import heads_in, verify

    heads = heads_in([reader.directory for reader in readers]) if len(readers) > 1 else {}
    code = 0
    for reader in readers:
        found = verify(reader.directory, heads)
        code = code if found.is_sound else BAD
        if is_json:
            told: dict[str, Any] = {"directory": str(reader.directory), "sidecar": found.sidecar}
            told |= {"records": found.records, "segments": found.segments, "bytes": found.bytes, "notes": found.notes}
            told |= {"is_sound": found.is_sound, "problems": [problem._asdict() for problem in found.problems]}
            click.echo(json.dumps(told))
        else:
            click.echo(verified(found, str(reader.directory)))
    return code


def _erase(readers: list[Reader], digest: str) -> None:
    from meshd.trace.texts import erase

    if len(digest) != DIGEST_DIGITS or set(digest) - set("0123456789abcdef"):
        raise click.UsageError("--erase takes a SHA-256: 64 digits of hex in lower case, as --json shows them")
    count = sum(erase(reader.directory, bytes.fromhex(digest)) for reader in readers)
    if not count:
        raise click.ClickException("nothing with this digest is kept; calls are in the trace by their digest alone")
    click.echo(f"{count} erased; the log has their digest still, and verifies as before")
