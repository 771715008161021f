"""Exports are valid by their specifications, whatever the log holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshd.trace import kinds
from meshd.trace.exporting import export
from meshd.trace.record import CALLERS, callers
from meshd.trace.recorder import Recorder
from tests.trace.logs import opened, reader

CALLER = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b701")
OWN = CALLER[:16] + bytes(range(1, 9)) + b"\x01"
HEAD = ("out", "llm", "POST", "", "chat", "gpt-4o", 1, None, 1, False, "", "", 0, "named")


def exported(home: Path, form: str, write: Callable[[Recorder], None]) -> str:
    recorder = opened(home)
    write(recorder)
    recorder.close()
    end = "" if form == "prov" else "\n"
    return "".join(piece + end for piece in export(form, lambda: reader(home).events("w")))


def spans_of(home: Path, write: Callable[[Recorder], None]) -> list[dict[str, Any]]:
    found = []
    for line in exported(home, "otlp", write).splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            found += resource["scopeSpans"][0]["spans"]
    ids = [(span["traceId"], span["spanId"]) for span in found]
    assert len(set(ids)) == len(ids), "no two spans have one id"
    for span in found:
        parent = (span["traceId"], span.get("parentSpanId"))
        assert parent[1] is None or parent in ids or parent[1] == CALLER[16:24].hex()
        assert parent not in [(span["traceId"], span["spanId"])], "none is its own parent"
    return found


def test_spans_of_state_and_calls_within_a_callers_span(tmp_path: Path) -> None:
    """Without a collector meshd makes no spans: what an agent does in its own is told by that one."""

    def write(log: Recorder) -> None:
        span = callers(CALLER)
        writing = log.note(kinds.WRITING, "w", ("mesh/a", 0, "commit"), agent="ann", causes=(), span=span)
        log.note(kinds.STATE, "w", ("mesh/a", 1, "commit", "done"), agent="ann", causes=(writing,), span=span)
        log.note(kinds.READ, "w", ("mesh/a", 1, "get", "found", "ann", b""), causes=(writing,), span=span)
        log.note(kinds.FORWARDED, "w", (*HEAD, 1), agent="ann", causes=(), span=span)

    writing, read, call = sorted(spans_of(tmp_path, write), key=lambda span: span["name"], reverse=True)
    assert read["parentSpanId"] == writing["spanId"]
    assert writing["parentSpanId"] == call["parentSpanId"] == CALLER[16:24].hex()
    assert {span["traceId"] for span in (writing, read, call)} == {CALLER[:16].hex()}


def test_attempts_of_one_call_are_spans_of_their_own(tmp_path: Path) -> None:
    def write(log: Recorder) -> None:
        first = log.note(kinds.FORWARDED, "w", (*HEAD, 1), causes=(), span=OWN)
        log.note(kinds.ENDED, "w", (500, "failure"), causes=(first,), span=OWN)
        log.note(kinds.FORWARDED, "w", (*HEAD, 2), causes=(first,), span=OWN)

    first, again = sorted(spans_of(tmp_path, write), key=lambda span: "parentSpanId" in span)
    assert first["spanId"] == OWN[16:24].hex()
    assert (again["parentSpanId"], again["traceId"]) == (first["spanId"], first["traceId"])


def test_a_log_of_an_earlier_meshd_has_the_callers_span_unmarked(tmp_path: Path) -> None:
    def write(log: Recorder) -> None:
        for _ in range(3):
            last = log.note(kinds.READ, "w", ("mesh/a", 1, "get", "found", "ann", b""), causes=(), span=CALLER)
        log.note(kinds.READ, "w", ("mesh/a", 1, "get", "found", "ann", b""), causes=(last,), span=CALLER)

    assert len(spans_of(tmp_path, write)) == 4


def test_what_follows_from_another_trace_is_linked(tmp_path: Path) -> None:
    other = b"\x07" * 24 + b"\x01"

    def write(log: Recorder) -> None:
        first = log.note(kinds.NOTE, "w", ("n", "", 0, 0, "", 0, False), causes=(), span=OWN)
        inner = log.note(kinds.PUBLISHED, "w", ("e", "t", "", "ann"), causes=(first,))
        log.note(kinds.NOTE, "w", ("n", "", 0, 0, "", 0, False), causes=(inner,), span=other)

    note, published, elsewhere = spans_of(tmp_path, write)
    assert (published["parentSpanId"], published["traceId"]) == (note["spanId"], note["traceId"])
    assert "parentSpanId" not in elsewhere
    assert elsewhere["links"] == [{"traceId": published["traceId"], "spanId": published["spanId"]}]


def test_a_traceparent_has_the_flags_that_it_may_have(tmp_path: Path) -> None:
    def write(log: Recorder) -> None:
        log.note(kinds.NOTE, "w", ("n", "", 0, 0, "", 0, False), causes=(), span=callers(CALLER))

    assert callers(CALLER)[24] & CALLERS
    event = json.loads(exported(tmp_path, "cloudevents", write))
    assert event["traceparent"] == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("id", ["e1", 'e 1"é', "a:b@c=d,e(f)", "<x>\t\\", "%41", "日本"])
def test_names_of_prov_are_qualified_names(tmp_path: Path, id: str) -> None:
    def write(log: Recorder) -> None:
        log.note(kinds.PUBLISHED, "w", (id, "t", "", "ann"), agent="ann", digest=b"\x01" * 32)

    document = json.loads(exported(tmp_path, "prov", write))
    (message,) = [name for name in document["entity"] if name.startswith("meshd:message:")]
    assert message.isascii()
    assert not set(message) & set(" \t\"'<>\\^`{|}=,()")
    assert {one["prov:entity"] for one in document["wasGeneratedBy"].values()} == {message}


def test_types_of_prov_are_names_and_no_texts(tmp_path: Path) -> None:
    """PROV-JSON: a value that is a qualified name says so, or it is a text to whoever reads it."""

    def write(log: Recorder) -> None:
        log.note(kinds.STATE, "w", ("mesh/a", 1, "commit", "done"), agent="ann")

    document = json.loads(exported(tmp_path, "prov", write))
    types = [one["prov:type"] for part in ("agent", "activity", "entity") for one in document[part].values()]
    assert {one["type"] for one in types} == {"prov:QUALIFIED_NAME"}
    assert {one["$"] for one in types} == {"prov:SoftwareAgent", "meshd:state", "meshd:version"}
