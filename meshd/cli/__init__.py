"""The command line. A command's module is imported when the command is run, and not before."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import click

DISTRIBUTION = "agent-meshd"


class Entry(NamedTuple):
    """Where a command is, and what the list of commands says of it."""

    module: str
    attribute: str
    summary: str


COMMANDS: dict[str, Entry] = {
    "run": Entry("meshd.cli.run", "command", "Start the sidecar; with no argument, on its packaged policy."),
    "exec": Entry("meshd.cli.exec", "command", "Run a program with all its calls in one workflow."),
    "budget": Entry("meshd.cli.budget", "command", "Show the accounts of a running daemon, top them up, close them."),
    "approvals": Entry("meshd.cli.approvals", "command", "Show what people are asked to allow, and decide on it."),
    "trace": Entry("meshd.cli.trace", "command", "Show what a workflow did, verify it, replay it, export it."),
    "tools": Entry(
        "meshd.cli.catalogue", "tools", "Show the tools that can be called, search them, approve changed ones."
    ),
    "agents": Entry("meshd.cli.catalogue", "agents", "Show the agents that can be called, and what they can do."),
    "prompts": Entry("meshd.cli.prompts", "command", "Keep prompts: add versions, test them, move labels, roll back."),
    "route": Entry("meshd.cli.route", "command", "Say which agent serves what somebody wants, and why."),
    "events": Entry("meshd.cli.events", "command", "Show topics, groups and dead letters; publish, follow, redrive."),
    "state": Entry("meshd.cli.state", "command", "Read and write what agents share, as one of them."),
    "check": Entry("meshd.cli.check", "command", "Name every problem of policy documents, by line and column."),
    "explain": Entry("meshd.cli.explain", "command", "Say what each filter would do with a request, and why."),
    "tokens": Entry("meshd.cli.tokens", "command", "Say how many tokens a request would reserve, and how it is known."),
    "schema": Entry("meshd.cli.schema", "command", "Print the JSON Schema of policy documents."),
}


class Commands(click.Group):
    """A group that imports a command's module only to run it: `--help` stays quick, and loads no server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None where there is none of this name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command), f"{entry.module}.{entry.attribute} is not a command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _is_compiled() -> bool:
    """Say whether the way of a call was compiled when this was installed (hatch_build.py), without importing it."""
    found = importlib.util.find_spec("meshd.call")
    return found is not None and not str(found.origin).endswith(".py")


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        click.echo(f"meshd {version(DISTRIBUTION)} ({'compiled' if _is_compiled() else 'pure Python'})")
    except PackageNotFoundError:
        click.echo("meshd, not installed as a distribution")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
def main() -> None:
    """The sidecar of an AI agent: budgets, hop limits, breakers and traces on every call that it makes.

    Begin with `meshd run`, or `meshd exec -- python agent.py`.
    """
