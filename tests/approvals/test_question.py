"""What an approval holds for: any change is another question. What people see hides nothing but secrets."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.approvals.question import canonical, shown, visible
from meshd.telemetry import redact
from tests.approvals.asking import QUESTION, question


@pytest.mark.parametrize(
    "change",
    [
        {"workflow": "w2"}, {"agent": "writer"}, {"kind": "host"}, {"target": "billing2"}, {"model": "m"},
        {"operation": "DELETE /invoices"}, {"tool": "t"}, {"definition": "d"}, {"arguments": b'{"amount":50}'},
        {"fields": ((b"x-amz-target", b"Delete"),)}, {"also": ("upstream other",)}, {"owner": ""}, {"quorum": 2},
        {"approvers": ("ana",)}, {"arguments": b""},
    ],
)  # fmt: skip
def test_any_change_asks_anew(change: dict[str, Any]) -> None:
    assert question(**change).digest != QUESTION.digest


def test_nothing_moves_from_one_part_to_the_next() -> None:
    assert question(target="ab", model="c").digest != question(target="a", model="bc").digest
    assert question(also=("a", "b")).digest != question(also=("ab",)).digest
    assert question(fields=((b"a", b"b"),)).digest != question(fields=((b"ab", b""),)).digest
    assert question(also=("x",), fields=()).digest != question(also=(), fields=((b"x", b""),)).digest


@pytest.mark.parametrize(
    "change", [{"call": "c-2"}, {"why": "x"}, {"left_tokens": 5}, {"cost_tokens": 5}, {"rule": "r"}, {"lasts_s": 1.0}]
)
def test_what_only_describes_the_call_changes_nothing(change: dict[str, Any]) -> None:
    assert question(**change).digest == QUESTION.digest


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (b'{"a":1,"b":[true,null]}', b' {"b": [true, null] ,\n"a": 1}', True),
        (b'{"a":"\\u00e4"}', '{"a":"ä"}'.encode(), True),
        (b'{"a":1}', b'{"a":1.0}', False),
        (b'{"a":1e2}', b'{"a":100}', False),
        (b'{"a":[1,2]}', b'{"a":[2,1]}', False),
        (b'{"a":1,"a":2}', b'{"a":2,"a":1}', False),
        (b'{"a":9007199254740993}', b'{"a":9007199254740992}', False),
        (b'{"a":NaN}', b'{"a":  NaN}', False),
        (b'{"a":"1"}', b'{"a":1}', False),
        (b"plain text", b"plain  text", False),
        (b"\xff\x00", b"\xff\x01", False),
        (b"[" * 4000 + b"]" * 4000, b"[" * 4000 + b" " + b"]" * 4000, False),
    ],
)
def test_json_is_the_same_where_every_reader_reads_the_same(one: bytes, other: bytes, is_same: bool) -> None:
    assert (canonical(one) == canonical(other)) is is_same


def test_people_see_all_but_secrets() -> None:
    body = b'{"amount": 1e400, "note": "pay \\u202eno", "api_key": "abc", "deep": [{"password": "x"}], "id": 12}'
    text, hidden = shown(body, redact.argument)
    assert "1e400" in text
    assert "\\u202e" in text
    assert '"id": 12' in text
    assert "abc" not in text
    assert hidden == 2
    assert shown(b"Authorization: Bearer abcdefgh", redact.argument)[1] == 1
    assert shown(b"\xff\xfe", redact.argument) == ("2 bytes, in hexadecimal: fffe", 0)
    assert shown(b"", redact.argument) == ("", 0)


def test_a_terminal_obeys_no_agent() -> None:
    assert visible("a\x1b[2Jb\r\u200bc\nd\te") == "a\\u001b[2Jb\\u000d\\u200bc\nd\te"
    text, _ = shown(b'{"a": "\\u001b[2J", "b\\u202e": 1}', redact.argument)
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    "name", ["password", "db_password", "X-Api-Key", "clientSecret", "access_token", "secrets", "authToken", "cookie"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert redact.argument(name, "value") == redact.MARK


@pytest.mark.parametrize("name", ["amount", "max_tokens", "keyboard", "passenger", "tokenize", "secretary", ""])
def test_other_names_are_shown(name: str) -> None:
    assert redact.argument(name, "value") == "value"
