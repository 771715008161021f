"""What a docstring says to a model: what the function does, and its arguments. Google's style; pure, stdlib only."""

from __future__ import annotations

import inspect
import re
from typing import Final, NamedTuple

_SECTION: Final = re.compile(
    r"(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Attributes|See Also|Warnings?):\s*"
)
_ARGUMENT: Final = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
_OF_ARGUMENTS: Final = frozenset({"Args", "Arguments", "Parameters", "Params"})


class Said(NamedTuple):
    """See the module."""

    description: str
    """All before the first section, lines joined within paragraphs."""
    arguments: dict[str, str]


def read(docstring: str | None) -> Said:
    """Read a docstring; None says nothing."""
    said: list[str] = []
    arguments: dict[str, str] = {}
    section = argument = ""
    margin = -1
    for line in inspect.cleandoc(docstring or "").splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if indent == 0 and (match := _SECTION.fullmatch(line)) is not None:
            section, argument, margin = match[1], "", -1
        elif not section:
            said.append(text)
        elif section in _OF_ARGUMENTS and text:
            margin = indent if margin < 0 else margin
            match = _ARGUMENT.fullmatch(text) if indent <= margin else None
            if match is not None:
                argument = match[1]
                arguments[argument] = match[2]
            elif argument:
                arguments[argument] = f"{arguments[argument]} {text}".strip()
    paragraphs = re.split(r"\n{2,}", "\n".join(said).strip())
    return Said("\n\n".join(part.replace("\n", " ") for part in paragraphs), arguments)
