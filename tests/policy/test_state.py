"""What a document says of shared state."""

from __future__ import annotations

import pytest

from meshd.policy.document import DocumentFile, LoadError, parse


def test_what_it_says_is_compiled() -> None:
    text = b"state: {mesh_readers: ['*'], mesh_writers: ['ann', 'team-*'], value_max: 64kB, history: 4}\n"
    section = parse([DocumentFile("x", text)]).state
    assert section is not None
    assert (section.mesh_writers, section.value_max, section.history) == (("ann", "team-*"), 64_000, 4)
    plain = parse([DocumentFile("x", b"agent: ann\n")]).state
    assert plain is not None
    assert (plain.mesh_writers, plain.value_max, plain.history) == (("*",), 2**20, 16)


@pytest.mark.parametrize(
    "line", ["value_max: 4MB", "value_max: 0", "history: 0", "history: 65", "mesh_writers: [1]", "planet_writers: []"]
)
def test_what_makes_no_sense_is_refused_by_line_and_column(line: str) -> None:
    with pytest.raises(LoadError, match=r"x:2:\d+"):
        parse([DocumentFile("x", f"state:\n  {line}\n".encode())])
