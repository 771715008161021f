"""`meshd exec`: run a program so that every call it makes is in one workflow, with no change to the program."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from meshd.cli.amounts import Dollars, Tokens
from meshd.running import Door

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshd.cli.exec_daemon import Place
    from meshd.mesh_key import MeshKeys
    from meshd.running import Running

EXIT_OWN_FAILURE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 125, 126, 127
_WORKFLOW = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_LOOPBACK = "127.0.0.1,localhost,::1"
_KEY_STAND_IN = "meshd-attaches-it"
_DOORS_DEFAULT = (
    Door("openai", "llm", "openai"),
    Door("anthropic", "llm", "anthropic"),
    Door("gemini", "llm", "gemini"),
    Door("ollama", "llm", "ollama"),
)
_VARIABLES = (
    ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    ("gemini", "GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"),
    ("ollama", "OLLAMA_HOST", "OLLAMA_API_KEY"),
)
"""By dialect: what its SDK reads its base URL from, which is the upstream's address as it stands, and its key."""

_HELP = """Run COMMAND with its LLM calls, and those to other agents and tools, going through meshd.

The base URLs that the SDKs of OpenAI, Anthropic, Gemini and Ollama read are set to an address of this run alone, so
that every call of the program and of its children is in one workflow. A daemon that runs already is used
(MESHD_LISTEN, or the one of the state directory); where none does, a private one is started and ends with the command.

The command keeps its standard streams, receives the signals that this process receives, and its exit code becomes
this one's (128 + n where signal n ended it; 127 where the command is not found, 126 where it cannot be run, 125
where meshd itself failed).

\b
Examples:
  meshd exec -- python agent.py
  meshd exec --budget 50k -- python agent.py --task report
  meshd exec --workflow nightly --budget 2M --dollars 5 -- ./nightly.sh
  meshd exec --policy strict.yaml -- node agent.js

\b
What is set:
  OPENAI_BASE_URL, OPENAI_API_BASE, ANTHROPIC_BASE_URL,
  GOOGLE_GEMINI_BASE_URL, OLLAMA_HOST
                                      for the LLM upstreams of the policy
  MESHD_URL_<NAME>                    for every upstream: MESHD_URL_WRITER for the agent `writer`
  MESHD_URL, MESHD_WORKFLOW           the address of the run, and its workflow
  MESHD_API, MESHD_CONTEXT            for the SDK: the API, and the context of the run
  NO_PROXY, no_proxy                  loopback added: a company's proxy cannot reach it
  HTTP_PROXY, http_proxy              with --proxy

Nothing is unforgeable within one user: a program that runs as you can read what you can read, the mesh key
included, and can call a provider directly if it has its key. This governs programs that do as their environment
says. Run the program as another user, or in a container without your keys, where that is not enough.
"""


class Limits(NamedTuple):
    """What a run may spend; None where the policy alone says it."""

    tokens: int | None = None
    microdollars: int | None = None


NO_LIMITS = Limits()


def _workflow(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and _WORKFLOW.match(value) is None:
        raise click.BadParameter("a name is 1 to 64 letters, digits, dots, dashes, underscores or colons")
    return value


@click.command("exec", help=_HELP, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option("--workflow", callback=_workflow, metavar="NAME", help="Workflow to join; a new one otherwise.")
@click.option(
    "--budget",
    type=Tokens(),
    metavar="TOKENS",
    help="Most tokens that its workflow may spend in all; where the policy says less, that holds.",
)
@click.option(
    "--dollars",
    type=Dollars(),
    metavar="AMOUNT",
    help="The same in US dollars, by the prices of the models.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Path(exists=True),
    metavar="FILE",
    help="Policy document, for a private daemon even where another runs.",
)
@click.option(
    "--store",
    metavar="URL",
    help="Engine of the store, for a private daemon even where another runs. A password is better in MESHD_STORE.",
)
@click.option("--proxy", "is_proxied", is_flag=True, help="Set HTTP_PROXY too: its calls are in no workflow.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    workflow: str | None,
    budget: int | None,
    dollars: int | None,
    policies: tuple[str, ...],
    store: str | None,
    is_proxied: bool,
    command: tuple[str, ...],
) -> None:
    """Run a command; exits with the command's own code."""
    limits = Limits(budget, dollars)
    sys.exit(execute(command, workflow=workflow, limits=limits, policies=policies, store=store, is_proxied=is_proxied))


def execute(
    command: Sequence[str],
    *,
    workflow: str | None = None,
    limits: Limits = NO_LIMITS,
    policies: Sequence[str] = (),
    store: str | None = None,
    is_proxied: bool = False,
) -> int:
    """Run a command through a daemon and return the exit code. Messages go to stderr."""
    from meshd.cli import exec_daemon, exec_signals
    from meshd.config import ConfigError, from_environment
    from meshd.mesh_key import MeshKeyError, MeshKeys

    if (code := _check_command(command[0])) != 0:
        return code
    try:
        config = from_environment(store=store)
        place = None if policies or store else exec_daemon.find(config, os.environ)
        with contextlib.ExitStack() as stack:
            if place is None:
                exec_signals.end_on_sigterm()
                place = stack.enter_context(exec_daemon.private(config, policies, workflow))
            run = workflow or f"run-{secrets.token_hex(6)}"
            # The daemon's: it would know nothing that is signed with another.
            keys = MeshKeys(config.mesh_key or place.home / (place.running.mesh_key or "mesh.key"), can_be_made=False)
            root = run_address(place, run, limits, keys)
            _announce(place, run, limits, root)
            environ = environment(os.environ, place.running, root, run, is_proxied=is_proxied)
            environ |= api_environment(place.running, run_token(place, run, limits, keys))
            try:
                code = exec_signals.run(command, environ)
            except OSError as error:
                _say(f"{command[0]} cannot be run: {error.strerror}")
                return EXIT_NOT_EXECUTABLE
            _tell_spending(place, run)
            return code
    except (ConfigError, MeshKeyError, exec_daemon.DaemonError) as error:
        _say(str(error))
        return EXIT_OWN_FAILURE
    except KeyboardInterrupt:
        return 130


def _check_command(name: str) -> int:
    if shutil.which(name) is not None:
        return 0
    is_there = Path(name).exists() if os.sep in name else False
    _say(f"{name}: {'it is there but cannot be run' if is_there else 'command not found'}")
    return EXIT_NOT_EXECUTABLE if is_there else EXIT_NOT_FOUND


def run_address(place: Place, workflow: str, limits: Limits, keys: MeshKeys) -> str:
    """Return the address of a run, without a slash at its end."""
    return f"http://{place.running.listen}/w/{run_token(place, workflow, limits, keys, is_address=True)}"


def run_token(place: Place, workflow: str, limits: Limits, keys: MeshKeys, *, is_address: bool = False) -> str:
    """Return the token of a run: for its address, or for the agent to show on what it does through the API."""
    from meshd.filters.minting import mint_run

    return mint_run(
        keys,
        workflow=workflow,
        agent=place.running.agent,
        wall_s=time.time(),
        nonce=secrets.token_bytes(8),
        ceiling=limits.tokens,
        ceiling_microdollars=limits.microdollars,
        is_address=is_address,
    )


def api_environment(running: Running, token: str) -> dict[str, str]:
    """Return what the SDK reads: where the API is, and the context that the run begins in."""
    made = {"MESHD_CONTEXT": token}
    if running.api:
        made["MESHD_API"] = running.api
    elif running.api_socket:
        made["MESHD_API"] = f"unix:{running.api_socket}"
    return made


def environment(
    environ: Mapping[str, str], running: Running, root: str, workflow: str, *, is_proxied: bool = False
) -> dict[str, str]:
    """Return the environment of a program whose calls go to `root`."""
    doors = running.doors or _DOORS_DEFAULT
    made = dict(environ, MESHD_URL=root, MESHD_WORKFLOW=workflow)
    for door in doors:
        made[f"MESHD_URL_{_variable(door.name)}"] = f"{root}/{door.name}"
    if (openai := _door_of(doors, "openai")) is not None:
        # The SDK's base URL ends in /v1, which meshd itself adds where the upstream's own URL does.
        version = "" if openai.base_path.endswith("/v1") else "/v1"
        made["OPENAI_BASE_URL"] = made["OPENAI_API_BASE"] = f"{root}/{openai.name}{version}"
        if openai.is_keyed:
            made.setdefault("OPENAI_API_KEY", _KEY_STAND_IN)
    for dialect, address, key in _VARIABLES:
        if (one := _door_of(doors, dialect)) is not None:
            made[address] = f"{root}/{one.name}"
            if one.is_keyed:
                made.setdefault(key, _KEY_STAND_IN)
    for name in ("NO_PROXY", "no_proxy"):
        made[name] = ",".join(filter(None, [environ.get(name), _LOOPBACK]))
    if is_proxied:
        made["HTTP_PROXY"] = made["http_proxy"] = f"http://{running.listen}"
    return made


def _variable(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def _door_of(doors: Sequence[Door], dialect: str) -> Door | None:
    """Return the LLM upstream of a dialect: the one that is named so, else the first."""
    fitting = [door for door in doors if door.kind == "llm" and door.dialect == dialect]
    return next((door for door in fitting if door.name == dialect), fitting[0] if fitting else None)


def _announce(place: Place, workflow: str, limits: Limits, root: str) -> None:
    amounts = [] if limits.tokens is None else [f"{limits.tokens:,} tokens"]
    if limits.microdollars is not None:
        from meshd.filters.units import dollars

        amounts.append(dollars(limits.microdollars))
    amount = f"at most {' and '.join(amounts)}" if amounts else "the policy's budget"
    whose = "a private daemon" if place.is_private else "the daemon that runs"
    # The address lets whoever has it spend from this workflow: logs get its beginning only.
    _say(f"workflow {workflow}, {amount}, at {root[: root.index('/w/') + 7]}... ({whose})")


def _tell_spending(place: Place, workflow: str) -> None:
    from meshd.cli.exec_ledger import spent

    tokens, money = spent(place, workflow), spent(place, workflow, is_money=True)
    amounts = [] if tokens is None else [f"{tokens:,} tokens"]
    if money is not None:
        from meshd.filters.units import dollars

        amounts.append(dollars(money))
    if amounts:
        _say(f"workflow {workflow} has spent {' and '.join(amounts)}")


def _say(message: str) -> None:
    click.echo(f"meshd: {message}", err=True)
