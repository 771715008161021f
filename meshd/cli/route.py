"""`meshd route`: whom a call goes to that only says what it wants, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from meshd.cli.approvals import _client, _shared, _told


@click.command("route")
@click.argument("words", metavar="TEXT", nargs=-1, required=True)
@click.option("--agent", default="", metavar="NAME", help="Who calls. [default: the agent here]")
@click.option(
    "--policy",
    "files",
    multiple=True,
    type=click.Path(path_type=str),
    metavar="FILE",
    help="Ask no daemon: look at this policy alone. May be given again.",
)
@click.option(
    "--compose",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Ask no daemon: look at the services of this compose file, by their labels that end in .intent.",
)
@_shared
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    agent: str,
    files: tuple[str, ...],
    compose: Path | None,
    is_json: bool,
    home: Path | None,
) -> None:
    """Say whom a call would go to that wants TEXT, and why: every candidate with its score, what it is passed over
    for, and the choice. Nothing is sent.

    \b
    Examples:
      meshd route "analyse the market for solar panels"
      meshd route --policy policy.yaml "refund a customer"
      meshd route --compose compose.yaml "technical audit" --json

    With --policy and --compose it is known what these say, and not what servers say of themselves, nor how they stand.
    The daemon is found as `meshd budget` finds it.
    """
    wanted = " ".join(words)

    def run() -> None:
        found = (
            _of_documents(ctx, wanted, agent, files, compose) if files or compose else _of_daemon(home, wanted, agent)
        )
        if is_json:
            click.echo(json.dumps(found, indent=2, ensure_ascii=False))
            return
        from meshd.cli.route_text import as_text

        click.echo(as_text(found))

    _told(run)


def _of_daemon(home: Path | None, wanted: str, agent: str) -> dict[str, Any]:
    query: dict[str, str | int] = {"q": wanted}
    if agent:
        query["agent"] = agent
    return _client(home).get("/v1/catalogue/route", **query)


def _of_documents(
    ctx: click.Context, wanted: str, agent: str, files: tuple[str, ...], compose: Path | None
) -> dict[str, Any]:
    from dataclasses import asdict

    from meshd.cli.compose import ComposeError, with_services
    from meshd.intent.resolver import alone
    from meshd.intent.showing import routed
    from meshd.policy.document import DocumentFile, LoadError, load, parse
    from meshd.refusal import Refused

    try:
        policy = load(files) if files else parse([DocumentFile(str(compose), b"agent: agent\n")])
        if compose is not None:
            policy = with_services(policy, compose.read_bytes(), str(compose))
        return asdict(routed(alone(policy), policy, wanted, agent))
    except LoadError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        ctx.exit(1)
    except (ComposeError, OSError) as error:
        raise click.ClickException(f"{compose}: {error}") from None
    except Refused as refused:
        raise click.UsageError(refused.message) from None
