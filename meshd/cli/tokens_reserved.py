"""What a budget would reserve for one request, and what that is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from meshd.cli.explain_request import RequestError, has_request_line, read_request
from meshd.dialects.table import dialect_at, recognise
from meshd.dialects.windows import WINDOW_UNKNOWN, family, window
from meshd.filters.purse import OUTPUT_DEFAULT
from meshd.ledger.cost import bound_of
from meshd.limits import Limits
from meshd.tokens.counter import Counter
from meshd.tokens.encodings import BYTES, encoding_of

if TYPE_CHECKING:
    from meshd.call import Ask, Headers


class Counted(NamedTuple):
    """An exact count."""

    encoding: str
    rows: list[tuple[str, int]]
    """Texts and their tokens."""
    overhead: int

    @property
    def total(self) -> int:
        """Tokens of it all."""
        return sum(tokens for _, tokens in self.rows) + self.overhead


class Reserved(NamedTuple):
    """One request's reservation."""

    dialect: str
    ask: Ask
    body_bytes: int
    cap: int
    """Output tokens for each choice."""
    is_cap_set: bool
    bound: int
    """Tokens reserved at first: the input's bound and the output's."""
    counted: Counted | None
    uncounted: str
    """Why there is no exact count, where there is none."""

    @property
    def bound_counted(self) -> int | None:
        """Tokens reserved where `bound` does not fit; None where a count lowers nothing."""
        if self.counted is None or self.counted.total >= self.ask.input_bound:
            return None
        return self.bound - self.ask.input_bound + self.counted.total


def reserved(data: bytes, *, dialect: str = "", operation: str = "chat", counter: Counter | None = None) -> Reserved:
    """Read a request and work out what it reserves, with a budget's defaults. Nothing is sent.

    `data` is a request as `meshd explain` takes it, or with `dialect` a bare JSON body. Raises RequestError, or
    Refused for what meshd would not forward.
    """
    body, name, operation, path, headers = _body_of(data, dialect, operation)
    one = dialect_at(name, path)
    ask = one.read(operation, body, path, headers)
    cap, bound = bound_of(ask, OUTPUT_DEFAULT)
    counted, uncounted = _count(ask, getattr(one, "texts", None), counter or Counter())
    return Reserved(name, ask, len(body), cap, ask.output_cap is not None, bound, counted, uncounted)


def _body_of(data: bytes, dialect: str, operation: str) -> tuple[bytes, str, str, str, Headers]:
    """Return the body, the dialect's name, the operation, the path and the header fields: none of a bare body."""
    if not data.strip():
        raise RequestError("it is empty")
    is_whole = _has_url(data) if data.lstrip()[:1] == b"{" else has_request_line(data) or not dialect
    if not is_whole:
        if dialect:
            return data.strip(), dialect, operation, "", []
        raise RequestError(
            "this is no request with a url; if it is a request's body, say with --dialect how to read it"
        )
    asked = read_request(data, Limits())
    request = asked.request
    if request is None:
        raise RequestError("there is no request in it")
    found: tuple[str, str] | None
    if dialect:
        known = dialect_at(dialect, request.target).recognise(request.method, request.target)
        found = (dialect, known) if known is not None else None
    else:
        found = recognise(request.method, request.target)
    if found is None:
        raise RequestError(
            f"{request.method} {request.target} is no request that a dialect reads"
            f"{f' ({dialect})' if dialect else ''}: a budget bounds or refuses it by its path alone"
        )
    return asked.body, *found, request.target, request.fields.headers


def _has_url(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "url" in value


def _count(ask: Ask, texts: object, counter: Counter) -> tuple[Counted | None, str]:
    """Count a request; or say why it cannot be."""
    encoding = encoding_of(ask.model_sent)
    if ask.bound_by != BYTES:
        return None, "the body does not show all of the input"
    if not encoding:
        return None, f"no tokenizer of {ask.model or 'this model'} is published that meshd has"
    if not callable(texts):
        return None, "this dialect's requests are not counted"
    found = texts(ask)
    if found is None:
        return None, "its texts cannot be told apart"
    counts = counter.count_here(encoding, found.parts)
    if counts is None:
        return None, f"the vocabulary {encoding} cannot be loaded"
    return Counted(encoding, list(zip(found.labels, counts, strict=True)), found.overhead), ""


def window_of(model: str) -> str:
    """Say what is known of a model's context window."""
    found = window(model)
    if found == WINDOW_UNKNOWN:
        return f"not known, so the largest that is sold, {found:,}"
    return f"{found:,} ({family(model)})"
