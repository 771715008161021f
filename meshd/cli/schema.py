"""`meshd schema`: the JSON Schema of policy documents, for editors."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of policy documents.

    Editors that speak the YAML language server read it from a document's first line:
    `# yaml-language-server: $schema=schema.json`
    """
    from meshd.policy.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
