"""Takes secrets out of text before any sink sees it.

Two ways, both always: a list of header fields whose values are never shown, and patterns of what a key looks like
wherever it stands (a message, an exception's text, a URL, a path). Taking out too much is the lesser harm.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MARK = "[redacted]"

HEADERS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "set-cookie",
        "x-meshd-context",
        "x-amz-security-token",
        "x-auth-token",
        "x-meshd-approver-key",
    }
)
"""Header fields, in lower case, whose values no sink may see."""

_NAMES = "|".join(sorted((re.escape(name) for name in HEADERS), key=len, reverse=True))
_QUERY = r"key|api[_-]?key|apikey|access[_-]?token|refresh[_-]?token|id[_-]?token|token|auth|password|passwd|secret|client[_-]?secret|sig|signature|x-amz-signature|x-amz-credential|code"  # noqa: E501

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A header field inside a text: `name: value`, `"name": "value"`, `(b'name', b'value')`. Up to the closing quote
    # where there is one, else to the end of the line.
    (
        re.compile(rf"(?i)(?<![\w-])({_NAMES})([\"']?\s*[:=,]\s*b?)([\"'])(?:\\.|(?!\3)[^\\\r\n])*"),
        rf"\1\2\3{MARK}",
    ),
    (re.compile(rf"(?i)(?<![\w-])({_NAMES})([\"']?\s*[:=,]\s*)(?!b?[\"'])[^\r\n]+"), rf"\1\2{MARK}"),
    (re.compile(r"(?i)\b(bearer|basic|negotiate)((?:\s|%20|\+|=)+)[^\s\"',;\\<>]{4,}"), rf"\1\2{MARK}"),
    # Keys by the shapes that providers give them.
    (re.compile(r"\b(?:mak|sk|pk|rk|gsk|xai|pplx|hf|ghp|gho|ghs|ghr|glpat|r8|nvapi)[-_][A-Za-z0-9_\-]{8,}"), MARK),
    (re.compile(r"\bgithub_pat_[A-Za-z0-9_]{8,}"), MARK),
    (re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{8,}"), MARK),
    (re.compile(r"AIza[0-9A-Za-z_\-]{16,}"), MARK),
    (re.compile(r"\bya29\.[0-9A-Za-z_\-]{16,}"), MARK),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}"), MARK),
    # JWT and anything else in three base64url parts that begins like a JSON object.
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*){1,4}"), MARK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"), MARK),
    # A per-run address, whose opaque part is as good as a key.
    (re.compile(r"(?i)(/w/|%2Fw%2F)[^/\s\"'?#&%\\<>]+"), rf"\1{MARK}"),
    (re.compile(rf"(?i)([?&;](?:{_QUERY})=)[^&\s\"'#<>]+"), rf"\1{MARK}"),
    # Begins at a literal: with the scheme before it, a long word took a second.
    # What stands before the @ of a prompt's reference is its name.
    (re.compile(r"(?<!\bprompt)(://)[^/\s\"'@<>]+@"), rf"\1{MARK}@"),
)

_LIKELY = re.compile(
    rf"(?i){_NAMES}|bearer|basic|negotiate|[-_][a-z0-9_\-]{{8}}|AIza|ya29|AKIA|ASIA|eyJ|PRIVATE KEY|/w/|%2Fw%2F|=|@"
)
"""A text that holds none of these holds no secret that the patterns would find."""

DEPTH_MAX = 8


def text(value: str) -> str:
    """Return `value` without secrets."""
    if _LIKELY.search(value) is None:
        return value
    for pattern, replacement in _PATTERNS:
        value = pattern.sub(replacement, value)
    return value


_NAMES_OF_SECRETS = re.compile(
    r"(?i:(?:.*[-_. ])?(?:pass(?:word|wd|phrase|code)?|secret|api[-_]?key|access[-_]?key|private[-_]?key|"
    r"credential|authorization|bearer|cookie)s?|(?:.*[-_. ])?token)\Z|.*(?:Password|Secret|ApiKey|Token)\Z"
)
"""Of arguments whose values are shown to nobody."""


def argument(name: str, value: str) -> str:
    """Return a text that stands under `name` among a call's arguments, without secrets."""
    if value and name and (_NAMES_OF_SECRETS.match(name) is not None or is_secret_header(name)):
        return MARK
    return text(value)


def path(value: str) -> str:
    """Return a request's path without its query and without secrets."""
    return text(value.partition("?")[0].partition("#")[0])


def is_secret_header(name: str) -> bool:
    """Say whether a field's value must not be shown, by its name in any case."""
    lowered = name.lower()
    return lowered in HEADERS or lowered.endswith(("-api-key", "-token", "-secret", "authorization"))


def anything(value: Any, depth: int = 0) -> Any:
    """Return a copy of `value` made of what JSON knows, without secrets.

    Pairs and mappings are read as header fields: a name on the list hides its value. What is nested deeper than
    eight levels is left out.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return text(bytes(value).decode("latin-1"))
    if depth >= DEPTH_MAX:
        return "..."
    if isinstance(value, dict):
        return {_key(name): _field(name, item, depth) for key, item in value.items() for name in (_name(key),)}
    if isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        if len(items) == 2 and isinstance(items[0], str | bytes) and is_secret_header(_name(items[0])):
            return [_name(items[0]), MARK]
        return [anything(item, depth + 1) for item in items]
    return text(str(value))


@lru_cache(maxsize=512)
def _key(name: str) -> str:
    """Return a mapping's key without secrets. The same few come again and again, and most look at first like a key."""
    return text(name)


def _name(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _field(name: str, value: Any, depth: int) -> Any:
    # `tokens: 5` is an amount, not a secret: only text can be one.
    if is_secret_header(name) and isinstance(value, str | bytes | list | tuple):
        return MARK
    return anything(value, depth + 1)
