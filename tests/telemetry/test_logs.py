"""Secrets are put wherever one could stand, and looked for in what comes out."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.outcome import Fault, Verdict
from meshd.refusal import Reason, Refused
from meshd.telemetry import logs, redact
from meshd.telemetry.logs import FloodGate, LevelError, Summary, set_up
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import call, outcome, upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "c4n4ryC4N4RYc4n4ry"
SECRETS = [
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}_x-y",
    f"sk-ant-api03-{CANARY}",
    f"AIzaSy{CANARY}",
    f"Bearer {CANARY}",
    f"bearer%20{CANARY}",
    f"Basic {CANARY}==",
    f"eyJhbGciOiJIUzI1NiJ9.eyJ{CANARY}.{CANARY}",
    f"http://127.0.0.1:7400/w/{CANARY}/openai/v1/chat",
    f"/w/{CANARY}",
    f"%2Fw%2F{CANARY}%2Fopenai",
    f"https://example.test/a?x=1&api_key={CANARY}&y=2",
    f"/v1/models?key={CANARY}",
    f"https://user:{CANARY}@example.test/",
    f"redis://:{CANARY}@10.0.0.1:6379/0",
    f"authorization: {CANARY}",
    f"Authorization: Token {CANARY} {CANARY}",
    f"x-api-key:{CANARY}",
    f"x-goog-api-key = {CANARY}",
    f"Cookie: a=b; session={CANARY}",
    f"set-cookie: session={CANARY}; Path=/",
    f"x-meshd-context: {CANARY}.{CANARY}",
    f"(b'authorization', b'{CANARY}')",
    f'{{"x-api-key": "{CANARY}", "a": 1}}',
    f'{{"cookie": "a=\\"{CANARY}\\"; {CANARY}"}}',
    f"ghp_{CANARY}",
    f"gsk_{CANARY}",
    f"xoxb-{CANARY}",
    f"AKIA{CANARY.upper()}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
]
HEADERS = [
    (name.encode(), CANARY.encode())
    for name in (*redact.HEADERS, "X-API-Key", "Authorization", "x-other-api-key", "x-session-token")
]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What a process that was set up to log in JSON has written."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    sink = io.StringIO()
    set_up("debug", stream=sink, form="json")
    yield sink
    root.handlers[:] = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def has_canary(text: str) -> bool:
    return CANARY.lower() in text.lower()


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_reaches_the_sink(stream: io.StringIO, secret: str, form: str) -> None:
    log = logging.getLogger("meshd.test")
    set_up("debug", stream=stream, form=form)
    log.warning(secret)
    log.warning("said %s and %r", secret, {"nested": [secret]})
    log.warning("in fields", extra={"fields": {"a": secret, "deep": [{"b": (secret, secret.encode())}], secret: 1}})
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("failed")
    assert len(stream.getvalue().splitlines()) >= 4
    assert not has_canary(stream.getvalue())
    assert redact.MARK in stream.getvalue()


def test_header_fields_on_the_list_never_show(stream: io.StringIO) -> None:
    log = logging.getLogger("meshd.test")
    log.info("call", extra={"fields": {"headers": HEADERS}})
    log.info("call", extra={"fields": {"headers": {name.decode(): value for name, value in HEADERS}}})
    log.info("call with %s", HEADERS)
    assert not has_canary(stream.getvalue())
    shown = lines(stream)[0]["headers"]
    assert ["authorization", redact.MARK] in shown
    assert len(shown) == len(HEADERS)


def test_a_refused_call_with_secrets_everywhere_is_logged_without_them(stream: io.StringIO) -> None:
    telemetry = Telemetry()
    made = call(upstream(), headers=HEADERS, path=f"/v1/chat/w/{CANARY}?api_key={CANARY}", model=f"sk-{CANARY}")
    made.body = CANARY.encode()
    made.run_token = CANARY
    telemetry.started(made)
    telemetry.ended(made, 403, None, Refused(Reason.NOT_ALLOWED, f"Bearer {CANARY} may not call", rule="r"))
    entry = lines(stream)[-1]
    assert not has_canary(stream.getvalue())
    assert (entry["level"], entry["reason"], entry["workflow"], entry["status"]) == (
        "warning", "not_allowed", "wf-1", 403,
    )  # fmt: skip


def test_what_is_no_secret_stays(stream: io.StringIO) -> None:
    log = logging.getLogger("meshd.test")
    said = "workflow wf-12 used 4,000 of 50,000 tokens on gpt-4o-mini via https://api.openai.com/v1/chat/completions"
    log.info(said, extra={"fields": {"tokens": 5, "max_tokens": 7, "model": "claude-sonnet-4-5", "ok": True}})
    entry = lines(stream)[0]
    assert entry["message"] == said
    assert (entry["tokens"], entry["max_tokens"], entry["model"], entry["ok"]) == (5, 7, "claude-sonnet-4-5", True)


@given(st.text(max_size=300))
def test_any_text_is_redacted_without_error(value: str) -> None:
    once = redact.text(value)
    assert isinstance(once, str)
    assert not has_canary(redact.text(f"{value} sk-{CANARY}"))


PIECES = [
    "/w/", "sk-", "eyJ.", "eyJaaaa.", "a://", "a", "aaa+", "authorization: '", "authorization:", "\\", "=", " '", "@",
    "-----BEGIN PRIVATE KEY-----", "?key=", "basic ", "basic%20",
]  # fmt: skip


@pytest.mark.parametrize("said", ["prompt://summarise@^1.2?topic=bees", "prompt://NAME, prompt://NAME@VERSION"])
def test_a_prompts_name_is_no_password(said: str) -> None:
    assert redact.text(said) == said
    assert redact.MARK in redact.text(f"xprompt://u:{CANARY}@host")


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_of_nonsense_is_redacted_in_time(piece: str) -> None:
    # A pattern that tries every start against every end took a second for 16 kB; this would take hours.
    redact.text(piece * (2**20 // len(piece)))


@pytest.mark.parametrize(
    "fields",
    [
        {"a": "\ud800"}, {"a": float("nan")}, {"a": 10**400}, {"a": object()}, {"a": {1: {2: {3: {4: 5}}}}}, {1: 2},
        {"message": "mine", "level": "mine"}, {"a": b"\xff\x00"}, {"a": {"x", "y"}}, "not a map", None,
    ],
)  # fmt: skip
def test_odd_fields_still_give_a_line_of_json(stream: io.StringIO, fields: object) -> None:
    logging.getLogger("meshd.test").info("said", extra={"fields": fields})
    found = lines(stream)
    assert len(found) == 1
    assert (found[0]["message"], found[0]["level"]) == ("said", "info")


def test_a_field_that_contains_itself_ends(stream: io.StringIO) -> None:
    loop: list[Any] = []
    loop.append(loop)
    logging.getLogger("meshd.test").info("said", extra={"fields": {"a": loop}})
    assert lines(stream)[0]["message"] == "said"


def test_wrong_arguments_still_give_a_line() -> None:
    record = logging.LogRecord("meshd.test", logging.INFO, "", 1, "%d of %d", ("one",), None)
    assert json.loads(logs.JsonFormatter().format(record))["message"] == "%d of %d ('one',)"
    assert logs.TextFormatter().format(record).endswith("%d of %d ('one',)")


def test_nobody_writes_a_second_line_or_drives_the_terminal(stream: io.StringIO) -> None:
    logging.getLogger("meshd.test").info("a\n{}\r\x1b[31mred", extra={"fields": {"b": "c\nd"}})
    assert len(stream.getvalue().splitlines()) == 1
    set_up("info", stream=stream, form="text")
    logging.getLogger("meshd.test").info("a\nfake \x1b[31mred \u202e", extra={"fields": {"b": "c\nd"}})
    text = stream.getvalue().splitlines()[1:]
    assert len(text) == 1
    assert text[0].isprintable()


def test_a_terminal_gets_text_and_a_pipe_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        assert isinstance(set_up(stream=Terminal()).formatter, logs.TextFormatter)
        assert isinstance(set_up(stream=io.StringIO()).formatter, logs.JsonFormatter)
        assert len(root.handlers) == 1
        with pytest.raises(LevelError, match=r"^MESHD_LOG: 'loud' is none of debug"):
            set_up("loud")
        assert len(root.handlers) == 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_calls_that_end_well_are_logged_at_debug_only(stream: io.StringIO) -> None:
    def end_one() -> None:
        telemetry, made = Telemetry(), call(upstream())
        telemetry.started(made)
        telemetry.ended(made, 200, outcome(), None)

    logging.getLogger().setLevel(logging.INFO)
    end_one()
    assert stream.getvalue() == ""
    logging.getLogger().setLevel(logging.DEBUG)
    end_one()
    assert lines(stream)[0]["duration_ms"] == 250


def test_a_flood_is_summed_up(stream: io.StringIO) -> None:
    now = [1000.0]
    telemetry = Telemetry(clock=lambda: now[0])
    for _ in range(1000):
        made = call(upstream())
        telemetry.started(made)
        telemetry.ended(made, 402, None, Refused(Reason.BUDGET_EXHAUSTED, "used up"))
    made = call(upstream())
    telemetry.started(made)
    telemetry.ended(made, 502, outcome(Verdict.FAILURE, status=0, fault=Fault.CONNECT), None)
    assert [entry["message"] for entry in lines(stream)] == [
        *["call refused: used up"] * logs.LINES_PER_WINDOW, "call failed: connect",
    ]  # fmt: skip
    telemetry.close()
    last = lines(stream)[-1]
    assert last["suppressed"] == 1000 - logs.LINES_PER_WINDOW
    assert last["message"] == "and 995 more calls refused budget_exhausted openai"
    assert telemetry.tally.lines_suppressed == 995


def test_the_gate_opens_again_and_forgets() -> None:
    gate = FloodGate()
    passed = [gate.is_open(("a",), 0.0) for _ in range(8)]
    assert passed == [True] * 5 + [False] * 3
    assert gate.is_open(("b",), 0.0)
    assert gate.is_open(("a",), 10.0)
    assert gate.summaries(10.0) == [Summary(("a",), 3)]
    assert gate.summaries(30.0) == []
    for number in range(5000):
        gate.is_open((f"kind-{number}",), 40.0)
    assert len(gate._windows) <= logs.KEYS_MAX + 1
