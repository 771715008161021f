"""By what a call is known: keys as they come, scopes, and what a call says."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from meshd.call import Direction, Evidence
from meshd.claims.keys import (
    CANONICAL_BYTES_MAX,
    canonical,
    derived_key,
    fingerprint_of,
    identity_of,
    key_in,
    read_key,
    retry_count_in,
)
from meshd.refusal import Reason, Refused
from meshd_sdk.context import Context
from tests.filters.calls import call, policy

JSON = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"a", "a"),
        (b'"a"', "a"),
        (b"k" * 255, "k" * 255),
        (b'"' + b"k" * 255 + b'"', "k" * 255),
        (b'"say \\"a\\\\b\\""', 'say "a\\b"'),
        (b" 8e03978e-40d5-43dd-bc93-6894a57f9324\t", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (b"with spaces, and more", "with spaces, and more"),
    ],
)
def test_keys_as_the_draft_has_them_and_as_they_are_sent(value: bytes, key: str) -> None:
    assert read_key(value) == key


@pytest.mark.parametrize(
    "value",
    [b"", b'""', b'"', b'"a', b'"a"b', b'"a\\b"', b'"a";x=1', b"k" * 256, b"k" * 10_240, b"a\x00b", b"a\x7f",
     b"\xc3\xa9", b"a\r\nb", b'"a\x01"'],
)  # fmt: skip
def test_what_is_no_key(value: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_key(value)
    assert caught.value.reason is Reason.MALFORMED
    assert len(caught.value.message) < 300


def test_no_bytes_at_all_break_the_reader() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        value = chance.randbytes(chance.randint(0, 40))
        try:
            key = read_key(value)
        except Refused:
            continue
        assert 0 < len(key) <= 255
        assert key.isprintable()


def test_two_keys_are_none() -> None:
    with pytest.raises(Refused, match="more than once"):
        key_in([(b"idempotency-key", b"a"), (b"idempotency-key", b"a")])
    assert key_in([(b"x-stainless-retry-count", b"1")]) == ""


@pytest.mark.parametrize(("value", "count"), [(b"0", 0), (b"2", 2), (b"-1", -1), (b"x", -1), (b"99999", -1), (b"", -1)])
def test_how_often_a_client_has_tried(value: bytes, count: int) -> None:
    assert retry_count_in([(b"x-stainless-retry-count", value)]) == count
    assert retry_count_in([]) == -1


class Rpc:
    """What the dialect of JSON-RPC says of a call, as far as it matters here."""

    def __init__(self, tool: str = "buy", arguments: bytes = b"{}", id: bytes = b"1") -> None:
        self.method, self.tool, self.arguments, self.id = "tools/call", tool, arguments, id


def order(target: str = "billing", path: str = "/orders", **options: Any) -> Any:
    one = call(target, path=path, body=options.pop("body", b'{"a":1}'), headers=JSON, **options)
    one.agent = "researcher"
    return one


def test_the_same_key_in_another_scope_is_another_claim() -> None:
    other_agent = order()
    other_agent.agent = "writer"
    scopes = [
        order(),
        order(of=policy("tenant: acme\n")),
        order(of=policy("tenant: other\n")),
        other_agent,
        order("writer"),
        order(path="/refunds"),
        order(direction=Direction.INBOUND),
    ]
    found = {identity_of(one, "key", "k") for one in scopes}
    assert len(found) == len(scopes)
    assert identity_of(order(), "key", "k") == identity_of(order(path="/orders?page=2"), "key", "k")
    assert identity_of(order(), "message", "k") != identity_of(order(), "key", "k") != identity_of(order(), "key", "l")


def test_parts_of_a_scope_never_run_into_one_another() -> None:
    one, other = order(), order()
    one.agent, one.path = "a", "/b/c"
    other.agent, other.path = "a/b", "/c"
    assert identity_of(one, "key", "k") != identity_of(other, "key", "k")


def test_callers_that_come_in_are_told_apart() -> None:
    def inbound(path: tuple[str, ...], evidence: Evidence, secret: bytes = b"", peer: str = "10.0.0.1:5") -> str:
        one = order(direction=Direction.INBOUND)
        one.context = Context("w", "researcher", path=path)
        one.evidence, one.peer = evidence, peer
        one.credentials = [(b"authorization", secret)] if secret else []
        return identity_of(one, "key", "k")

    token = Evidence.TOKEN
    assert inbound(("a", "me"), token) != inbound(("b", "me"), token)
    assert inbound(("a", "me"), token, b"old") == inbound(("a", "me"), token, b"renewed", "10.0.0.9:7")
    none = Evidence.NONE
    assert inbound((), none, b"x") != inbound((), none, b"y")
    assert inbound((), none, b"x", "10.0.0.1:5") == inbound((), none, b"x", "10.0.0.1:6")
    assert inbound((), none, b"x", "10.0.0.1:5") != inbound((), none, b"x", "10.0.0.2:5")


@pytest.mark.parametrize(
    "same",
    [b'{"a":1}', b' { "a" : 1 }\n', b'{"\\u0061":1}'],
)
def test_what_says_the_same(same: bytes) -> None:
    assert fingerprint_of(order(body=same)) == fingerprint_of(order(body=b'{"a":1}'))


@pytest.mark.parametrize(
    "other",
    [
        b'{"a":2}', b'{"a":1.0}', b'{"a":"1"}', b'{"a":1,"b":null}', b'{"a":1,"a":1}', b'[{"a":1}]', b'{"a":01}', b"",
        b'{"a":{"\\u0000number":"1"}}', b'{"a":1}\x00', b'{"a":[1]}', b'{"a":true}', b'{"A":1}', b'{"a":1e0}',
        b"{", b"[" * 50_000,
    ],
)  # fmt: skip
def test_payloads_built_to_pass_for_another(other: bytes) -> None:
    assert fingerprint_of(order(body=other)) != fingerprint_of(order(body=b'{"a":1}'))


def test_amounts_that_a_float_cannot_tell_apart() -> None:
    one, other = b'{"amount":12345678901234567.01}', b'{"amount":12345678901234567.02}'
    assert json.loads(one) == json.loads(other)
    assert fingerprint_of(order(body=one)) != fingerprint_of(order(body=other))


def test_a_long_body_is_compared_byte_for_byte() -> None:
    body = b'{"a": "' + b"x" * CANONICAL_BYTES_MAX + b'"}'
    assert canonical(order(body=body)) == (b"", body)


def test_a_form_may_choose_another_boundary() -> None:
    def form(boundary: bytes, value: bytes) -> bytes:
        one = order(body=b"--%b\r\n\r\n%b\r\n--%b--" % (boundary, value, boundary))
        one.headers = [(b"content-type", b"multipart/form-data; boundary=" + boundary)]
        return fingerprint_of(one)

    assert form(b"aaaa", b"1") == form(b"bbbb", b"1") != form(b"bbbb", b"2")


@pytest.mark.parametrize("boundary", [b"0", b"-", b"a"])
def test_a_boundary_takes_nothing_out_of_a_forms_content(boundary: bytes) -> None:
    def form(value: bytes) -> bytes:
        one = order(body=b"--%b\r\n\r\n%b\r\n--%b--" % (boundary, value, boundary))
        one.headers = [(b"content-type", b"multipart/form-data; boundary=" + boundary)]
        return fingerprint_of(one)

    assert form(b"a1" + boundary * 2) != form(b"a1" + boundary) != form(b"1")


@pytest.mark.parametrize("name", [b"x-amz-target", b"soapaction", b"x-http-method-override"])
def test_an_operation_that_stands_in_a_field_is_told_apart(name: bytes) -> None:
    one, other = order(), order()
    one.headers, other.headers = [*JSON, (name, b"Read")], [*JSON, (name, b"Delete")]
    assert fingerprint_of(one) != fingerprint_of(other)
    one.headers = [*JSON, (name, b"Delete"), (b"user-agent", b"retry")]
    assert fingerprint_of(one) == fingerprint_of(other)


@pytest.mark.uncompiled
def test_two_agents_at_one_upstream_are_two() -> None:
    def sent(path: str) -> str:
        one = with_rpc(order(path=path), Rpc())
        return identity_of(one, "message", "m1")

    assert sent("/agents/alice") != sent("/agents/bob")
    assert sent("/agents/alice") == sent("/agents/alice?session=2")


@pytest.mark.uncompiled
def test_a_json_rpc_call_says_what_it_does_and_not_how_it_is_numbered() -> None:
    def told(**of: Any) -> bytes:
        one = with_rpc(order(), Rpc(**of))
        return fingerprint_of(one)

    assert told() == told(id=b'"two"')
    assert len({told(), told(tool="sell"), told(arguments=b'{"a":1}')}) == 3


def test_a_derived_key_is_of_workflow_edge_tool_call_and_arguments() -> None:
    def key(tool_call: str = "call_1", body: bytes = b'{"a":1}', path: str = "/orders", workflow: str = "w") -> str:
        one = order(body=body, path=path)
        one.context, one.evidence = Context(workflow, "researcher"), Evidence.TOKEN
        return derived_key(one, tool_call)

    assert key() == key(body=b'{ "a": 1}')
    assert len({key(), key("call_2"), key(body=b"{}"), key(path="/x"), key(workflow="v")}) == 5


def with_rpc(one: Any, rpc: Rpc) -> Any:
    """Return a call of which a dialect has read more."""
    one.rpc = rpc
    return one
