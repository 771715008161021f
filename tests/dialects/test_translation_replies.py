"""Plain answers, translated both ways: why they stop, what they cost, who is called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.dialects.translation import TranslationError
from tests.dialects.translating import USER, asking, body_of, sent

USAGE = {"input_tokens": 5, "output_tokens": 3}


def message(content: list[Any], stop_reason: Any = "end_turn", **members: Any) -> bytes:
    made = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": content}
    return json.dumps(made | {"stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE} | members).encode()


def completion(said: Any, finish_reason: Any = "stop", **members: Any) -> bytes:
    choice = {"index": 0, "message": said, "finish_reason": finish_reason} | members.pop("choice", {})
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return json.dumps({"id": "c1", "model": "gpt", "choices": [choice], "usage": usage} | members).encode()


def chat(body: bytes, **members: Any) -> dict[str, Any]:
    return json.loads(asking("openai", **members).reply(body, created=7))


def said(body: bytes, **members: Any) -> dict[str, Any]:
    return json.loads(asking("anthropic", **members).reply(body))


TEXT = {"type": "text", "text": "Fog."}
USE = {"type": "tool_use", "id": "toolu_1", "name": "tides", "input": {"a": 1}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "tides", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
        ("pause_turn", "length"), ("refusal", "content_filter"), ("model_context_window_exceeded", "length"),
        ("a_new_one", "stop"), (None, "stop"), (5, "stop"),
    ],
)  # fmt: skip
def test_why_a_message_stopped(stop_reason: Any, finish_reason: str) -> None:
    assert chat(message([TEXT], stop_reason))["choices"][0]["finish_reason"] == finish_reason


@pytest.mark.parametrize(
    ("finish_reason", "content", "stop_reason"),
    [
        ("stop", {"content": "a"}, "end_turn"),
        ("length", {"content": "a"}, "max_tokens"),
        ("tool_calls", {"tool_calls": [CALL]}, "tool_use"),
        # As where the request demands a call by its name.
        ("stop", {"tool_calls": [CALL]}, "tool_use"),
        ("length", {"tool_calls": [CALL]}, "max_tokens"),
        ("content_filter", {"content": None}, "refusal"),
        ("stop", {"content": None, "refusal": "No."}, "refusal"),
        ("eos", {"content": "a"}, "end_turn"),
        (None, {"content": "a"}, "end_turn"),
    ],
)
def test_why_a_completion_stopped(finish_reason: Any, content: dict[str, Any], stop_reason: str) -> None:
    assert said(completion(content, finish_reason))["stop_reason"] == stop_reason


def test_a_stop_sequence_that_a_server_names_is_named() -> None:
    body = completion({"content": "1 2 "}, choice={"stop_reason": "3"})
    made = said(body, stop_sequences=["3"])
    assert (made["stop_reason"], made["stop_sequence"]) == ("stop_sequence", "3")
    # The number of a token is what some say there, and a word that was not asked for is none.
    made = said(completion({"content": "1 2 "}, choice={"stop_reason": 128009}), stop_sequences=["3"])
    assert (made["stop_reason"], made["stop_sequence"]) == ("end_turn", None)


def test_identity_and_time() -> None:
    made = chat(message([TEXT]))
    assert (made["id"], made["created"], made["model"], made["object"]) == ("msg_1", 7, "claude", "chat.completion")
    assert chat(message([TEXT], id=None, model=None))["model"] == "claude-sonnet-4-6"
    made = said(completion({"content": "a"}, id="c1", model=None))
    assert (made["id"], made["type"], made["role"], made["model"]) == ("c1", "message", "assistant", "gpt-4o")


def test_a_refusal() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "Harmful."}
    made = chat(message([], "refusal", stop_details=details))["choices"][0]
    assert made["message"]["content"] is None
    assert made["message"]["refusal"] == "Harmful."
    back = said(completion({"content": None, "refusal": "No."}))
    assert back["content"] == [{"type": "text", "text": "No."}]
    assert back["stop_details"] == {"type": "refusal", "category": None, "explanation": "No."}


def test_thinking_is_passed_on_where_it_may_be() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    made = chat(message([thought, {"type": "redacted_thinking", "data": "x"}, TEXT]))["choices"][0]["message"]
    assert (made["reasoning_content"], made["content"]) == ("Hm.", "Fog.")
    back = said(completion({"content": "Fog.", "reasoning_content": "Hm."}))
    assert back["content"] == [TEXT]


def test_usage_is_folded() -> None:
    report = {"input_tokens": 5, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 30}
    report |= {"output_tokens_details": {"thinking_tokens": 11}}
    made = chat(message([TEXT], usage=report))["usage"]
    assert made == {
        "prompt_tokens": 125, "completion_tokens": 30, "total_tokens": 155,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 20},
        "completion_tokens_details": {"reasoning_tokens": 11},
    }  # fmt: skip
    assert said(completion({"content": "a"}, usage=made))["usage"] == report
    # Some servers count reasoning in the total only.
    outside = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}
    assert said(completion({"content": "a"}, usage=outside))["usage"]["output_tokens"] == 30


@pytest.mark.parametrize("report", [None, {}, 5, {"input_tokens": -1, "output_tokens": 2}, {"input_tokens": 1e9}])
def test_usage_that_is_missing_or_absurd(report: Any) -> None:
    assert "usage" not in chat(message([TEXT], usage=report))
    assert said(completion({"content": "a"}, usage=report))["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_ids_of_calls_are_there_and_differ() -> None:
    calls = [CALL, CALL, CALL | {"id": None}, CALL | {"id": "functions.tides:0"}, CALL | {"id": ""}]
    ids = [block["id"] for block in said(completion({"tool_calls": calls}))["content"]]
    assert ids[0] == "call_1"
    assert len(set(ids)) == len(ids)
    assert all(one.replace("_", "").isalnum() for one in ids)
    uses = [USE, USE, USE | {"id": 5}, USE | {"id": "t" * 41}]
    calls = chat(message(uses, "tool_use"))["choices"][0]["message"]["tool_calls"]
    assert calls[0]["id"] == "toolu_1"
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(0 < len(call["id"]) <= 40 for call in calls)


def test_arguments() -> None:
    def given(arguments: Any, finish: str = "tool_calls") -> Any:
        call = CALL | {"function": {"name": "tides", "arguments": arguments}}
        return said(completion({"tool_calls": [call]}, finish))["content"][0]["input"]

    assert given('{"a": {"b": [1]}}') == {"a": {"b": [1]}}
    assert given({"a": 1}) == {"a": 1}
    assert given("") == given(None) == given(" ") == {}
    # Cut off by the cap, which the reply says.
    assert given('{"a": "b', "length") == {}
    for nonsense in ('{"a": "b', "[1]", "tides(Brest)", "5"):
        with pytest.raises(TranslationError):
            given(nonsense)


def test_content_of_parts_is_text() -> None:
    assert said(completion({"content": [TEXT, {"type": "text", "text": "!"}]}))["content"][0]["text"] == "Fog.!"
    assert said(completion({"content": ""}))["content"] == []


@pytest.mark.parametrize("given", ["functions.tides:0", "call_1", "", "c" * 64])
@pytest.mark.parametrize("caller", ["openai", "anthropic"])
def test_the_next_request_refers_to_the_calls_of_a_reply(caller: str, given: str) -> None:
    """The caller sends back what it was given, to either provider: the id fits both as it stands."""
    if caller == "openai":
        answer = chat(message([USE | {"id": given}], "tool_use"))["choices"][0]["message"]
        (call,) = answer["tool_calls"]
        history = [USER, answer, {"role": "tool", "tool_call_id": call["id"], "content": "5"}]
        turns = sent(caller, body_of(caller, messages=history))["messages"]
        found = turns[1]["content"][0]["id"], turns[2]["content"][0]["tool_use_id"]
    else:
        answer = said(completion({"tool_calls": [CALL | {"id": given}]}, "tool_calls"))
        (call,) = answer["content"]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "5"}
        history = [USER, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
        turns = sent(caller, body_of(caller, messages=history))["messages"]
        found = turns[1]["tool_calls"][0]["id"], turns[2]["tool_call_id"]
    assert found == (call["id"], call["id"])
