"""Every folder below `tests/golden/<dialect>/` is a case: a request, what it asks for, and the answers to it.

How to add one stands in `docs/dialects.md`; this suite picks it up by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshd.call import Ask
from meshd.dialects.contract import Dialect, Meter
from meshd.dialects.table import DIALECTS, RPC, dialect_at, recognise
from meshd.proxy.answer import splitter_of

GOLDEN = Path(__file__).parent.parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/*/request.*"))
STREAMS = {
    "stream.sse": b"text/event-stream; charset=utf-8",
    "stream.json": b"application/json; charset=UTF-8",
    "stream.ndjson": b"application/x-ndjson",
    "stream.bin": b"application/vnd.amazon.eventstream",
}
"""Content-type of a streamed answer, by its file."""


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        form = folder / "request.form"
        self.is_form = form.exists()
        self.body = form.read_bytes() if self.is_form else (folder / "request.json").read_bytes()
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_bytes())
        kind = b"application/json"
        if self.is_form:
            kind = b"multipart/form-data; boundary=" + self.body.partition(b"\r\n")[0][2:]
        self.dialect: Dialect = dialect_at(folder.parent.name, self.expected["path"])
        self.headers = [(b"content-type", kind)]

    def ask(self, body: bytes | None = None) -> Ask:
        return self.dialect.read(
            self.expected["operation"], self.body if body is None else body, self.expected["path"], self.headers
        )

    @property
    def stream(self) -> str:
        """The file of its streamed answer; empty where there is none."""
        return next((name for name in STREAMS if (self.folder / name).exists()), "")

    def bytes_of(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None


CASES = [Case(folder) for folder in FOLDERS]
NAMES = {case: f"{case.folder.parent.name}/{case.folder.name}" for case in CASES}
READ = [case for case in CASES if case.expected["operation"] is not None]

of_all = pytest.mark.parametrize("case", CASES, ids=NAMES.get)
of_read = pytest.mark.parametrize("case", READ, ids=NAMES.get)
of_plain = pytest.mark.parametrize(
    "case", [case for case in READ if case.bytes_of("reply.json") or case.bytes_of("reply.bin")], ids=NAMES.get
)
of_streamed = pytest.mark.parametrize("case", [case for case in READ if case.stream], ids=NAMES.get)


def test_there_are_cases_for_every_dialect() -> None:
    assert {folder.parent.name for folder in FOLDERS} == set(DIALECTS) - RPC


@of_all
def test_recognise(case: Case) -> None:
    method, path, operation = (case.expected[name] for name in ("method", "path", "operation"))
    assert case.dialect.recognise(method, path) == operation
    assert case.dialect.recognise("GET", path) is None
    if operation is not None:
        assert not case.dialect.is_free(method, path)
        assert recognise(method, path) == (case.dialect.name, operation)


@of_read
def test_ask(case: Case) -> None:
    ask = case.ask()
    assert ask.operation == case.expected["operation"]
    assert {name: _plain(getattr(ask, name)) for name in case.expected["ask"]} == case.expected["ask"]
    bound = case.expected["bound"]
    if bound == "bytes":
        assert len(case.body) <= ask.input_bound <= len(case.body) * 1.06 + 2_400
    else:
        assert ask.input_bound == bound


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@of_read
def test_rewrites(case: Case) -> None:
    for rewrite in case.expected["rewrites"]:
        ask = case.ask()
        ask.output_cap_granted = rewrite["grant"].get("output_cap")
        ask.model_granted = rewrite["grant"].get("model")
        body = case.dialect.rewrite(ask, case.body)
        if case.is_form:
            assert case.ask(body).model == (rewrite["changes"].get("model") or ask.model)
            assert len(body) == len(case.body) + len(ask.model_sent) - len(ask.model)
            continue
        assert json.loads(body) == json.loads(case.body) | rewrite["changes"]
        if not rewrite["changes"]:
            assert body is case.body
        path = case.expected["path"]
        assert case.dialect.redirect(ask, path) == rewrite.get("path", path)


@of_plain
def test_plain_answer(case: Case) -> None:
    body = case.bytes_of("reply.json") or case.bytes_of("reply.bin")
    assert body is not None
    ask = case.ask()
    meter = case.dialect.meter(ask)
    event = meter.read_message(body)
    assert event.raw is body
    _check(meter, list(event.tool_names), case, ask)


@of_streamed
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1, 37])
def test_stream(case: Case, piece_bytes: int) -> None:
    stream = case.bytes_of(case.stream)
    assert stream is not None
    ask = case.ask()
    meter = case.dialect.meter(ask)
    splitter = splitter_of(meter, [(b"content-type", STREAMS[case.stream])], 1 << 20)
    assert splitter is not None
    forwarded: list[bytes] = []
    tool_calls: list[str] = []
    assert not meter.is_terminal
    for begin in range(0, len(stream), piece_bytes):
        for raw in splitter.feed(stream[begin : begin + piece_bytes]):
            event = meter.read_event(raw)
            if event is not None:
                forwarded.append(event.raw)
                tool_calls += event.tool_names
                assert event.output_estimate == meter.output_estimate
    rest = splitter.rest()
    assert rest.strip() == b""
    assert b"".join(forwarded) + rest == (case.bytes_of("forwarded.sse") or stream)
    _check(meter, tool_calls, case, ask)


def _check(meter: Meter, tool_calls: list[str], case: Case, ask: Ask) -> None:
    expected = case.expected
    assert meter.is_terminal
    assert tool_calls == expected["tool_calls"]
    assert meter.response_id == expected["response_id"]
    assert meter.response_model == expected["response_model"]
    assert list(meter.finish_reasons) == expected["finish_reasons"]
    if expected["usage"] is None:
        assert meter.usage is None
        return
    assert meter.usage is not None
    assert {name: getattr(meter.usage, name) for name in expected["usage"]} == expected["usage"]
    assert meter.usage.is_estimated is expected.get("is_estimated", False)
    if not ask.unbounded:
        assert meter.usage.input_tokens <= ask.input_bound
        assert ask.has_output or meter.usage.total <= ask.input_bound
