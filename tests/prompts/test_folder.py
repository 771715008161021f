"""Prompts as files: read, labelled, looked at again, and whatever else stands in a folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshd.engines.memory import MemoryStore
from meshd.prompts.choosing import Unresolved
from meshd.prompts.document import DocumentError, read_prompt
from meshd.prompts.folder import read_folder
from meshd.prompts.record import made
from meshd.prompts.reference import read_reference
from meshd.prompts.registry import Registry, Where
from meshd.prompts.template import TEXT_BYTES_MAX
from meshd.prompts.terms import PromptTerms

HEAD = "---\nauthor: Ana\nnotes: Shorter.\nmodels: [gpt-4o]\n---\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "prompts"
    for version, text in (("1.2.0", HEAD + "Summarise {{topic}}.\n"), ("1.3.0", "Summarise {{topic}} well.\n")):
        put(root, f"summarise/{version}.md", text)
    put(root, "summarise/labels.yaml", "production: 1.2.0\nstaging: {1.2.0: 90, 1.3.0: 10}\n")
    put(root, ".git/HEAD", "ref: x")
    put(root, "README.txt", "hello")
    return root


def put(root: Path, name: str, text: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_what_stands_in_a_folder(folder: Path) -> None:
    found = read_folder(str(folder))
    assert found.problems == []
    head = found.heads["summarise"]
    assert list(head.versions) == ["1.2.0", "1.3.0"]
    assert head.labels == {"production": {"1.2.0": 1}, "staging": {"1.2.0": 90, "1.3.0": 10}}
    prompt = found.prompts["summarise", "1.2.0"]
    assert (prompt.text, prompt.author, prompt.notes, prompt.models) == (
        "Summarise {{topic}}.", "Ana", "Shorter.", ("gpt-4o",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "at", "word"),
    [
        ("summarise/1.4.0.md", "{{", "1.4.0.md:1:1: ", "begins no variable"),
        ("summarise/1.4.0.md", HEAD + "one\ntwo {{x y}}", "1.4.0.md:7:5: ", "begins no variable"),
        ("summarise/1.4.0.md", "", "1.4.0.md:1:1: ", "has a text"),
        ("summarise/1.4.0.md", "---\nauthor: Ana\n", "1.4.0.md:1:1: ", "ends with such a line"),
        ("summarise/1.4.0.md", "---\nauthor: [\n---\nx", "1.4.0.md:", "not YAML"),
        ("summarise/1.4.0.md", "---\nauthor: 7\n---\nx", "1.4.0.md:2:9: ", "author"),
        ("summarise/1.4.0.md", "---\nautor: Ana\n---\nx", "1.4.0.md:2:1: ", "autor"),
        ("summarise/1.4.0.md", "---\n- a\n---\nx", "1.4.0.md:2:1: ", "object"),
        ("summarise/1.4.0.md", "---\nauthor: " + "a" * 200 + "\n---\nx", "1.4.0.md:1:1: ", "author has 200"),
        ("summarise/1.4.0.md", '---\nauthor: "a\\e[31m"\n---\nx', "1.4.0.md:1:1: ", "author has a character"),
        ("summarise/1.4.0.md", '---\nauthor: "a\\nb"\n---\nx', "1.4.0.md:1:1: ", "author has a character"),
        ("summarise/1.4.0.md", '---\nnotes: "a\\e]0;x"\n---\nx', "1.4.0.md:1:1: ", "notes have a character"),
        ("summarise/1.4.0.md", '---\nmodels: ["a\\tb"]\n---\nx', "1.4.0.md:1:1: ", "models have a character"),
        ("summarise/1.4.0.md", b"a\n\xff", "1.4.0.md:2:1: ", "UTF-8"),
        ("summarise/1.4.0.md", "x" * (TEXT_BYTES_MAX + 1), "1.4.0.md:1:1: ", "bytes"),
        ("summarise/1.4.0.md", "x" * (2 * TEXT_BYTES_MAX), "1.4.0.md:1:1: ", "bytes"),
        ("summarise/1.4.md", "x", "1.4.md:1:1: ", "no version"),
        ("summarise/labels.yaml", "production: 9.9.9", "labels.yaml:1:1: ", "no version 9.9.9"),
        ("summarise/labels.yaml", "production: {1.2.0: 0}", "labels.yaml:1:1: ", "share"),
        ("summarise/labels.yaml", "staging: 1.2.0\nproduction: 9.9.9", "labels.yaml:2:1: ", "no version 9.9.9"),
        ("summarise/labels.yaml", "a: 1.2.0\nproduction: {1.2.0: 1, 1.2.0: 99}", "labels.yaml:2:24: ", "twice"),
        ("summarise/labels.yaml", "a: 1.2.0\na: 1.3.0", "labels.yaml:2:1: ", "'a' stands there twice"),
        ("summarise/1.4.0.md", "---\nnotes: b\nauthor: a\nauthor: b\n---\nx", "1.4.0.md:4:1: ", "'author' stands"),
        ("summarise/labels.yaml", "v1: 1.2.0", "labels.yaml:1:1: ", "no label"),
        ("summarise/labels.yaml", "production: 1.2", "labels.yaml:1:1: ", "production"),
        ("summarise/labels.yaml", "a: b: c", "labels.yaml:1:5: ", "not YAML"),
        ("Bad Name/1.0.0.md", "x", "Bad Name:1:1: ", "no name"),
    ],
)
def test_what_is_wrong_is_left_out_and_said(folder: Path, name: str, text: str | bytes, at: str, word: str) -> None:
    put(folder, name, text)
    found = read_folder(str(folder))
    (problem,) = found.problems
    assert at in problem
    assert word in problem
    assert list(found.heads["summarise"].versions) == ["1.2.0", "1.3.0"], "the others are there"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = read_folder(str(tmp_path / "none"))
    assert found.heads == {}
    assert "cannot be read" in found.problems[0]


def test_lines_of_windows_are_lines() -> None:
    prompt = read_prompt(b"---\r\nauthor: Ana\r\n---\r\nSay\r\nit.\r\n", "a", "1.0.0")
    assert (prompt.text, prompt.author) == ("Say\nit.", "Ana")


def test_notes_may_have_lines() -> None:
    prompt = read_prompt(b"---\nauthor: Zo\xc3\xab \xf0\x9f\x90\x9d\nnotes: |\n  a\n  \tb\n---\nx", "a", "1.0.0")
    assert (prompt.author, prompt.notes) == ("Zoë 🐝", "a\n\tb")


def test_a_yaml_bomb_is_no_prompt() -> None:
    bomb = "---\na0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)) + "---\nx"
    with pytest.raises(DocumentError):
        read_prompt(bomb.encode(), "a", "1.0.0")


async def test_a_folder_goes_before_the_store_and_is_looked_at_again(folder: Path) -> None:
    store = MemoryStore()
    registry = Registry(lambda: store)
    await registry.shelf.add("", made("summarise", "5.0.0", "of the store"))
    await registry.shelf.add("", made("other", "5.0.0", "of the store"))
    where = Where(PromptTerms(str(folder)), "", "wf-1")

    async def version(text: str, workflow: str = "wf-1") -> str:
        reference = read_reference(text)
        assert reference is not None
        return (await registry.resolve(where._replace(workflow=workflow), reference)).prompt.version

    assert await version("prompt://summarise@^1") == "1.3.0"
    assert await version("prompt://other@^5") == "5.0.0"
    with pytest.raises(Unresolved, match=r"no version that fits \^5; it has: 1\.3\.0, 1\.2\.0"):
        await version("prompt://summarise@^5")
    put(folder, "summarise/1.9.0.md", "Anew.")
    async with asyncio.timeout(30):
        while await version("prompt://summarise@^1", "") != "1.9.0":
            await asyncio.sleep(0.05)
    assert await version("prompt://summarise@^1") == "1.3.0", "the workflow keeps to it"
    assert await version("prompt://summarise@^1", "wf-2") == "1.9.0"
    put(folder, "summarise/1.3.0.md", "Another text.")
    with pytest.raises(Unresolved, match="another text") as caught:  # noqa: PT012
        async with asyncio.timeout(30):
            while True:
                await version("prompt://summarise@^1")
                await asyncio.sleep(0.05)
    assert caught.value.is_gone
    (folder / "summarise/1.3.0.md").unlink()
    with pytest.raises(Unresolved, match="there no more"):  # noqa: PT012
        async with asyncio.timeout(30):
            while True:
                try:
                    await version("prompt://summarise@^1")
                except Unresolved as error:
                    if "another text" not in str(error):
                        raise
                await asyncio.sleep(0.05)
    await registry.close()
