"""`meshd tokens`: what a budget would reserve for one request, and how that is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, BinaryIO

import click

from meshd.cli.explain import REQUEST_BYTES_MAX

if TYPE_CHECKING:
    from meshd.cli.tokens_reserved import Reserved

ROWS_MAX = 40
"""Texts that are listed one by one; `--json` lists all."""


@click.command("tokens")
@click.argument("request_file", type=click.File("rb"), metavar="FILE")
@click.option("--dialect", default="", metavar="NAME", help="FILE is a JSON body alone, in this dialect.")
@click.option("--operation", default="chat", show_default=True, help="What that body asks for, such as embeddings.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document in place of lines.")
def command(request_file: BinaryIO, dialect: str, operation: str, is_json: bool) -> None:
    """Say how many tokens a budget would reserve for the request in FILE, and how it knows. Nothing is sent.

    FILE is what `meshd explain` takes (one HTTP/1.1 request, or a JSON document with url and body), or with --dialect
    a bare JSON body; - is standard input. Caps and defaults are those of a budget that sets none.

    \b
    Examples:
      meshd tokens request.http
      echo '{"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}' |
        meshd tokens - --dialect openai

    Exits with 2 where FILE holds no request, with 1 where meshd would refuse it.
    """
    from meshd.cli.explain_request import RequestError
    from meshd.cli.explain_walk import text_of
    from meshd.cli.tokens_reserved import reserved
    from meshd.dialects.openai_paths import OPERATIONS
    from meshd.dialects.table import DIALECTS
    from meshd.refusal import Refused

    if dialect and dialect not in DIALECTS:
        raise click.UsageError(f"--dialect: {dialect!r} is none of {', '.join(DIALECTS)}")
    # Those of other dialects are among them. An unknown one would be bounded by the model's window alone.
    if operation not in (known := dict.fromkeys(OPERATIONS.values())):
        raise click.UsageError(f"--operation: {operation!r} is none of {', '.join(known)}")
    data = request_file.read(REQUEST_BYTES_MAX + 1)
    try:
        if len(data) > REQUEST_BYTES_MAX:
            raise RequestError(f"over {REQUEST_BYTES_MAX} bytes")
        found = reserved(data, dialect=dialect, operation=operation)
    except RequestError as error:
        raise click.UsageError(f"FILE: {error}") from None
    except Refused as refused:
        raise click.ClickException(text_of(refused)) from None
    click.echo(as_json(found) if is_json else as_text(found))


def as_text(found: Reserved) -> str:
    """Return the reservation as aligned lines."""
    from meshd.cli.tokens_reserved import window_of

    ask, counted = found.ask, found.counted
    rows = [
        ("request", f"{found.dialect} {ask.operation}, model {ask.model or '(none)'}, {found.body_bytes:,} bytes"),
        ("window", window_of(ask.model)),
        ("input", f"at most {ask.input_bound:,} tokens, by {ask.bound_by}"),
    ]
    if counted is not None:
        rows.append(("counted", f"{counted.total:,} tokens, with {counted.encoding}"))
        rows += [("", f"{tokens:>9,}  {label}") for label, tokens in counted.rows[:ROWS_MAX]]
        if len(counted.rows) > ROWS_MAX:
            rest = counted.rows[ROWS_MAX:]
            rows.append(("", f"{sum(tokens for _, tokens in rest):>9,}  {len(rest)} more"))
        rows.append(("", f"{counted.overhead:>9,}  around them: marks, priming, hidden prompts, images"))
    else:
        rows.append(("counted", f"no: {found.uncounted}"))
    if ask.has_output:
        cap = f"cap {found.cap:,}{'' if found.is_cap_set else ' (the default, since it sets none)'}"
        rows.append(("output", f"{ask.choices} x {cap} = {ask.choices * found.cap:,}"))
    else:
        rows.append(("output", "none is billed"))
    rows.append(("reserves", f"{found.bound:,} tokens"))
    if found.bound_counted is not None:
        rows.append(("", f"{found.bound_counted:,} where that does not fit into what is left"))
    return "\n".join(f"{name:<9} {text}".rstrip() for name, text in rows)


def as_json(found: Reserved) -> str:
    """Return the reservation as a JSON document."""
    from meshd.dialects.windows import window

    ask, counted = found.ask, found.counted
    return json.dumps(
        {
            "dialect": found.dialect,
            "operation": ask.operation,
            "model": ask.model,
            "body_bytes": found.body_bytes,
            "window": window(ask.model),
            "input_bound": ask.input_bound,
            "bound_by": ask.bound_by,
            "count": None
            if counted is None
            else {
                "encoding": counted.encoding,
                "tokens": counted.total,
                "overhead": counted.overhead,
                "texts": [{"text": label, "tokens": tokens} for label, tokens in counted.rows],
            },
            "not_counted": found.uncounted or None,
            "choices": ask.choices,
            "output_cap": found.cap if ask.has_output else 0,
            "reserves": found.bound,
            "reserves_counted": found.bound_counted,
        },
        indent=2,
    )
