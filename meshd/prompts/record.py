"""What the store keeps of prompts: JSON, so that whoever has to look into a store can read it.

A name has one record, its head, which lists its versions and says where its labels are; it is changed by
compare-and-set. Each version is a record that is written once and never changed. Names of other tenants are other keys.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, TypeVar

import msgspec

from meshd.prompts.reference import read_version
from meshd.prompts.template import parse

HEADS: Final = "prompt"
"""Space of the heads, by `tenant/name`."""
TEXTS: Final = "prompt-text"
"""Space of the versions, by `tenant/name@version`."""
PINS: Final = "prompt-pin"
"""Space of what workflows keep to."""
VERSIONS_MAX: Final = 500
LABELS_MAX: Final = 16
BEFORE_MAX: Final = 20
"""How often a label can be rolled back."""
HISTORY_MAX: Final = 100
WEIGHED_MAX: Final = 2
WEIGHT_MAX: Final = 1000
AUTHOR_MAX: Final = 128
NOTES_MAX: Final = 2048
MODELS_MAX: Final = 32
MODEL_MAX: Final = 128
_LINES: Final = str.maketrans("", "", "\n\t")
"""What notes may have beside what is printed."""

Weights = dict[str, int]
"""By version: its share of the workflows, as a part of the sum."""


class Damaged(Exception):
    """A record is not what was written."""


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version. It never changes."""

    name: str
    version: str
    text: str
    digest: str
    """SHA-256 over the text, in hex."""
    author: str = ""
    notes: str = ""
    models: tuple[str, ...] = ()
    """Models that it was written for: a hint to people, and no rule."""
    added_s: float = 0.0
    """Unix seconds; 0 for a file."""

    def is_same(self, other: Prompt) -> bool:
        """Say whether another is this one, whenever it was added."""
        return msgspec.structs.replace(other, added_s=self.added_s) == self


class Move(msgspec.Struct, frozen=True):
    """A label was moved."""

    label: str
    to: Weights
    """Empty where a rollback left it nowhere."""
    at_s: float
    is_rollback: bool = False


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What there is of a name."""

    name: str
    versions: dict[str, str] = {}
    """Digests by version."""
    labels: dict[str, Weights] = {}
    before: dict[str, tuple[Weights, ...]] = {}
    """By label: where it was, the newest last."""
    history: tuple[Move, ...] = ()
    """The newest last."""


class Pin(msgspec.Struct, frozen=True):
    """What a reference means in a workflow, since its first use there."""

    workflow: str
    name: str
    selector: str
    version: str
    digest: str
    ends_s: float
    """Unix seconds after which it may be forgotten."""


T = TypeVar("T", Prompt, Head, Pin)


def encode(record: Prompt | Head | Pin) -> bytes:
    """Return the bytes of a record."""
    return msgspec.json.encode(record)


def decode(value: bytes, kind: type[T], key: str) -> T:
    """Return the record under `key`. Raises Damaged."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Damaged(f"the {kind.__name__.lower()} under {key} in the store is damaged: {error}") from None


def head_key(tenant: str, name: str) -> str:
    """Return under which key a head stands."""
    return f"{tenant}/{name}"


def text_key(tenant: str, name: str, version: str) -> str:
    """Return under which key a version stands."""
    return f"{tenant}/{name}@{version}"


def pin_key(tenant: str, workflow: str, name: str, selector: str) -> str:
    """Return under which key it stands what a reference means in a workflow."""
    return sha256(f"{tenant}\0{workflow}\0{name}\0{selector}".encode("utf-8", "replace")).hexdigest()[:40]


def digest_of(text: str) -> str:
    """Return the digest of a text."""
    return sha256(text.encode()).hexdigest()


def made(
    name: str,
    version: str,
    text: str,
    *,
    author: str = "",
    notes: str = "",
    models: tuple[str, ...] = (),
    added_s: float = 0.0,
) -> Prompt:
    """Return a prompt of what somebody wrote. Raises TemplateError; ValueError for the rest of what is wrong."""
    read_version(version)
    parse(text)
    for what, value, most in (("author", author, AUTHOR_MAX), ("notes", notes, NOTES_MAX)):
        if len(value) > most:
            raise ValueError(f"{what} has {len(value)} characters, and at most {most}")
    if len(models) > MODELS_MAX or any(not 0 < len(model) <= MODEL_MAX for model in models):
        raise ValueError(f"models are at most {MODELS_MAX} names of 1 to {MODEL_MAX} characters")
    for value in (author, notes, *models):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no text") from None
    for what, value in (("author", author), ("notes", notes.translate(_LINES)), *(("models", one) for one in models)):
        if not value.isprintable():
            verb = "has" if what == "author" else "have"
            raise ValueError(
                f"{what} {verb} a character that terminals would obey, or that nobody sees: {value[:64]!r}"
            )
    return Prompt(name, version, text, digest_of(text), author, notes, models, added_s)


def checked_weights(weights: Weights, versions: dict[str, str]) -> Weights:
    """Return weights that are fit for a label. Raises ValueError."""
    if not 1 <= len(weights) <= WEIGHED_MAX:
        raise ValueError(f"a label stands at one version, or at {WEIGHED_MAX} with a share each")
    for version, weight in weights.items():
        if version not in versions:
            raise ValueError(f"there is no version {version[:64]}")
        if not 1 <= weight <= WEIGHT_MAX:
            raise ValueError(f"the share of {version[:64]} is a whole number from 1 to {WEIGHT_MAX}")
    return weights
