"""Log lines: JSON, or text on a terminal, without secrets, and without floods.

`set_up` puts one handler on the root logger, so that what libraries log passes through the same door. A record's
own fields travel as `extra={"fields": {...}}`. Calls that end well are logged at debug level only.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from meshd.telemetry import redact

if TYPE_CHECKING:
    from typing import TextIO

LINE_LENGTH_MAX = 16_384
"""Characters of a message or of an exception's text."""
WINDOW_S = 10.0
LINES_PER_WINDOW = 5
KEYS_MAX = 512

_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
_LEVEL_NAMES = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LevelError(ValueError):
    """The log level is none of debug, info, warning, error."""


def level(name: str) -> int:
    """Return the number of a level by name, in any case. Raises LevelError."""
    found = _LEVEL_NAMES.get(name.strip().lower())
    if found is None:
        raise LevelError(f"MESHD_LOG: {name[:40]!r} is none of {', '.join(_LEVEL_NAMES)}")
    return found


def set_up(level_name: str = "info", *, stream: TextIO | None = None, form: str = "auto") -> logging.Handler:
    """Make the process log to `stream` (standard error) and return the handler.

    `form` is json, text, or auto: text where the stream is a terminal. Handlers that were there before are taken
    off: a second door would let secrets pass. Raises LevelError.
    """
    sink = stream if stream is not None else sys.stderr
    number = level(level_name)
    is_text = form == "text" or (form == "auto" and sink.isatty())
    handler = logging.StreamHandler(sink)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    # Libraries that log each of their own requests say nothing about ours.
    for name in ("aiohttp.access", "asyncio", "urllib3", "opentelemetry"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    return handler


def _message(record: logging.LogRecord) -> str:
    try:
        said = record.getMessage()
    except Exception:  # noqa: BLE001
        # A line with the wrong number of arguments is still worth its words.
        said = f"{record.msg} {record.args!r}"
    return redact.text(said[:LINE_LENGTH_MAX])


def _error(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        said = "".join(traceback.format_exception(*record.exc_info))
        return redact.text(said[-LINE_LENGTH_MAX:])
    return redact.text((record.exc_text or "")[-LINE_LENGTH_MAX:])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = getattr(record, "fields", None)
    return redact.anything(found) if isinstance(found, dict) else {}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the record's fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end. Never raises."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelno, record.levelname.lower()),
            "logger": record.name,
            "message": _message(record),
        }
        for key, value in _fields(record).items():
            entry.setdefault(key, value)
        error = _error(record)
        if error:
            entry["error"] = error
        try:
            return msgspec.json.encode(entry).decode()
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            # Lone surrogates, say: better a line in ASCII than none.
            return msgspec.json.encode({key: ascii(value).strip("'") for key, value in entry.items()}).decode()


class TextFormatter(logging.Formatter):
    """For people: time, level, message, fields as name=value. No control character reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or, with an exception, lines. Never raises."""
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        pairs = [f"{key}={_shown(value)}" for key, value in _fields(record).items()]
        line = " ".join([clock, f"{_LEVELS.get(record.levelno, record.levelname.lower()):7}", _message(record), *pairs])
        error = _error(record)
        printed = [_printable(line), *(_printable(part) for part in error.splitlines())]
        return "\n".join(printed)


def _shown(value: Any) -> str:
    said = str(value)
    return repr(said) if " " in said or not said else said


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class Summary(NamedTuple):
    """Lines of one kind that were not written."""

    kind: tuple[str, ...]
    suppressed: int


class FloodGate:
    """Lets the first lines of a kind pass in each window and counts the rest. Time is handed in.

    Pure: what it keeps is bounded, and kinds beyond `KEYS_MAX` share one.
    """

    __slots__ = ("_windows", "suppressed")

    def __init__(self) -> None:
        self._windows: dict[tuple[str, ...], list[float]] = {}
        self.suppressed = 0
        """Lines suppressed since the start."""

    def is_open(self, key: tuple[str, ...], now_s: float) -> bool:
        """Say whether a line of this kind may be written now; count it where not."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= KEYS_MAX:
                key = ("other",)
            window = self._windows.setdefault(key, [now_s, 0, 0])
        if now_s - window[0] >= WINDOW_S:
            window[0], window[1] = now_s, 0
        window[1] += 1
        if window[1] <= LINES_PER_WINDOW:
            return True
        window[2] += 1
        self.suppressed += 1
        return False

    def summaries(self, now_s: float) -> list[Summary]:
        """Return what was suppressed since the last time, and forget it and the windows that are over."""
        found = []
        for key, window in list(self._windows.items()):
            if window[2]:
                found.append(Summary(key, int(window[2])))
                window[2] = 0
            if now_s - window[0] >= WINDOW_S:
                del self._windows[key]
        return found
