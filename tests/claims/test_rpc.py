"""JSON-RPC answers under another id: only the id changes, and of a stream only the answers are given again."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from meshd.claims.rpc import Events, Splice, place_of_id, readdressed


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', b'{"jsonrpc":"2.0","id":"new","result":{}}'),
        (b'{ "result" : {"id": 7} ,\n "id" : 7 }', b'{ "result" : {"id": 7} ,\n "id" : "new" }'),
        (b'{"x":"\\"id\\":7,","id":7,"error":{}}', b'{"x":"\\"id\\":7,","id":"new","error":{}}'),
        ('{"ä":"ü","id":7}'.encode(), '{"ä":"ü","id":"new"}'.encode()),
        # Nothing that is an answer to the first request: left as it is.
        (b'{"id":8,"result":{}}', b'{"id":8,"result":{}}'),
        (b'{"id":null,"error":{}}', b'{"id":null,"error":{}}'),
        (b'{"id":7,"id":7}', b'{"id":7,"id":7}'),
        (b"no json", b"no json"),
        (b"", b""),
        (b"\xff", b"\xff"),
    ],
)
def test_one_message(body: bytes, found: bytes) -> None:
    assert readdressed(body, b"7", b'"new"', is_stream=False) == found


def test_ids_that_are_texts() -> None:
    assert readdressed(b'{"id":"a\\u0062","result":1}', b'"a\\u0062"', b"9", is_stream=False) == b'{"id":9,"result":1}'


def test_any_object_keeps_all_its_other_bytes() -> None:
    chance = random.Random(3)

    def value(depth: int = 0) -> Any:
        if depth > 2 or chance.random() < 0.5:
            return chance.choice([1, -2.5, "id", 'a":"b', "\\", None, True, "ü"])
        if chance.random() < 0.5:
            return [value(depth + 1) for _ in range(chance.randint(0, 3))]
        return {chance.choice(["id", "a", 'q"', "z"]): value(depth + 1) for _ in range(chance.randint(0, 3))}

    for _ in range(500):
        members = [(f"m{number}", value()) for number in range(chance.randint(0, 5))]
        members.insert(chance.randint(0, len(members)), ("id", 41))
        body = json.dumps(dict(members), ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])).encode()
        found = readdressed(body, b"41", b"42", is_stream=False)
        assert json.loads(found) == {**dict(members), "id": 42}
        assert len(found) == len(body)
        assert sum(one != other for one, other in zip(found, body, strict=True)) == 1


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_gives_its_answers_again(end: bytes) -> None:
    events = [
        [b"id: 1", b'data: {"method":"notifications/progress","params":{"progressToken":7}}'],
        [b": still here"],
        [b'data: {"method":"sampling/createMessage","id":7,"params":{}}'],
        [b"event: message", b"id: 2", b'data: {"jsonrpc":"2.0",', b'data: "id":7,"result":{"n":1}}'],
        [b'data:{"id":7,"result":{"n":2}}'],
    ]
    stream = b"".join(end.join(event) + end + end for event in events)
    found = readdressed(stream, b"7", b"8", is_stream=True)
    assert found == (
        b'event: message\ndata: {"jsonrpc":"2.0",\ndata: "id":8,"result":{"n":1}}\n\n'
        b'data: {"id":8,"result":{"n":2}}\n\n'
    )


STREAM = (
    b'data: {"id":7,"method":"ping"}\r\n\r\n: here\n\nevent: message\ndata: {"id":7,"result":{"n":1}}\n\n'
    b'\r\rdata: {"id":7,\rdata: "error":{}}\r\rdata: {"id":7,"result":2}'
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_a_stream_in_pieces_is_the_same_stream(size: int) -> None:
    events = Events(b"7", b'"new"')
    found = b"".join(events.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size)) + events.end()
    assert found == readdressed(STREAM, b"7", b'"new"', is_stream=True)
    assert found.count(b'"id":"new"') == 3


def test_an_answer_leaves_as_soon_as_its_event_has_ended() -> None:
    events = Events(b"7", b"8")
    assert events.feed(b'data: {"id":7,"result":1}\n') == b""
    assert events.feed(b'\ndata: {"id"') == b'data: {"id":8,"result":1}\n\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("new", [b"8", b'"a-new-one"', b"0"])
@pytest.mark.parametrize("body", [b'{"result":{"id":123},"id":123}', b'{"id":123}', b'{ "id" : 123 ,"x":1}'])
def test_a_message_in_pieces_is_the_same_message(size: int, new: bytes, body: bytes) -> None:
    splice = Splice(place_of_id(body, b"123"), b"123", new)
    found = b"".join(splice.feed(body[at : at + size]) for at in range(0, len(body), size)) + splice.end()
    assert found == readdressed(body, b"123", new, is_stream=False) != body


@pytest.mark.parametrize("body", [b"", b"no json", b'{"id":8}', b'{"id":7,"method":"x"}', b"[7]"])
def test_what_is_no_answer_has_no_place(body: bytes) -> None:
    assert place_of_id(body, b"7") == -1
