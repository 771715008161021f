"""A request about images or audio, whether it came as JSON or as a form: its fields are read and written the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.multipart import Form, is_form, read_form
from meshd.dialects.openai_request import Request, written

if TYPE_CHECKING:
    from meshd.call import Ask, Headers
    from meshd.dialects.json_pairs import Pairs

_BRACKET: Final = 0x5B


class MediaRequest(Request):
    """See `Request`."""

    __slots__ = ("_body", "body_bytes", "form")

    def __init__(self, body: bytes, headers: Headers | None) -> None:
        """Raises Refused(MALFORMED) as `read_form` and `read_body` do."""
        form = read_form(body, headers) if is_form(headers) else None
        pairs: Pairs = {} if form is not None else pairs_of.read_body(body)
        super().__init__(pairs, "")
        self.form: Form | None = form
        self._body = body
        self.body_bytes = len(body)
        self.model = self.text("model") or ""

    @property
    def text_bytes(self) -> int:
        """Bytes of all that is no file, or of its normal form where that is more."""
        return normalised_bytes(self._body if self.form is None else self.form.texts)

    def text(self, name: str) -> str | None:
        """Return a field's text; None where it is absent."""
        return pairs_of.text(self.pairs, name) if self.form is None else self.form.text(name)

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        """Return a field's number; None where it is absent."""
        if self.form is None:
            return pairs_of.integer(self.pairs, name, least=least, most=most)
        return self.form.integer(name, least=least, most=most)

    def flag(self, name: str) -> bool:
        """Say whether a field is set."""
        return pairs_of.flag(self.pairs, name) is True if self.form is None else self.form.flag(name)

    def has(self, name: str) -> bool:
        """Say whether there is a field of this name, or one of its members (`name[type]`)."""
        if self.form is None:
            return pairs_of.member(self.pairs, name) is not None
        return any(part.name == name or part.name.startswith(f"{name}[") for part in self.form.parts)

    def given(self, *names: str) -> int:
        """Return how many files, or references to files, come under these names."""
        if self.form is not None:
            return sum(part.name in names for part in self.form.parts)
        found = 0
        for name in names:
            raw = pairs_of.member(self.pairs, name)
            if raw is not None:
                found += len(pairs_of.read_items(raw, f"'{name}'")) if memoryview(raw)[0] == _BRACKET else 1
        return found


def rewritten(ask: Ask, body: bytes) -> bytes:
    """Return the body to forward: with the model that was granted, `body` itself where nothing changes."""
    request: MediaRequest = ask.fields
    if request.form is None:
        return written(ask, body)
    return body if ask.model_sent == request.model else request.form.replaced("model", ask.model_sent)
