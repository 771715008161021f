"""Every dialect that this build speaks. A new one is a file and a line here; the golden suite picks it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.anthropic import Anthropic
from meshd.dialects.openai import OpenAI
from meshd.dialects.plain import Plain

if TYPE_CHECKING:
    from meshd.dialects.contract import Dialect

DIALECTS: Final[dict[str, Dialect]] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "plain": Plain(),
}


def recognise(method: str, path: str) -> tuple[str, str] | None:
    """Return (dialect name, operation) of the first dialect that claims a request; None where none does.

    For what has no upstream to say which dialect it speaks, such as `meshd explain`.
    """
    for name, dialect in DIALECTS.items():
        operation = dialect.recognise(method, path)
        if operation is not None:
            return name, operation
    return None
