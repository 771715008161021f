"""The document about the policy has every key, every well-known upstream, and examples that load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshd.cli import main
from meshd.policy.document import DocumentFile, parse
from meshd.policy.schema import json_schema, reference
from meshd.policy.upstreams import RESERVED_NAMES, WELL_KNOWN

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def test_the_tables_of_keys_are_fresh() -> None:
    assert TEXT.endswith(reference()), "print them again: meshd schema --markdown"


def test_every_key_of_the_schema_is_in_a_table_with_its_meaning() -> None:
    schema = json_schema()
    sections: list[dict[str, Any]] = [schema, *schema["$defs"].values()]
    for section in sections:
        for key in section["properties"]:
            rows = re.findall(rf"^\| `{key}` \|.*\| ([^|]+) \|$", TEXT, re.MULTILINE)
            assert rows, key
            assert all(len(row) > 8 for row in rows), key


def test_every_well_known_upstream_is_named() -> None:
    for name, (url, dialect) in WELL_KNOWN.items():
        assert f"| `{name}` | `{url}` | {dialect} |" in TEXT
    assert all(f"`{name}`" in TEXT for name in RESERVED_NAMES)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_its_examples_load(block: str) -> None:
    assert parse([DocumentFile("example", block.encode())]).rules


def test_its_example_of_explain_is_what_is_printed(tmp_path: Path) -> None:
    (request,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "call.json"
    path.write_text(request)
    policy = Path(__file__).parents[2] / "policies" / "shadow-first.yaml"
    arguments = ["explain", str(policy), str(path)]
    assert CliRunner(env={"COLUMNS": "112"}).invoke(main, arguments, catch_exceptions=False).stdout == said
