"""What the SDK says of values and keys that cannot be, and of who is in the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk.bodies import encode
from meshd_sdk.errors import LeaseHeld, Malformed, StateConflict
from meshd_sdk.state_values import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd_sdk import Agent

    Make = Callable[..., Agent]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [(float("nan"), "cannot be written as JSON"), ([float("inf")], "cannot"), (nested(100_000), "nested too deeply")],
    ids=["nan", "infinity", "deep"],
)
def test_what_json_has_no_word_for(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode(value)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00", "é日", "\x00"])
def test_every_text_is_json_in_utf8(text: str) -> None:
    payload, kind = encode({"a": text})
    assert kind == "application/json"
    assert json.loads(payload.decode()) in (
        {"a": text},
        {"a": text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")},
    )


@pytest.mark.parametrize("key", [None, 5, b"plan"])
def test_a_key_is_a_text(key: Any) -> None:
    with pytest.raises(ValueError, match="a key is a text"):
        key_of(key, "")


async def test_a_value_that_no_message_holds_is_not_sent(make: Make) -> None:
    async with make("words-a") as agent, agent.workflow("words-1") as ctx:
        for size in (5 * 2**20, 100 * 2**20):
            with pytest.raises(Malformed, match="keep large things elsewhere") as refused:
                await ctx.state.put("big", b"x" * size)
            assert (refused.value.reason, refused.value.code) == ("too_large", "RESOURCE_EXHAUSTED")
        assert (await ctx.state.put("small", b"x")).version == 1


async def test_a_conflict_names_the_object_its_version_writer_and_holder(make: Make) -> None:
    async with make("words-b") as agent, agent.workflow("words-2") as ctx:
        await ctx.state.put("plan", 1)
        there = "version 1 is there, which words-b wrote in workflow words-2; this workflow knows what its writer knew"
        with pytest.raises(StateConflict) as stale:
            await ctx.state.put("plan", 2)
        assert str(stale.value) == f"workflow/words-2/plan was not written: {there}"
        async with ctx.state.checkout("plan"):
            with pytest.raises(LeaseHeld, match=r"words-b has checked it out in words-2 until [0-9T:-]+Z; ") as held:
                await ctx.state.commit("plan", 2, 1)
            assert str(held.value).startswith("workflow/words-2/plan was not written: ")
            assert str(held.value).endswith(there)
