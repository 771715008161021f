"""What is cut of a result, whatever is in it: never more than the limit, half a character, or another shape."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.dialects.json_pairs import read_object
from meshd.gateway.clipping import BLOCK_BYTES, BLOCKS_MAX, DEPTH_MAX, NOTES_MAX, clip, text_of
from meshd.gateway.results import Kept, Owner, Results, contents_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text("abc", max_size=9), inner, max_size=8),
    max_leaves=60,
)


def clipped(result: Any, tokens_max: int) -> Any:
    return clip(read_object(json.dumps(result).encode(), "the result"), tokens_max)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    return type(value)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=12), st.integers(1, 200))
def test_texts_are_cut_at_a_character(texts: list[str], tokens_max: int) -> None:
    result = {"content": [{"type": "text", "text": one} for one in texts]}
    found = clipped(result, tokens_max)
    room = tokens_max * 4
    if found is None:
        assert sum(len(one.encode()) + BLOCK_BYTES for one in texts) <= room + BLOCK_BYTES
        return
    kept = [json.loads(one)["text"] for one in found.content]
    assert sum(len(one.encode()) for one in kept) <= room
    assert all(whole.startswith(one) for one, whole in zip(kept, texts, strict=False))
    whole = text_of(read_object(json.dumps(result).encode(), "the result"))
    # What is read on from there is just what is not shown.
    assert whole[: found.shown_to].rstrip("\n") == "\n".join(kept).rstrip("\n")
    assert found.left_out > 0


@settings(deadline=None)
@given(JSON, st.integers(1, 60))
def test_structured_content_keeps_its_shape_or_goes(value: Any, tokens_max: int) -> None:
    found = clipped({"structuredContent": {"value": value}}, tokens_max)
    if found is None or found.structured is None:
        return
    assert len(found.structured) <= tokens_max * 4
    assert shape(json.loads(found.structured)) == shape({"value": value})


def test_the_first_rows_of_a_long_list_stay_whole() -> None:
    rows = [{"id": number, "text": "é\n" * 10} for number in range(100)]
    found = clipped({"structuredContent": {"rows": rows, "total": 100}}, 200)
    kept = json.loads(found.structured)
    assert kept["total"] == 100
    assert len(kept["rows"]) > 5
    assert kept["rows"][:-1] == rows[: len(kept["rows"]) - 1]


@pytest.mark.parametrize(
    "value",
    [{str(number): number for number in range(1000)}, {"n" * 900: 1}],
)
def test_what_has_no_shorter_shape_goes(value: Any) -> None:
    assert clipped({"structuredContent": value}, 50).structured is None


@pytest.mark.parametrize("depth", [DEPTH_MAX + 5, 600, 5000])
@pytest.mark.parametrize(("opened", "closed"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_an_abyss_is_no_crash(depth: int, opened: bytes, closed: bytes) -> None:
    deep = msgspec.Raw(opened * depth + b'"' + b"x" * 999 + b'"' + closed * depth)
    found = clip({"structuredContent": deep}, 50)
    assert found is not None
    assert found.structured is None or len(found.structured) <= 200


def test_a_million_blocks_are_not_a_million_notes() -> None:
    empty = {"content": [{"type": "text", "text": ""}] * 10_000}
    found = clipped(empty, 100)
    assert len(found.content) <= 400 // BLOCK_BYTES + 1
    assert found.left_out > 10_000
    audio = {"content": [{"type": "audio", "data": "A" * 900}] * 10_000}
    assert len(clipped(audio, 100).content) == NOTES_MAX
    # Text behind so much else is left out as well, and can be read on.
    assert clipped({"content": [*audio["content"], {"type": "text", "text": "x"}]}, 100).shown_to is not None


def test_of_very_many_blocks_some_are_read_and_all_are_kept() -> None:
    blocks = [{"type": "text", "text": str(number)} for number in range(BLOCKS_MAX + 3)]
    raw = json.dumps({"content": blocks}).encode()
    said = text_of(read_object(raw, "the result"))
    assert said.endswith(f"{BLOCKS_MAX - 1}\n[3 more blocks]")
    contents = [json.loads(one) for one in contents_of(Kept(Owner("", "", "", ""), raw, 0.0, 1), "mesh://result/x")]
    assert [one["text"] for one in contents[:-1]] == [str(number) for number in range(BLOCKS_MAX)]
    assert json.loads(contents[-1]["text"]) == blocks[-3:]


@pytest.mark.parametrize("field", Owner._fields)
def test_each_part_of_an_owner_counts(field: str) -> None:
    results = Results(lambda: 0.0, lambda delay_s, callback: None)
    owner = Owner("agent", "workflow", "session", "127.0.0.1")
    id = results.put(owner, b"{}", kept_s=1.0, bytes_max=10, tokens_max=1)
    assert results.is_ours(id)
    assert results.get(id, owner) is not None
    assert results.get(id, owner._replace(**{field: "other"})) is None
    assert results.put(owner, b"x" * 11, kept_s=1.0, bytes_max=10, tokens_max=1) == ""
