"""OpenAI completions, embeddings, rerank and moderations: what multiplies a prompt, and what hides in an input."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Usage
from meshd.dialects.openai import OpenAI
from meshd.refusal import Reason, Refused

DIALECT = OpenAI()


def read(operation: str, **members: Any) -> Ask:
    return DIALECT.read(operation, json.dumps({"model": "gpt-3.5-turbo-instruct"} | members).encode())


@pytest.mark.parametrize(
    ("members", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({}, 1),
        ({"prompt": None}, 1),
        ({"prompt": []}, 1),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": ["a", [3]]}, 2),
        ({"prompt": "a", "n": 4}, 4),
        ({"prompt": "a", "n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b"], "n": 2, "best_of": 1}, 4),
        ({"prompt": ["a", "b"], "best_of": 20}, 40),
    ],
)
def test_every_prompt_is_answered_so_many_times(members: dict[str, Any], choices: int) -> None:
    assert read("text_completion", **members).choices == choices


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"prompt": 7}, "'prompt' must be a string or an array"),
        ({"prompt": {}}, "'prompt' must be a string or an array"),
        ({"prompt": [{}]}, "'prompt' must hold strings or tokens"),
        ({"prompt": [None]}, "'prompt' must hold strings or tokens"),
        ({"n": 0}, "'n'"),
        ({"best_of": 1_000}, "'best_of'"),
        ({"max_tokens": -1}, "'max_tokens'"),
        ({"echo": "yes"}, "'echo'"),
        ({"stream": 1}, "'stream'"),
    ],
)
def test_what_decides_must_have_its_type(members: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as caught:
        read("text_completion", **members)
    assert says in caught.value.message
    assert caught.value.reason is Reason.MALFORMED


def test_prompts_that_are_no_text_fill_a_window_each() -> None:
    assert read("text_completion", prompt_embeds="AAAA").input_bound == 16_385
    assert read("text_completion", prompt="a", prompt_embeds=["AAAA", "BBBB"]).input_bound == 3 * 16_385


def test_an_echo_is_not_what_was_generated() -> None:
    body = {"model": "m", "prompt": "x" * 4_000, "echo": True, "stream": True, "max_tokens": 0}
    ask = DIALECT.read("text_completion", json.dumps(body).encode())
    assert ask.output_cap == 0
    meter = DIALECT.meter(ask)
    chunk = {"id": "c", "choices": [{"index": 0, "text": "x" * 4_000}], "usage": None}
    said = meter.read_event(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert said is not None
    assert said.has_content
    assert meter.output_estimate == 0
    last = {"choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 0, "total_tokens": 900}}
    meter.read_event(b"data: " + json.dumps(last).encode() + b"\n\n")
    assert meter.usage == Usage(900, 0)


def test_a_cut_finishes_every_choice() -> None:
    ask = read("text_completion", prompt=["a", "b"], stream=True, stream_options={"include_usage": True})
    meter = DIALECT.meter(ask)
    meter.read_event(
        b'data: {"id":"cmpl-1","model":"m","choices":[{"index":1,"text":"fog","finish_reason":"stop"}]}\n\n'
    )
    *ends, usage, done = [
        data.removeprefix(b"data: ") for data in meter.cut(is_event_forwarded=True).split(b"\n\n")[:-1]
    ]
    assert [json.loads(end)["choices"] for end in ends] == [
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    ]
    assert {json.loads(end)["object"] for end in ends} == {"text_completion"}
    assert json.loads(usage)["choices"] == []
    assert done == b"[DONE]"


def test_a_prompt_is_counted_as_its_texts_and_tokens() -> None:
    found = DIALECT.texts(read("text_completion", prompt=["low water", [1, 2, 3]], suffix="amen"))
    assert found is not None
    assert found.parts == ("low water", '"amen"')
    assert found.overhead >= 3


# -- embeddings


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        ([{"type": "text", "text": "x"}], 0),
        ([{"image": "AAAA"}], 1),
        ([{"image": "AAAA"}, "text", {"type": "image_url"}, {"type": "text"}], 2),
    ],
)
def test_each_input_that_is_no_text_may_fill_a_window(given: Any, windows: int) -> None:
    body = json.dumps({"model": "text-embedding-3-small", "input": given}).encode()
    ask = DIALECT.read("embeddings", body)
    assert ask.input_bound == (8_192 * windows or len(body))
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("embeddings", b'{"model":"m","input":[{"type":"text","type":"image"}]}')


# -- rerank


def ranked(query: Any = "low water", documents: Any = ("a", "b"), **members: Any) -> Ask:
    return read("rerank", query=query, documents=documents, **members)


def test_the_query_is_read_with_each_document() -> None:
    query = "x" * 1_000
    few, many = ranked(query, ["a"] * 2), ranked(query, ["a"] * 100)
    assert few.input_bound > 3 * 1_000
    assert many.input_bound > 100 * 1_000
    assert ranked(query, ["a" * 51_000]).input_bound > 51_000 + 100 * 1_000, "and with each piece of a long one"
    assert ranked(query, [{"text": "a"}] * 2).input_bound < 10_000
    assert not few.has_output


def test_a_query_that_grows_when_it_is_normalised_grows_with_each_document() -> None:
    assert ranked("\ufdfa" * 50, ["a"] * 100).input_bound > 100 * 50 * 33


@pytest.mark.parametrize(
    "members", [{"documents": [{"image": "x"}]}, {"query": {"image": "x"}}, {"documents": [], "query": {}}]
)
def test_what_is_no_text_may_fill_a_window(members: dict[str, Any]) -> None:
    assert ranked(**members).input_bound > 16_385


@pytest.mark.parametrize("documents", ["text", {}, 7])
def test_documents_are_an_array(documents: Any) -> None:
    with pytest.raises(Refused, match="'documents' must be an array"):
        ranked(documents=documents)
    with pytest.raises(Refused, match="more than once"):
        DIALECT.read("rerank", b'{"query":"a","documents":[{"text":"a","text":"b"}]}')


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"usage": {"total_tokens": 7}}, Usage(7, 0)),
        ({"usage": {"prompt_tokens": 7, "total_tokens": 7}}, Usage(7, 0)),
        ({"meta": {"tokens": {"input_tokens": 7, "output_tokens": 2}}}, Usage(7, 2)),
        ({"meta": {"billed_units": {"input_tokens": 7, "search_units": 1}}}, Usage(7, 0)),
        ({"meta": {"billed_units": {"search_units": 1}}}, None),
        ({"meta": {"tokens": 7}, "usage": 7}, None),
        ({"usage": {"total_tokens": 0}}, None),
        ({"usage": {"total_tokens": -7}}, None),
        ({}, None),
    ],
)
def test_where_a_ranking_says_its_tokens(answer: dict[str, Any], usage: Usage | None) -> None:
    meter = DIALECT.meter(ranked())
    meter.read_message(json.dumps({"results": []} | answer).encode())
    assert (meter.usage, meter.is_terminal) == (usage, True)


# -- moderations


def test_a_moderation_is_bounded_like_any_other_text() -> None:
    body = json.dumps({"model": "omni-moderation-latest", "input": ["a", "b"]}).encode()
    ask = DIALECT.read("moderation", body)
    assert len(body) <= ask.input_bound <= len(body) + 128
    assert ask.model == "omni-moderation-latest"
