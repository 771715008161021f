"""A prompt's text, in which `{{name}}` stands for the value of a variable.

Only the backslashes directly before `{{` mean anything, and two of them are one: one writes the two braces themselves,
two a backslash and then the value. `}}` alone stands for itself. A value is put in as it is: braces in it are no
variable.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT_BYTES_MAX: Final = 64 * 1024
"""Of a prompt's text."""
RENDERED_CHARACTERS_MAX: Final = 256 * 1024
"""Of a prompt with its variables filled in."""
VARIABLES_MAX: Final = 64
SHOWN_MAX: Final = 10
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_OPENING: Final = re.compile(r"(?<!\\)(\\*)\{\{")
_VARIABLE: Final = re.compile(rf"[ \t]*({VARIABLE.pattern})[ \t]*\}}\}}")
# Everything below a blank but for tab and line feed: no prompt needs it, and terminals obey it.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class TemplateError(ValueError):
    """A text is no template. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.args[0]}"


class VariableError(ValueError):
    """The variables that are given are not those that the template has."""


class Template(NamedTuple):
    """A text in pieces: those at even places stand for themselves, those between them name variables."""

    pieces: tuple[str, ...]

    @property
    def variables(self) -> tuple[str, ...]:
        """The names, each once, in the order of the text."""
        return tuple(dict.fromkeys(self.pieces[1::2]))

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text with `values` put in; those that it has no place for are left alone.

        Raises VariableError where one is missing, or the text becomes too long.
        """
        missing = [name for name in self.variables if name not in values]
        if missing:
            raise VariableError(f"no value is given for {listed(missing)}")
        filled = [values[piece] if at % 2 else piece for at, piece in enumerate(self.pieces)]
        if sum(map(len, filled)) > RENDERED_CHARACTERS_MAX:
            raise VariableError(f"with its variables it is longer than {RENDERED_CHARACTERS_MAX} characters")
        return "".join(filled)


def parse(text: str) -> Template:
    """Return the template of a text. Raises TemplateError."""
    if not text.strip():
        raise TemplateError("a prompt has a text", 1, 1)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _at(text, error.start, "half of a surrogate pair is no text") from None
    if size > TEXT_BYTES_MAX:
        raise TemplateError(f"it has {size} bytes, and a prompt at most {TEXT_BYTES_MAX}", 1, 1)
    if (control := _CONTROL.search(text)) is not None:
        raise _at(text, control.start(), f"a prompt has no control character such as {control[0]!r}")
    pieces: list[str] = []
    literal: list[str] = []
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        slashes = len(opening[1])
        literal.append(text[at : opening.start()] + "\\" * (slashes // 2))
        if slashes % 2:
            literal.append("{{")
            at = opening.end()
            continue
        name = _VARIABLE.match(text, opening.end())
        if name is None:
            raise _at(
                text,
                opening.end() - 2,
                "'{{' begins no variable such as {{topic}}; write '\\{{' where braces are meant",
            )
        pieces += ("".join(literal), name[1])
        literal = []
        at = name.end()
    template = Template((*pieces, "".join(literal) + text[at:]))
    if len(template.variables) > VARIABLES_MAX:
        raise TemplateError(f"it has {len(template.variables)} variables, and a prompt at most {VARIABLES_MAX}", 1, 1)
    return template


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Return names for a message, not all of many."""
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    return ", ".join(name[:64] for name in names[:SHOWN_MAX]) + more if names else "none"


def _at(text: str, offset: int, message: str) -> TemplateError:
    before = text[:offset]
    return TemplateError(message, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)
