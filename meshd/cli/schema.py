"""`meshd schema`: the JSON Schema of policy documents, for editors."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.option("--markdown", "is_markdown", is_flag=True, help="Print tables of every key for people instead.")
def command(is_markdown: bool) -> None:
    """Print the JSON Schema of policy documents.

    Editors that speak the YAML language server read it from a document's first line:
    `# yaml-language-server: $schema=schema.json`

    \b
    Example:
      meshd schema > schema.json
    """
    from meshd.policy.schema import json_schema, reference

    click.echo(reference() if is_markdown else json.dumps(json_schema(), indent=2) + "\n", nl=False)
