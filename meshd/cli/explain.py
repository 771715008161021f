"""`meshd explain`: what each filter would do with one request, and why."""

from __future__ import annotations

import asyncio
import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from meshd.cli.check import policy_options

if TYPE_CHECKING:
    from meshd.cli.explain_walk import Explained

WIDTH_MIN = 60
REQUEST_BYTES_MAX = 64 * 2**20


@click.command("explain")
@click.argument("file", type=click.Path(path_type=str))
@click.argument("request_file", type=click.File("rb"), metavar="REQUEST")
@policy_options
@click.option("--agent", default="", metavar="NAME", help="Who calls. [default: the policy's agent]")
@click.option("--inbound", "is_inbound", is_flag=True, help="The call comes in to the agent (7401) from another one.")
@click.option("--mesh-key", type=click.Path(path_type=Path), help="Keys to verify the request's context token with.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document in place of lines.")
@click.pass_context
def command(
    ctx: click.Context,
    file: str,
    request_file: BinaryIO,
    accept_unenforced: bool,
    upstreams: tuple[str, ...],
    agent: str,
    is_inbound: bool,
    mesh_key: Path | None,
    is_json: bool,
) -> None:
    """Say what each filter would do with REQUEST under the policy FILE, and why. Nothing is sent.

    \b
    Examples:
      meshd explain policy.yaml request.http
      meshd explain policy.yaml call.json --agent researcher

    REQUEST is a file (or - for standard input) with one HTTP/1.1 request, or with a JSON document:

    \b
      {"method": "POST", "url": "/openai/v1/chat/completions",
       "headers": {"x-meshd-workflow": "report-7"},
       "body": {"model": "gpt-4o", "messages": []}, "agent": "researcher"}

    Accounts begin empty and breakers closed. Exits with 0 where the question could be answered, whatever the answer;
    with 1 where the policy does not load, with 2 where REQUEST holds no request.
    """
    from meshd.cli.explain_request import RequestError, read_request
    from meshd.cli.explain_walk import Explained, Step, explain, text_of
    from meshd.mesh_key import MeshKeyError
    from meshd.policy.document import LoadError, Overrides, load
    from meshd.refusal import Refused

    try:
        policy = load(
            [file], accept_unenforced=accept_unenforced, overrides=Overrides(upstreams=upstreams, agent=agent)
        )
    except LoadError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        ctx.exit(1)
    data = request_file.read(REQUEST_BYTES_MAX + 1)
    try:
        if len(data) > REQUEST_BYTES_MAX:
            raise RequestError(f"over {REQUEST_BYTES_MAX} bytes")
        asked = read_request(data, policy.limits)
        explained = asyncio.run(explain(policy, asked, is_inbound=is_inbound, agent=agent, mesh_key=mesh_key))
    except (RequestError, MeshKeyError) as error:
        raise click.UsageError(f"REQUEST: {error}") from None
    except Refused as refused:
        explained = Explained([Step("wire", "refuse", text_of(refused))], refused, None)
    click.echo(as_json(explained) if is_json else as_text(explained, shutil.get_terminal_size().columns))


def as_text(explained: Explained, columns: int) -> str:
    """Return the steps as aligned lines, folded to a terminal's width, and the end of the matter below."""
    name_width = max(len(step.name) for step in explained.steps)
    verdict_width = max(len(step.verdict) for step in explained.steps)
    indent = name_width + verdict_width + 4
    lines = []
    for step in explained.steps:
        head = f"{step.name:<{name_width}}  {step.verdict:<{verdict_width}}  "
        folded = textwrap.wrap(step.text, max(columns, WIDTH_MIN) - indent, break_on_hyphens=False) or [""]
        lines += [f"{head}{folded[0]}", *(" " * indent + more for more in folded[1:])]
    lines += ["", _verdict(explained)]
    return "\n".join(line.rstrip() for line in lines)


def _verdict(explained: Explained) -> str:
    from meshd.proxy.forwarding import path_to_send
    from meshd.refusal import Refused
    from meshd.telemetry import redact

    refused = explained.refused
    if refused is not None:
        return f"The call is refused: {refused.status} {refused.reason.value}."
    call = explained.call
    if call is None or call.upstream is None:
        return "The call is answered by meshd."
    try:
        path = path_to_send(call, b"" if call.upstream.key_header is not None else None)
    except Refused as sealed:
        return f"The call is refused: {sealed.status} {sealed.reason.value}: {sealed.message}"
    if call.upstream.process is not None:
        from meshd.bridge.sandbox import words

        where = f"the server that meshd starts: {redact.text(call.upstream.process.command[0])}, "
        where += words(call.upstream.process)
        if any(step.verdict == "hold" for step in explained.steps):
            return f"The call waits until a person has allowed it, and then goes to {where}."
        return f"The call goes to {where}."
    address = redact.text(f"{call.upstream.scheme}://{call.upstream.authority.decode()}{path}")
    if any(step.verdict == "hold" for step in explained.steps):
        return f"The call waits until a person has allowed it, and then goes to {address}."
    return f"The call goes to {address}."


def as_json(explained: Explained) -> str:
    """Return the steps and the end of the matter as a JSON document."""
    call, refused = explained.call, explained.refused
    context = call.context if call is not None else None
    return json.dumps(
        {
            "result": "refuse" if refused is not None else "pass",
            "status": refused.status if refused is not None else None,
            "reason": refused.reason.value if refused is not None else None,
            "rule": refused.rule if refused is not None else None,
            "steps": [step._asdict() for step in explained.steps],
            "target": None
            if call is None
            else {"kind": call.target.kind.value, "name": call.target.name, "model": call.target.model},
            "agent": call.agent if call is not None else None,
            "workflow": context.workflow if context is not None else None,
            "rules": list(call.plan.rules) if call is not None and call.plan is not None else [],
        },
        indent=2,
    )
