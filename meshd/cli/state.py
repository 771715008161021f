"""`meshd state`: what agents share, read and written as one of them, by the rules that hold for it."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from meshd.state.keys import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.cli.api_client import ApiClient

WATCH_S = 1.0
"""How often `watch` asks."""
_ABSENT = 3
"""Exit code of `get` where there is no such object."""
_CONFLICT = 4
"""Exit code of `put` where another version is there."""

_HELP = f"""Read and write versioned objects that agents share.

A key says whose it is (workflow/ID/NAME, agent/NAME/NAME, tenant/NAME/NAME, mesh/NAME; a dot in the owner's place is
your own), or is a short name in --scope: the workflow's, where nothing else is said. It is done as the agent beside the
daemon, in the workflow of MESHD_CONTEXT (as in `meshd exec`), or of --workflow.

\b
Examples:
  meshd state get mesh/rates
  meshd state put plan '{{"steps": []}}' --workflow report-42
  meshd state put tenant/acme/quotes --file quotes.json --base 7
  meshd state history mesh/rates
  meshd state watch mesh/rates

`get` and `history` end with {_ABSENT} where there is no such object, `put` with {_CONFLICT} where another version is
there.
"""


class Asking:
    """Who asks: made of the options that every command takes."""

    def __init__(self, home: Path | None, agent: str, workflow: str, scope: str) -> None:
        self._home, self._agent, self._workflow, self._scope = home, agent, workflow, scope
        self._token = ""

    def key(self, text: str) -> str:
        """Return a key as the API has it."""
        from meshd_sdk.state_values import key_of

        try:
            return key_of(text, self._scope)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def ask(self, method: str, **request: Any) -> dict[str, Any]:
        """Ask StateService. Raises ApiProblem."""
        client = self._client()
        if not self._token:
            self._token = self._opened(client)
        return client.ask(f"StateService/{method}", {"token": self._token} | request)

    def asked_again(self, method: str, **request: Any) -> dict[str, Any]:
        """Do the same, over restarts of the daemon and its store, which it says once. Raises ApiProblem for what
        waiting does not mend."""
        from meshd.cli.api_client import ApiProblem

        was_away = False
        while True:
            try:
                return self.ask(method, **request)
            except (ApiProblem, click.ClickException) as error:
                if isinstance(error, ApiProblem) and not error.is_passing:
                    raise
                if not was_away:
                    click.echo(
                        f"waiting: {error.message if isinstance(error, click.ClickException) else error}", err=True
                    )
            was_away = True
            time.sleep(WATCH_S)

    def _client(self) -> ApiClient:
        from meshd.cli.api_client import ApiClient
        from meshd.cli.budget import daemon_of

        api = daemon_of(self._home).running.api
        if not api:
            raise click.ClickException("this daemon serves no API (MESHD_API=off), and state is reached through it")
        return ApiClient(api)

    def _opened(self, client: ApiClient) -> str:
        given = os.environ.get("MESHD_CONTEXT", "")
        if given and not (self._agent or self._workflow):
            return given
        opened = client.ask("ContextService/Open", {"agent": self._agent, "workflow": self._workflow})
        return str(opened["context"]["token"])


def _shared(function: Any) -> Any:
    """Add the options that every command here takes."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="Print JSON."),
        click.option("--scope", default="", metavar="SCOPE", help="Of a short KEY: workflow, agent, tenant or mesh."),
        click.option("--workflow", default="", metavar="NAME", help="The workflow to act in."),
        click.option("--as", "agent", default="", metavar="AGENT", help="The agent to act as. [default: the daemon's]"),
        click.option(
            "--home", type=click.Path(path_type=Path), metavar="DIR", help="State directory of the daemon to ask."
        ),
    ):
        function = option(function)
    return function


@click.group("state", help=_HELP)
def command() -> None:
    """Hold the commands."""


@command.command("get", epilog="Example: meshd state get mesh/rates")
@click.argument("key", metavar="KEY")
@click.option("--version", "number", type=click.IntRange(min=0), default=0, help="Which; the newest, if not said.")
@click.option("--shadow", is_flag=True, help="Prefer a tentative version of the workflow.")
@_shared
def get(
    key: str, number: int, shadow: bool, is_json: bool, scope: str, workflow: str, agent: str, home: Path | None
) -> None:
    """Print the value of KEY, as it is. With --json all that is known of the version."""
    asking = Asking(home, agent, workflow, scope)

    def run() -> None:
        found = asking.ask("GetState", key=asking.key(key), version=number, readsShadow=shadow)["object"]
        if not int(found.get("version", 0)):
            named = key.rpartition("@")[2] if key.startswith(PREFIX) else str(number)
            click.echo(f"there is no {found.get('key', key)}" + (f"@{named}" if named != "0" else ""), err=True)
            raise click.exceptions.Exit(_ABSENT)
        if is_json:
            click.echo(json.dumps(found, indent=2))
        else:
            sys.stdout.buffer.write(base64.b64decode(found.get("value", "")))
            sys.stdout.flush()

    _told(run)


@command.command("put", epilog="Example: meshd state put plan '{\"steps\": []}' --workflow report-42")
@click.argument("key", metavar="KEY")
@click.argument("value", metavar="[VALUE]", required=False)
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), help="Holds the value; - is stdin."
)
@click.option("--base", type=click.IntRange(min=0), default=0, help="The version that is replaced; 0: there is none.")
@click.option("--content-type", default="", metavar="TYPE", help="Media type. [default: application/json]")
@_shared
def put(
    key: str,
    value: str | None,
    file: Path | None,
    base: int,
    content_type: str,
    is_json: bool,
    scope: str,
    workflow: str,
    agent: str,
    home: Path | None,
) -> None:
    """Write the next version of KEY. It is made from --base; nothing is written where another one is there."""
    if (value is None) == (file is None):
        raise click.UsageError("either VALUE or --file says what to write")
    payload = value.encode("utf-8", "surrogateescape") if value is not None else _read(file)
    if not content_type or content_type == "application/json":
        try:
            json.loads(payload.decode(), parse_constant=_no_constant, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"that is no JSON: say with --content-type what it is ({error})") from None
    asking = Asking(home, agent, workflow, scope)

    def run() -> None:
        found = asking.ask(
            "Commit",
            key=asking.key(key),
            value=base64.b64encode(payload).decode(),
            baseVersion=base,
            contentType=content_type or "application/json",
            commitId=os.urandom(16).hex(),
        )
        if is_json:
            click.echo(json.dumps(found, indent=2))
        if found.get("isConflict"):
            click.echo(_conflict(found), err=True)
            raise click.exceptions.Exit(_CONFLICT)
        if not is_json:
            click.echo(_line(found["object"]))

    _told(run)


@command.command("history", epilog="Example: meshd state history mesh/rates")
@click.argument("key", metavar="KEY")
@_shared
def history(key: str, is_json: bool, scope: str, workflow: str, agent: str, home: Path | None) -> None:
    """List the versions of KEY that are kept. The newest comes first, and last who has checked it out."""
    asking = Asking(home, agent, workflow, scope)

    def run() -> None:
        found = asking.ask("History", key=asking.key(key))
        if not found.get("versions") and "lease" not in found:
            click.echo(f"there is no {key}", err=True)
            raise click.exceptions.Exit(_ABSENT)
        if is_json:
            click.echo(json.dumps(found, indent=2))
            return
        for one in found.get("versions", []):
            click.echo(_line(one))
        if "lease" in found:
            click.echo(f"checked out by {_holder(found['lease'])}")

    _told(run)


@command.command("watch", epilog="Example: meshd state watch mesh/rates")
@click.argument("key", metavar="KEY")
@_shared
def watch(key: str, is_json: bool, scope: str, workflow: str, agent: str, home: Path | None) -> None:
    """Print each version of KEY as it comes. The newest is first; it goes on over restarts of the daemon, and ends when
    interrupted."""
    asking = Asking(home, agent, workflow, scope)

    def run() -> None:
        whole, known = asking.key(key), 0
        found = asking.ask("History", key=whole)
        while True:
            versions = found.get("versions", [])
            if not versions or int(versions[0]["version"]) < known:
                known = 0  # it had expired, and begins anew
            news = [one for one in reversed(versions) if int(one["version"]) > known]
            for one in news if known else news[-1:]:
                click.echo(json.dumps(one) if is_json else _line(one))
                known = int(one["version"])
            sys.stdout.flush()
            time.sleep(WATCH_S)
            found = asking.asked_again("History", key=whole)

    _told(run)


def _line(one: dict[str, Any]) -> str:
    what = "deleted" if one.get("isDeleted") else f"{int(one.get('size', 0)):,} bytes"
    where = f" in {one['workflow']}" if one.get("workflow") else ""
    return f"{one['key']}@{one['version']}  {one['written']}  {one.get('writer', '')}{where}  {what}"


def _conflict(found: dict[str, Any]) -> str:
    from meshd_sdk.state_values import ORDERS

    one = found.get("object", {})
    there = f"{_line(one)} is there" if int(one.get("version", 0)) else "there is no such object"
    held = f"; checked out by {_holder(found['lease'])}" if "lease" in found else ""
    known = ORDERS.get(str(found.get("order", "")).removeprefix("CLOCK_ORDER_").lower(), "")
    return f"nothing was written: {there}{held}" + (f"; {known}" if known else "")


def _holder(lease: dict[str, Any]) -> str:
    where = f" in {lease['workflow']}" if lease.get("workflow") else ""
    return f"{lease.get('agent', '')}{where} until {lease.get('until', '')}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what readers would understand in two ways."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:64]!r} stands there twice")
        found[key] = value
    return found


def _read(file: Path | None) -> bytes:
    try:
        return sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None


def _told(work: Callable[[], None]) -> None:
    """Do it; whatever keeps the daemon from doing it is said in one line."""
    from meshd.cli.api_client import ApiProblem
    from meshd.config import ConfigError

    try:
        return work()
    except (ApiProblem, ConfigError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
