"""Every folder below `tests/golden/translation/` is a case: what was asked and sent, what was answered and replied.

case.json                 the two dialects, the model, the cap that was granted, the path, the time
asked.json, sent.json     the caller's request, and what the upstream is sent for it
answer.json, reply.json   the upstream's plain answer, and what the caller gets for it
answer.sse, reply.sse     the same of a stream
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshd.dialects.table import DIALECTS
from meshd.dialects.translation import Translation, translation
from meshd.wire.sse import Splitter

GOLDEN = Path(__file__).parent.parent / "golden" / "translation"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/case.json"))
of_each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def case_of(folder: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((folder / "case.json").read_bytes())
    return case


def sent_for(folder: Path) -> tuple[Translation, str, bytes]:
    """Translate the request of a case; return the translation, the path and the body."""
    case = case_of(folder)
    body = (folder / "asked.json").read_bytes()
    ask = DIALECTS[case["from"]].read("chat", body)
    made = translation(case["from"], case["to"], "chat")
    assert made is not None
    assert made.why_not(ask, case["model"]) == ""
    path, sent = made.request(ask, body, model=case["model"], output_cap=case["output_cap"])
    return made, path, sent


def test_there_are_cases_of_both_directions_and_kinds() -> None:
    kinds = {(case_of(folder)["from"], (folder / "answer.sse").exists()) for folder in FOLDERS}
    assert kinds == {(caller, is_stream) for caller in ("openai", "anthropic") for is_stream in (True, False)}


@of_each
def test_request(folder: Path) -> None:
    _, path, sent = sent_for(folder)
    assert path == case_of(folder)["path"]
    assert json.loads(sent) == json.loads((folder / "sent.json").read_bytes())


@of_each
def test_answer(folder: Path) -> None:
    made, _, _ = sent_for(folder)
    created = case_of(folder)["created"]
    stream = folder / "answer.sse"
    if stream.exists():
        translator = made.stream(created=created)
        events = Splitter().feed(stream.read_bytes())
        reply = b"".join(translator.feed(event) for event in events) + translator.end()
        assert reply == (folder / "reply.sse").read_bytes()
        assert translator.is_whole
    else:
        reply = made.reply((folder / "answer.json").read_bytes(), created=created)
        assert json.loads(reply) == json.loads((folder / "reply.json").read_bytes())


@of_each
def test_the_caller_s_own_meter_reads_the_reply_to_its_end(folder: Path) -> None:
    case = case_of(folder)
    dialect = DIALECTS[case["from"]]
    meter = dialect.meter(dialect.read("chat", (folder / "asked.json").read_bytes()))
    stream = folder / "reply.sse"
    if stream.exists():
        for event in Splitter().feed(stream.read_bytes()):
            meter.read_event(event)
    else:
        meter.read_message((folder / "reply.json").read_bytes())
    assert meter.is_terminal
    # And the upstream's own meter reads the same tokens of the answer, where the caller is told of them.
    upstream = DIALECTS[case["to"]]
    other = upstream.meter(upstream.read("chat", (folder / "sent.json").read_bytes()))
    if stream.exists():
        for event in Splitter().feed((folder / "answer.sse").read_bytes()):
            other.read_event(event)
    else:
        other.read_message((folder / "answer.json").read_bytes())
    assert meter.usage in (other.usage, None)
    assert other.usage is not None
