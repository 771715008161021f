"""Which models can be counted: as the library's own map has it, for the vocabularies that ship."""

from __future__ import annotations

import pytest
from tiktoken import model as published

from meshd.tokens.encodings import CL100K, O200K, encoding_of, is_open

OURS = {CL100K: CL100K, O200K: O200K, "o200k_harmony": O200K}


def test_every_model_of_the_published_map_has_its_encoding() -> None:
    for name, encoding in published.MODEL_TO_ENCODING.items():
        assert encoding_of(name) == OURS.get(encoding, ""), name


def test_every_prefix_of_the_published_map_has_its_encoding() -> None:
    for prefix, encoding in published.MODEL_PREFIX_TO_ENCODING.items():
        # `gpt-5` is a prefix there, and would take in a `gpt-50`.
        name = prefix + (":org::x" if prefix.startswith("ft:") else "-x" if prefix[-1].isalnum() else "x")
        assert encoding_of(name) == OURS[encoding], name


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("openai/gpt-4o", O200K),
        ("ft:gpt-4o-mini:org::abc", O200K),
        ("gpt-5.6-sol", O200K),
        ("gpt-oss:20b", O200K),
        ("gpt-50", ""),
        ("gpt-6-luna", ""),
        ("gpt-4", CL100K),
        ("gpt-45", ""),
        ("claude-opus-5-5", ""),
        ("gemini-2.5-pro", ""),
        ("llama3.1:8b", ""),
        ("text-davinci-003", ""),
        ("", ""),
        ("o1" * 5000, ""),
        ("\ud800", ""),
    ],
)
def test_other_names(model: str, encoding: str) -> None:
    assert encoding_of(model) == encoding


def test_open_models_are_served_by_anyone() -> None:
    assert is_open("gpt-oss-120b")
    assert is_open("openai/gpt-oss:20b")
    assert not is_open("gpt-4o")
