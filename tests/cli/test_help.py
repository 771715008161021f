"""What `--help` says: every command has an example, and no summary is cut off."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from meshd.cli import main


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command under a group, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = list(commands(main))


def helped(*words: str) -> str:
    result = CliRunner().invoke(main, [*words, "--help"], catch_exceptions=False, terminal_width=80)
    assert result.exit_code == 0
    return result.stdout


def test_the_commands_of_groups_are_found_too() -> None:
    assert {("run",), ("budget",), ("budget", "top-up"), ("tools", "search")} <= set(ALL)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_an_example(words: tuple[str, ...]) -> None:
    text = helped(*words)
    assert "Example" in text
    assert f"meshd {' '.join(words)}" in " ".join(text.split("Example", 1)[1].split())


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_no_summary_is_cut_off(words: tuple[str, ...]) -> None:
    assert not [line for line in helped(*words).splitlines() if line.endswith("...") and not line.startswith("Usage")]
