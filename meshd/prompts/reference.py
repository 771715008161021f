"""`prompt://summarise@^1.2?topic=x`: a prompt by its name, which version of it, and values of its variables.

Which version is a range (`^1.2`, `~1.2.3`, `>=1 <2`), an exact version (`1.2.0`), or a label: `production` is also what
a reference without any means. In selectors and values `%xx` stands for a byte of UTF-8, in values `+` for a blank.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote, unquote_plus

from meshd.discovery.versions import Range, Version, range_of, version_of
from meshd.prompts.template import VARIABLE, VARIABLES_MAX

SCHEME: Final = "prompt://"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""Names of prompts: they stand in references, paths and file names."""
LABEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
PRODUCTION: Final = "production"
"""The label that a reference means which names none."""
REFERENCE_CHARACTERS_MAX: Final = 16 * 1024
_FRAME: Final = re.compile(r"prompt://([^\s@?]*)(?:@([^?\r\n]*))?(?:\?([^\r\n]*))?")


class BadReference(ValueError):
    """What begins as a reference is none; the message says what is wrong with it."""


class Selector(NamedTuple):
    """Which version is meant: by a label, or by a range where `label` is empty."""

    text: str
    """As pins know it."""
    label: str = ""
    range: Range | None = None
    exact: str = ""
    """The one version that is meant, where the text is a whole version."""


class Reference(NamedTuple):
    """What a request says of a prompt."""

    name: str
    selector: Selector
    variables: dict[str, str]


def read_reference(text: str) -> Reference | None:
    """Return the reference that a whole text is; None for a text that is none, though it may begin like one.

    Raises BadReference where it can be nothing else, and is wrong.
    """
    frame = _FRAME.fullmatch(text) if text.startswith(SCHEME) else None
    if frame is None:
        return None
    if len(text) > REFERENCE_CHARACTERS_MAX:
        raise BadReference(f"it has more than {REFERENCE_CHARACTERS_MAX} characters")
    name, selected, query = frame[1], frame[2], frame[3]
    if NAME.fullmatch(name) is None:
        raise BadReference(f"{name[:64]!r} is no name of a prompt: a-z, 0-9, '-', '_' and '.', at most 63")
    return Reference(name, read_selector(_decoded(selected or "")), _variables(query) if query else {})


def read_selector(text: str) -> Selector:
    """Return what a text selects; empty: the label production. Raises BadReference."""
    text = text.strip() or PRODUCTION
    try:
        found = range_of(text)
    except ValueError as error:
        if LABEL.fullmatch(text) is not None:
            return Selector(text, label=text)
        raise BadReference(f"{error}, nor a label such as {PRODUCTION}") from None
    version = version_of(text)
    return Selector(text, range=found, exact=str(version) if version is not None and is_exact(text) else "")


def is_exact(text: str) -> bool:
    """Say whether a text is a version as prompts have them: three numbers, and nothing but what precedes a release."""
    version = version_of(text)
    return version is not None and str(version) == text


def read_version(text: str) -> Version:
    """Return a prompt's version. Raises ValueError."""
    version = version_of(text) if is_exact(text) else None
    if version is None or len(text) > 64:
        raise ValueError(f"{text[:64]!r} is no version of a prompt, such as 1.2.0 or 2.0.0-beta.1")
    return version


def read_label(text: str) -> str:
    """Return a label. Raises ValueError for what is none, or could be taken for a version."""
    if LABEL.fullmatch(text) is None:
        raise ValueError(f"{text[:64]!r} is no label: a-z, 0-9, '-' and '_', at most 32, beginning with a letter")
    try:
        range_of(text)
    except ValueError:
        return text
    raise ValueError(f"{text[:64]!r} could be taken for a range of versions, so it is no label")


def _variables(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or VARIABLE.fullmatch(name) is None:
            raise BadReference(f"{part[:64]!r} behind the '?' is no variable with a value, such as topic=bees")
        if name in found:
            raise BadReference(f"the variable {name} has two values")
        if len(found) == VARIABLES_MAX:
            raise BadReference(f"it has more than {VARIABLES_MAX} variables")
        try:
            found[name] = unquote_plus(value, errors="strict")
        except UnicodeDecodeError:
            raise BadReference(f"the value of {name} is not UTF-8 behind its percent signs") from None
    return found


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadReference("what stands behind the '@' is not UTF-8 behind its percent signs") from None
