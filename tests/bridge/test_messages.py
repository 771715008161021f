"""Messages under other ids: what is changed, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.bridge import messages

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON), st.integers(0, 10**9), st.booleans())
def test_only_the_id_and_the_token_are_changed(
    rest: dict[str, Any], params: dict[str, Any], number: int, is_pretty: bool
) -> None:
    message = rest | {
        "id": "mine",
        "method": "tools/call",
        "params": params | {"_meta": {"progressToken": "t", "x": 1}},
    }
    body = json.dumps(message, indent=1 if is_pretty else None).encode()
    sent = messages.numbered(body, number, b'"t"')
    assert b"\n" not in sent
    assert b"\r" not in sent
    expected = rest | {"id": number, "method": "tools/call"}
    expected["params"] = params | {"_meta": {"progressToken": number, "x": 1}}
    assert json.loads(sent) == expected


@given(JSON, st.text())
def test_an_answer_comes_back_under_its_own_id(result: Any, id: str) -> None:
    (message,) = messages.read(json.dumps({"jsonrpc": "2.0", "id": 5, "result": result}).encode())
    assert message.number == 5
    raw = json.dumps(id).encode()
    assert json.loads(message.answered(raw, "tools/call")) == {"jsonrpc": "2.0", "id": id, "result": result}


def test_a_subscription_is_named_by_its_clients_id() -> None:
    meta = {messages.SUBSCRIPTION: 9, "other": 1}
    note = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {"_meta": meta}}
    (message,) = messages.read(json.dumps(note).encode())
    assert message.concerns() == (9, messages.SUBSCRIPTION)
    restored = json.loads(message.restored(messages.SUBSCRIPTION, b'"l-1"'))
    assert restored["params"]["_meta"] == {messages.SUBSCRIPTION: "l-1", "other": 1}
    (message,) = messages.read(json.dumps({"jsonrpc": "2.0", "id": 9, "result": {"_meta": meta}}).encode())
    answer = json.loads(message.answered(b'"l-1"', messages.LISTEN))
    assert answer["result"]["_meta"][messages.SUBSCRIPTION] == "l-1"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"x", b"1", b'"x"', b"null", b"{", b"{}", b'{"id":1}', b'{"id":1,"result":1,"error":{}}', b'{"result":1}',
        b'{"method":1}', b"\xff", b"[1]", b'[{"id":1}]', b'{"method":"\xff"}', b"[" * 5000, b'{"a":' * 5000,
        b"[" + b",".join([b'{"method":"x"}'] * 1001) + b"]",
    ],
)  # fmt: skip
def test_what_is_no_message(raw: bytes) -> None:
    with pytest.raises(messages.Nonsense):
        messages.read(raw)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    try:
        messages.read(raw)
    except messages.Nonsense:
        return


@pytest.mark.parametrize("id", [b'"1"', b"1.5", b"-1", b"null", b"[1]", b"1e3", b"99999999999999999999"])
def test_no_other_id_is_a_number_of_ours(id: bytes) -> None:
    (message,) = messages.read(b'{"id":' + id + b',"result":{}}')
    assert message.number == -1
