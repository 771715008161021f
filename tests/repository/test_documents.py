"""What the documents tell a reader to type exists, and what they point at is there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.repository.tree import ROOT, name_of, tracked

README = (ROOT / "README.md").read_text()
TARGETS = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]


def shell_lines(text: str) -> list[str]:
    """Return the commands of a document's sh blocks, one per line, without prompts and comments."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").split(" #")[0].strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def links(text: str) -> list[str]:
    """Return the targets of links that point into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [unquote(link.split("#")[0]) for link in found if not re.match(r"[a-z]+:|#", link)]


def test_make_targets_of_the_readme_exist() -> None:
    named = {word for line in shell_lines(README) for word in re.findall(r"\bmake ([a-z]+)", line)}
    assert {"demo", "test"} <= named
    assert named <= TARGETS


def test_meshd_commands_of_the_readme_exist() -> None:
    import click

    from meshd.cli import main

    named = {hit for line in shell_lines(README) for hit in re.findall(r"(?:^|/)meshd ([a-z]+)", line)}
    assert {"run", "exec", "check"} <= named
    assert named <= set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    missing = [link for link in links(document.read_text()) if not (document.parent / link).exists()]
    assert missing == []


def test_every_document_is_listed() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    written = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in written if f"({name})" not in index} == set()


@pytest.mark.parametrize("example", ["research", "trading"])
def test_every_program_of_an_example_is_among_its_commands(example: str) -> None:
    folder = ROOT / "examples" / example
    programs = {path.name for path in folder.glob("*.py") if "__main__" in path.read_text()}
    commands = "\n".join(shell_lines((folder / "README.md").read_text()))
    assert {name for name in programs if f"python examples/{example}/{name}" not in commands} == set()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_policies_of_the_readme_load_as_they_stand(text: str, tmp_path: Path) -> None:
    from meshd.policy.document import load

    document = tmp_path / "policy.yaml"
    document.write_text(text)
    assert load([document]).digest


def test_the_readme_is_read_in_some_minutes() -> None:
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(prose.split()) <= 1300, "five minutes; what is longer belongs into docs/"


def test_every_reason_is_listed_with_its_status() -> None:
    from meshd.refusal import TABLE, Reason

    table = (ROOT / "docs" / "refusals.md").read_text()
    cells = [cell.strip() for line in table.splitlines() if line.startswith("| `") for cell in line.split("|")[1:-1]]
    said: dict[str, int] = {}
    for names, statuses in itertools.pairwise(cells):
        if names.startswith("`"):
            reasons, numbers = re.findall(r"`(\w+)`", names), [int(number) for number in statuses.split(",")]
            said |= dict(zip(reasons, numbers * len(reasons) if len(numbers) == 1 else numbers, strict=True))
    assert said == {reason.value: TABLE[reason].status for reason in Reason}
