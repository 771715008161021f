"""Moments that events name: RFC 3339, and when an event is of no more use.

https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/expirytime.md
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from meshd.engines.bus_port import Event, EventMalformed

EXPIRY: Final = "expirytime"
"""The extension that says when an event may be thrown away unhandled."""
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def unix_ns(name: str, text: str) -> int:
    """Return a moment in Unix nanoseconds. Raises EventMalformed for the attribute `name`."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise EventMalformed(name, f"{text[:40]!r} is no time of RFC 3339, such as 2026-11-26T12:00:00Z")
    day, clock, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as error:
        raise EventMalformed(name, f"{text[:40]!r}: {error}") from None
    since = moment - _EPOCH
    nanos = int((fraction or "0").ljust(9, "0"))
    return (since.days * 86_400 + since.seconds) * 10**9 + nanos


def is_expired(event: Event, wall_s: float) -> bool:
    """Say whether an event is of no more use. One whose time cannot be read is kept: the bus takes none such now."""
    text = event.extensions.get(EXPIRY)
    if text is None:
        return False
    try:
        return unix_ns(EXPIRY, text) <= wall_s * 1e9
    except EventMalformed:
        return False
