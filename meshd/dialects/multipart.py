"""Bodies of multipart/form-data (RFC 7578), read so that no two servers can take them apart in different ways.

Only what is written in the one usual way is read: the boundary of the header field opens the body and closes it, each
part has one `content-disposition` with a plain name, and what decides is UTF-8 and not encoded again. What strays from
that is refused rather than guessed: a field that one server sees and another does not would be judged as one thing and
served as another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.dialects.json_pairs import malformed

if TYPE_CHECKING:
    from meshd.call import Headers

PARTS_MAX: Final = 256
_HEAD_BYTES_MAX: Final = 4096
_TYPE: Final = re.compile(
    rb"multipart/form-data[ \t]*;[ \t]*boundary=(?:\"([A-Za-z0-9'()+_,./:=? -]{1,70})\"|([A-Za-z0-9'+_.-]{1,70}))"
    rb"[ \t]*\Z",
    re.IGNORECASE,
)
_DISPOSITION: Final = re.compile(
    rb"form-data[ \t]*;[ \t]*name=\"([^\"\\\r\n]{1,128})\"([ \t]*;[ \t]*filename=\"[^\"\r\n]*\")?"
    rb"([ \t]*;[ \t]*filename\*=[^;\r\n\"]*)?[ \t]*\Z",
    re.IGNORECASE,
)
_CHARSET: Final = re.compile(rb"charset[ \t]*=[ \t]*\"?([^\";]*)", re.IGNORECASE)
_PLAIN_CHARSETS: Final = frozenset({b"utf-8", b"utf8", b"us-ascii"})
_DIGITS: Final = re.compile(r"[0-9]{1,9}\Z")


class Part:
    """One field of a form."""

    __slots__ = ("begin", "end", "head", "is_file", "name")

    def __init__(self, name: str, head: bytes, begin: int, end: int, is_file: bool) -> None:
        self.name = name
        """Without the brackets by which some clients mark one of several."""
        self.head = head
        self.begin = begin
        self.end = end
        """Its content is `body[begin:end]`."""
        self.is_file = is_file


class Form:
    """The fields of a body, in order."""

    __slots__ = ("_body", "parts")

    def __init__(self, body: bytes, parts: list[Part]) -> None:
        self._body = body
        self.parts = parts

    def field(self, name: str) -> Part | None:
        """Return the one field of a name. Raises Refused(MALFORMED) where it stands more than once, or is a file."""
        found = [part for part in self.parts if part.name == name]
        if len(found) > 1:
            malformed(f"the form has the field {name!r} more than once; which one counts differs between servers")
        if found and found[0].is_file:
            malformed(f"the form's field {name!r} must be a text, not a file")
        return found[0] if found else None

    def text(self, name: str) -> str | None:
        """Return the text of a field; None where it is absent. Raises Refused(MALFORMED) as `field` does, and on what
        is not UTF-8."""
        part = self.field(name)
        if part is None:
            return None
        for line in part.head.split(b"\r\n"):
            title, _, value = line.partition(b":")
            charset = _CHARSET.search(value)
            if title.strip().lower() == b"content-transfer-encoding" and value.strip().lower() not in (
                b"8bit",
                b"7bit",
            ):
                malformed(f"the form's field {name!r} is encoded ({value.strip()[:40].decode('latin-1')})")
            if charset is not None and charset[1].strip().lower() not in _PLAIN_CHARSETS:
                malformed(f"the form's field {name!r} is not in UTF-8")
        try:
            return self._body[part.begin : part.end].decode()
        except UnicodeDecodeError:
            malformed(f"the form's field {name!r} is not in UTF-8")

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        """Return a field's number; None where it is absent. Raises Refused(MALFORMED) on what is no such number."""
        text = self.text(name)
        if text is None or text == "":
            return None
        if _DIGITS.match(text) is None or not least <= int(text) <= most:
            malformed(f"{name!r} must be an integer from {least} to {most}, not {text[:40]!r}")
        return int(text)

    def flag(self, name: str) -> bool:
        """Say whether a field is set, in any of the spellings that servers take for yes."""
        text = self.text(name)
        return text is not None and text.strip().lower() not in ("", "false", "0", "no", "off", "f", "n")

    @property
    def texts(self) -> bytes:
        """All that is no file, one behind the other. Raises Refused(MALFORMED) on what is not UTF-8."""
        texts = b"".join([self._body[part.begin : part.end] for part in self.parts if not part.is_file])
        try:
            texts.decode()
        except UnicodeDecodeError:
            malformed("a text of the form is not in UTF-8")
        return texts

    def replaced(self, name: str, text: str) -> bytes:
        """Return the body with another text in a field; with a new field in front where it has none."""
        body, value = self._body, text.encode()
        if b"\r" in value or b"\n" in value:
            malformed(f"{name!r} cannot be written into a form: it breaks the line")
        part = self.field(name)
        if part is not None:
            return body[: part.begin] + value + body[part.end :]
        opening = body[: body.index(b"\r\n") + 2]
        return b'%bcontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n%b' % (opening, name.encode(), value, body)


def is_form(headers: Headers | None) -> bool:
    """Say whether the request's body is a form, by its content type."""
    return any(
        name == b"content-type" and value.lstrip()[:10].lower() == b"multipart/" for name, value in headers or ()
    )


def read_form(body: bytes, headers: Headers | None) -> Form:
    """Return the fields of a form. Raises Refused(MALFORMED) on one that servers may read in different ways."""
    types = [value for name, value in headers or () if name == b"content-type"]
    match = _TYPE.match(types[0].strip()) if len(types) == 1 else None
    if match is None:
        malformed("the content-type must be given once, as multipart/form-data with a plain boundary and nothing else")
    border = b"--" + (match[1] or match[2])
    if not body.startswith(border + b"\r\n"):
        malformed("the form does not begin with the boundary that its content-type names")
    parts: list[Part] = []
    begin = len(border) + 2
    closing = b"\r\n" + border
    while True:
        if len(parts) == PARTS_MAX:
            malformed(f"the form has more than {PARTS_MAX} fields")
        at = body.find(b"\r\n\r\n", begin, begin + _HEAD_BYTES_MAX)
        # A boundary right behind the head is one for some servers, and content for others.
        end = body.find(closing, at + 4) if at != -1 and not body.startswith(closing, at + 2) else -1
        if end == -1:
            malformed("the form ends within a field, or a field has no head")
        parts.append(_part(body[begin:at], at + 4, end))
        behind = end + len(closing)
        if body.startswith(b"--", behind):
            if body[behind + 2 :] not in (b"", b"\r\n"):
                malformed("the form goes on behind its end")
            return Form(body, parts)
        if not body.startswith(b"\r\n", behind):
            malformed("a field holds the form's boundary")
        begin = behind + 2


def _part(head: bytes, begin: int, end: int) -> Part:
    found: list[bytes] = []
    for line in head.split(b"\r\n"):
        title, colon, value = line.partition(b":")
        if not colon or not title or title != title.strip() or b"\n" in line or b"\r" in line:
            malformed("a head of the form is not written as `name: value` lines")
        if title.lower() == b"content-disposition":
            found.append(value.strip())
    match = _DISPOSITION.match(found[0]) if len(found) == 1 else None
    if match is None:
        malformed("a field of the form does not say its name in the usual way")
    try:
        name = match[1].decode()
    except UnicodeDecodeError:
        malformed("the name of a form's field is not UTF-8")
    return Part(name.removesuffix("[]"), head, begin, end, bool(match[2] or match[3]))
