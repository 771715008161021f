"""The vocabularies that ship are the published ones, and nothing else is taken for them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings

import meshd.tokens
from meshd.tokens import vocabulary
from meshd.tokens.counter import Counter, whole
from meshd.tokens.vocabulary import VOCABULARIES, VocabularyError, read
from tests.tokens.texts import AWKWARD, ENCODINGS, encode, known_text, reference

DATA = Path(meshd.tokens.__file__).parent / "data"
of_each = pytest.mark.parametrize("encoding", ENCODINGS)


@of_each
def test_what_ships_is_what_was_published(encoding: str) -> None:
    lines = read(encoding).splitlines()
    assert len(lines) in (100_256, 199_998)
    assert lines[0] == b"IQ== 0"


def test_the_licence_lies_beside_the_files() -> None:
    assert {path.name for path in DATA.iterdir()} == {f"{name}.tiktoken.gz" for name in VOCABULARIES} | {
        "LICENSE.tiktoken"
    }
    assert "MIT License" in (DATA / "LICENSE.tiktoken").read_text()


@of_each
@given(text=known_text)
@settings(max_examples=150)
def test_another_implementation_finds_the_same_tokens(encoding: str, text: str) -> None:
    assert encode(encoding)(whole(text)) == reference(encoding)(whole(text))


@of_each
def test_awkward_texts_have_the_same_tokens_too(encoding: str) -> None:
    for text in AWKWARD:
        assert encode(encoding)(text) == reference(encoding)(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"IQ== 0\n", mtime=0), "not the published one"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"IQ== 0\n", mtime=0)[:-4], "cannot be read"),
        (None, "cannot be read"),
    ],
)
async def test_a_damaged_or_missing_file_is_named_and_its_models_are_not_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
    message: str,
) -> None:
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "cl100k_base.tiktoken.gz").write_bytes(content)
    monkeypatch.setattr(vocabulary, "files", lambda _package: tmp_path)
    with pytest.raises(VocabularyError, match=message):
        read("cl100k_base")
    counter = Counter()
    assert counter.count_here("cl100k_base", ["a text"]) is None
    assert counter.count_here("cl100k_base", ["another"]) is None
    assert [message in record.getMessage() for record in caplog.records] == [True], "said once"
