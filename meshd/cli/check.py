"""`meshd check`: every problem of policy documents, by line and column."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sized

    from meshd.policy.compiled import Policy
    from meshd.policy.problem import Problem
    from meshd.upstream import Upstream


def policy_options(function: Any) -> Any:
    """Add the options that change how a document is read; `check`, `explain` and `run` share them."""
    for option in (
        click.option("--accept-unenforced", is_flag=True, help="Load keys that this build knows and does not enforce."),
        click.option(
            "--upstream",
            "upstreams",
            multiple=True,
            metavar="NAME=URL[,dialect=D]",
            help="Add an upstream, or change the address of one.",
        ),
    ):
        function = option(function)
    return function


@click.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=str), metavar="FILE...")
@policy_options
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document in place of lines.")
@click.pass_context
def command(
    ctx: click.Context, files: tuple[str, ...], accept_unenforced: bool, upstreams: tuple[str, ...], is_json: bool
) -> None:
    """Name every problem of policy documents, as FILE:LINE:COLUMN: MESSAGE.

    Several files, or a directory with *.yaml files, are one policy: their upstreams are united and their rules
    follow each other. Exits with 0 where the policy loads, with 1 where it does not. Warnings go to standard error
    and change nothing.

    \b
    Examples:
      meshd check policy.yaml
      meshd check team.yaml agents.d
      meshd check --json policy.yaml
    """
    from meshd.policy.document import LoadError, Overrides, load

    try:
        policy = load(files, accept_unenforced=accept_unenforced, overrides=Overrides(upstreams=upstreams))
    except LoadError as error:
        if is_json:
            click.echo(json.dumps({"ok": False, "problems": [problem_fields(p) for p in error.problems]}, indent=2))
        else:
            for problem in error.problems:
                click.echo(str(problem))
            click.echo(_counted(error.problems, "problem"), err=True)
        ctx.exit(1)
    if is_json:
        click.echo(json.dumps({"ok": True, "problems": [], **policy_fields(policy)}, indent=2))
        return
    for warning in policy.warnings:
        click.echo(f"warning: {warning}", err=True)
    counts = (
        _counted(policy.upstreams, "upstream"),
        _counted(policy.rules, "rule"),
        _counted(policy.warnings, "warning"),
    )
    click.echo(f"{policy.source}: fine. {', '.join(counts)}")


def _counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def problem_fields(problem: Problem) -> dict[str, object]:
    """Return a problem as JSON has it."""
    return problem._asdict()


def _upstream_fields(upstream: Upstream) -> dict[str, object]:
    fields: dict[str, object] = {"kind": upstream.kind.value, "dialect": upstream.dialect, "url": upstream.url}
    if upstream.process is not None:
        from meshd.bridge.sandbox import words

        fields["confined"] = words(upstream.process)
    elif upstream.is_sse:
        fields["transport"] = "sse"
    return fields


def policy_fields(policy: Policy) -> dict[str, object]:
    """Return what `--json` says of a policy that loads."""
    return {
        "agent": policy.agent,
        "digest": policy.digest,
        "source": policy.source,
        "upstreams": {u.name: _upstream_fields(u) for u in policy.upstreams.values()},
        "rules": [rule.name for rule in policy.rules],
        "warnings": list(policy.warnings),
    }
