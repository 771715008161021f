"""A long body is read in one pass and a short one by its length: neither may say anything else than the plain way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.table import DIALECTS
from meshd.refusal import Reason, Refused
from tests.dialects.test_json_pairs import spell
from tests.dialects.test_properties import like_object

EVERY_BODY_IS_SHORT = 1 << 60
EVERY_BODY_IS_LONG = 0

MESSAGE = b'{"role":"user","content":"x"}'
IMAGE = b'{"role":"user","content":[{"type":"image_url"}]}'


def said(dialect: str, body: bytes) -> tuple[Any, ...]:
    """Everything that a dialect reads in a body, or its words of refusal."""
    try:
        ask = DIALECTS[dialect].read("chat", body)
    except Refused as refused:
        return (refused.message,)
    found = (ask.model, ask.is_stream, ask.input_bound, ask.output_cap, ask.choices, ask.tools, ask.is_usage_asked)
    members = [(name, bytes(raw)) for name, raw in ask.fields.pairs.items()]
    ask.output_cap_granted = 7
    return (*found, members, DIALECTS[dialect].rewrite(ask, body))


def said_each_way(dialect: str, body: bytes) -> list[tuple[Any, ...]]:
    """The same read as a short body, as a long one, and with no way but the plain one."""

    def plain(body: bytes, name: str) -> tuple[pairs_of.Pairs, None]:
        return pairs_of.read_body(body), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_of, "_COMPACT_BYTES_MAX", EVERY_BODY_IS_SHORT)
        ways = [said(dialect, body)]
        patch.setattr(pairs_of, "_COMPACT_BYTES_MAX", EVERY_BODY_IS_LONG)
        ways.append(said(dialect, body))
        patch.setattr(pairs_of, "read_long_body", plain)
        ways.append(said(dialect, body))
    return ways


def is_cut_out(body: bytes) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_of, "_COMPACT_BYTES_MAX", EVERY_BODY_IS_LONG)
        return pairs_of.read_long_body(body, "messages")[1] is not None


TRICKS = [
    b'{"messages":[' + MESSAGE + b'],"messages":[' + IMAGE + b"]}",
    b'{"messages":[' + IMAGE + b'],"m\\u0065ssages":[' + MESSAGE + b"]}",
    b'{"messages":[' + IMAGE + b'],"messages":[]}',
    b'{"metadata":{"messages":[' + MESSAGE + b']},"messages":[' + IMAGE + b"]}",
    b'{"metadata":{"messages":[' + IMAGE + b']},"messages":[]}',
    b'{"metadata":{"messages":[' + MESSAGE + b"]}}",
    b'{"x\\"messages":[' + MESSAGE + b'],"messages":[' + IMAGE + b"]}",
    b'{"a":"\\"messages\\":[{","messages":[' + IMAGE + b"]}",
    b'{"messages":[{"role":"user","content":[{"type":"image_url"}],"content":"text"}]}',
    b'{"messages":[{"content":[{"type":"image_url"}],"c\\u006fntent":"text"}]}',
    b'{"messages":[{"a,":1,"content":"}]"},' + IMAGE + b'],"b":"}]"}',
    b'{"messages":[' + MESSAGE + b'],"later":[' + IMAGE + b"]}",
    b'{"messages":[' + IMAGE + b'],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]}',
    b'{"messages":[{"content":"\\"tools\\":[{}}]"}],"tools":[{"type":"function","function":{"name":"f"}}]}',
    b'{"messages":[' + MESSAGE + b'],"tools":[{"type":"function","function":{"name":"f"}}],"n":[{}]}',
    b'{"messages":[' + MESSAGE + b']}{"messages":[' + IMAGE + b"]}",
    b'{"messages":[' + MESSAGE + b"]",
    b'{"messages":[' + MESSAGE + b"]]}",
    b'{"messages":[' + MESSAGE + b',"x"]}',
    b'{"messages":[' + MESSAGE + b' ],"model":"m"}',
    b'{"messages":[{"content":"\xff"}]}',
    b'{"messages":[{"content":"\xed\xa0\x80"}]}',
    b'{"messages":[{"content":"\\ud800"}]}',
    '{"messages":[{"content":"\u00e9\U0001f9d1"}],"model":"\ufdfa"}'.encode(),
    b'{"messages":[{"content":' + b"[" * 10_000 + b"]" * 10_000 + b"}]}",
    b'{"messages":[{}],"model":"m","model":"n"}',
    b'{"messages":[{"audio":{"id":"a"}}]}',
    b'{"messages":[{"audio":null,"content":null}]}',
    b'{"messages":[{"content":7}]}',
    b'[{"messages":[' + MESSAGE + b"]}]",
]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("body", TRICKS)
def test_no_trick_is_read_otherwise(dialect: str, body: bytes) -> None:
    short, long, plain = said_each_way(dialect, body)
    assert short == plain
    assert long == plain


BRICKS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"1", b"null", b'"a"', b'"messages":[{', b'"messages":[]',
    b'"messages":[' + MESSAGE + b"]", b"}]", b"}]}", b',"tools":[{', b"}}]", b'"content":"x"', b'"content":[{',
    b'"type":"image_url"', b'"a,":1', b'"model":"m"', b'"metadata":{', b',":"', b'"{"', b'"}],"', b'\\"messages\\":[{',
]  # fmt: skip


@given(bricks=st.lists(st.sampled_from(BRICKS), max_size=14), is_whole=st.booleans())
@settings(max_examples=600)
def test_no_heap_of_bricks_is_read_otherwise(bricks: list[bytes], is_whole: bool) -> None:
    body = b"".join(bricks)
    short, long, plain = said_each_way("openai", b'{"model":"gpt-4o",' + body + b"}" if is_whole else body)
    assert short == plain
    assert long == plain


@given(body=like_object, data=st.data())
@settings(max_examples=200)
def test_nothing_like_a_request_is_read_otherwise(body: bytes, data: Any) -> None:
    value = json.loads(body)
    dialect = data.draw(st.sampled_from(["openai", "anthropic"]))
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=data.draw(st.booleans()))
    for spelled in (body, compact.encode("utf-8", "surrogatepass"), spell(value, data.draw).encode()):
        short, long, plain = said_each_way(dialect, spelled)
        assert short == plain
        assert long == plain


BEHIND: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda request: {"model": "gpt-4o", "messages": request["messages"], "max_tokens": 9},
    lambda request: {"messages": request["messages"], "model": "gpt-4o", "tools": request["tools"]},
    lambda request: {"model": "gpt-4o", "tools": request["tools"], "messages": request["messages"], "stream": True},
]


@pytest.mark.parametrize("order", BEHIND)
def test_what_agents_send_is_read_in_one_pass(order: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    code = "def f(x):\n    return {'a': [x, {\"b\": 1}]}\n" * 40
    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a.py"}'}}
    messages = [
        {"role": "system", "content": "You are helpful."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": code},
    ] * 10
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {}, "required": []}}}
    body = json.dumps(order({"messages": messages, "tools": [tool]}), separators=(",", ":")).encode()
    assert is_cut_out(body)
    assert len(body) > 16 * 1024, "as long as it must be without being told"
    short, long, plain = said_each_way("openai", body)
    assert short == long == plain
    assert plain[0] == "gpt-4o"
    assert plain[2] < len(body) + 300, "no message brings what the body does not show"


@pytest.mark.parametrize("end", [b"", b"}", b"{}}}", b'"]"'])
def test_a_long_body_whose_array_never_ends_is_malformed(end: bytes) -> None:
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"' + b"x" * 20_000 + b'"}' + end
    with pytest.raises(Refused) as refused:
        DIALECTS["openai"].read("chat", body)
    assert refused.value.reason is Reason.MALFORMED
