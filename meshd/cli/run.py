"""`meshd run`: start the sidecar, say how to point an agent at it, and serve until told to end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.config import Config
    from meshd.daemon import Daemon

_VARIABLES = (("anthropic", "ANTHROPIC_BASE_URL"), ("gemini", "GOOGLE_GEMINI_BASE_URL"), ("ollama", "OLLAMA_HOST"))
"""By dialect: what its SDK reads its base URL from, which is the upstream's address as it stands."""
_SDK_URL, _SDK_API = "http://127.0.0.1:7400", "127.0.0.1:7402"
"""Where meshd_sdk looks for the sidecar, where no variable says otherwise."""

EPILOG = """\b
Examples:
  meshd run
  meshd run --policy policy.yaml
  meshd run --upstream local=http://127.0.0.1:8000,dialect=openai
  meshd run --app http://127.0.0.1:9000 --mesh-key /etc/meshd/mesh.key
  meshd run --store redis://redis.example:6379/0?password_file=/run/secrets/redis

\b
Then, for the SDKs of OpenAI, Anthropic, Gemini and Ollama:
  export OPENAI_BASE_URL=http://127.0.0.1:7400/openai/v1
  export ANTHROPIC_BASE_URL=http://127.0.0.1:7400/anthropic
  export GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:7400/gemini
  export OLLAMA_HOST=http://127.0.0.1:7400/ollama

\b
SIGHUP reads the policy anew, SIGTERM and Ctrl-C drain, a second one ends at once.
Settings come from the environment, too: MESHD_HOME, MESHD_POLICY, MESHD_LISTEN, MESHD_INBOUND, MESHD_APP,
MESHD_API, MESHD_ADMIN, MESHD_METRICS, MESHD_AGENT, MESHD_HOPS, MESHD_STORE, MESHD_BUS, MESHD_MESH_KEY,
MESHD_LABELS, MESHD_TLS_CERT, MESHD_TLS_KEY, MESHD_TRACE, MESHD_TRACE_KEEP, MESHD_TRACE_BYTES, MESHD_LOG,
MESHD_LOG_FORMAT, MESHD_OTLP_ENDPOINT, MESHD_SAMPLE_RATIO, MESHD_DRAIN, MESHD_LOOP; and EVENT_BUS_URL,
AGENT_ROLE, MAX_RECURSION_DEPTH for MESHD_BUS, MESHD_AGENT, MESHD_HOPS. docs/settings.md says what each means.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Policy document or directory; may be given again. [default: the packaged quickstart]",
)
@click.option("--listen", metavar="HOST:PORT", help="Where agents call. [default: 127.0.0.1:7400]")
@click.option("--api", metavar="HOST:PORT", help="The API for agents, or `off`. [default: 127.0.0.1:7402]")
@click.option(
    "--app",
    metavar="URL",
    help="The agent beside this sidecar, which takes inbound calls (7401); `session`: by the session that it opens.",
)
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME=URL[,dialect=D]",
    help="Add an upstream; may be given again.",
)
@click.option(
    "--store",
    metavar="URL",
    help="Engine of the store: redis://, nats://, postgres://, dynamodb://. [default: embedded, SQLite]",
)
@click.option(
    "--bus",
    metavar="URL",
    help="Engine of the bus: redis://, nats://, amqp://, kafka://. [default: embedded, SQLite]",
)
@click.option("--mesh-key", type=click.Path(path_type=Path), help="Keys that sign contexts. [default: made at start]")
@click.option("--agent", metavar="NAME", help="Name of the agent beside this sidecar. [default: the policy's]")
@click.option(
    "--trace", metavar="MODE", help="Keep the trace: fast, durable (waits for a sync), or off. [default: fast]"
)
@click.option("--accept-unenforced", is_flag=True, help="Take a policy that asks for what this build cannot enforce.")
@click.option("--quiet", is_flag=True, help="Print nothing but logs.")
def command(
    policies: tuple[Path, ...],
    listen: str | None,
    api: str | None,
    app: str | None,
    upstreams: tuple[str, ...],
    store: str | None,
    bus: str | None,
    mesh_key: Path | None,
    agent: str | None,
    trace: str | None,
    accept_unenforced: bool,
    quiet: bool,
) -> None:
    """Start the sidecar.

    With no argument: the packaged policy, the well-known LLM APIs as upstreams, and everything kept in the state
    directory.
    """
    # Imports make nothing but what stays; looking for garbage in it costs a tenth of the start.
    gc.disable()
    from meshd.config import ConfigError, from_environment, parse_address, parse_api
    from meshd.telemetry import logs

    try:
        said: dict[str, Any] = {"api": parse_api(api, "--api")} if api else {}
        config = from_environment(
            policy=policies or None,
            listen=parse_address(listen, "--listen") if listen else None,
            app=app,
            upstreams=upstreams or None,
            store=store,
            bus=bus,
            mesh_key=mesh_key,
            agent=agent,
            trace=trace,
            accept_unenforced=accept_unenforced or None,
            **said,
        )
        logs.set_up(config.log_level, form=config.log_format)
    except (ConfigError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    try:
        code = _run(serve(config, is_quiet=quiet), config)
    except KeyboardInterrupt:
        # Before it had handlers of its own, such as while a store is waited for: nothing was served.
        code = 130
    sys.exit(code)


def _run(main: Coroutine[Any, Any, int], config: Config) -> int:
    if config.loop == "asyncio":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


async def serve(config: Config, *, is_quiet: bool) -> int:
    """Start, serve and end one sidecar; return the exit code."""
    from meshd.daemon import Daemon, LoadError, MeshKeyError, StartError

    daemon = Daemon(config)
    loop = asyncio.get_running_loop()
    try:
        await daemon.start()
    except LoadError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        click.echo("meshd: the policy was not taken; nothing was started", err=True)
    except (StartError, MeshKeyError) as error:
        click.echo(f"meshd: {error}", err=True)
    else:
        _handle_signals(loop, daemon)
        if not is_quiet:
            click.echo(banner(daemon))
        await daemon.serve()
        return 0
    await daemon.close()
    return 1


def _handle_signals(loop: asyncio.AbstractEventLoop, daemon: Daemon) -> None:
    is_ending = False

    def end() -> None:
        nonlocal is_ending
        if is_ending:
            # Exits without the books being closed: they are as safe as after a kill, which they survive.
            os._exit(130)
        is_ending = True
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    reloads: set[asyncio.Task[Any]] = set()

    def reload() -> None:
        task = loop.create_task(daemon.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)


def banner(daemon: Daemon) -> str:
    """Return what is printed at start: where to point an agent, what governs it, where to look."""
    policy = daemon.reloader.policy
    base = f"http{'s' if daemon.config.tls_cert else ''}://{daemon.listen}"
    assert daemon.servers is not None
    lines = [f"meshd is ready at {base}  (policy {policy.source})", "", "Point an agent at it:"]
    for name, upstream in policy.upstreams.items():
        if upstream.dialect == "openai" and upstream.kind.value == "llm":
            lines.append(f"  export OPENAI_BASE_URL={base}/{name}{'' if upstream.base_path.endswith('/v1') else '/v1'}")
            break
    for dialect, variable in _VARIABLES:
        named = next((name for name, upstream in policy.upstreams.items() if upstream.dialect == dialect), None)
        if named is not None:
            lines.append(f"  export {variable}={base}/{named}")
    if base != _SDK_URL:
        lines.append(f"  export MESHD_URL={base}  # where meshd_sdk.instrument() carries contexts to")
    if policy.gateway is not None:
        lines.append(f"  MCP clients: {base}/{policy.gateway.name}  # the tools of all MCP servers")
    agents = [name for name, upstream in policy.upstreams.items() if upstream.kind.value == "agent"]
    if agents:
        lines.append(f"  other agents: {base}/{agents[0]}/... by name, {base}/intent/<words>/... by what is wanted")
    lines += [
        "or let it be set up for one run:  meshd exec -- python agent.py",
        f"Upstreams: {', '.join(policy.upstreams) or 'none'}",
    ]
    if daemon.inbound is not None:
        lines.append(f"Inbound calls for {daemon.config.app}: {daemon.inbound}")
    config, servers = daemon.config, daemon.servers
    if daemon.ledger_problem is not None:
        lines.append(f"NO BUDGET CAN BE KEPT, so calls under one are refused until it can: {daemon.ledger_problem}")
    elif config.store:
        from meshd.engines.url import shown

        lines.append(f"Budgets are kept in {shown(config.store)}")
    if config.bus:
        from meshd.engines.url import shown

        lines.append(f"Events are kept in {shown(config.bus)}")
    if daemon.door is not None and daemon.door.address is not None:
        known = (
            "" if str(daemon.door.address) == _SDK_API else f"  (export MESHD_API={daemon.door.address} for the SDK)"
        )
        lines.append(f"API for agents that speak it: {daemon.door.address}{known}")
    lines += [
        f"Metrics and health: http://{config.metrics.host}:{servers.metrics_port}/metrics",
        f"Admin: http://{config.admin.host}:{servers.admin_port} (token in {servers.token_path})",
        "Ctrl-C drains and ends.",
    ]
    return "\n".join(lines)
