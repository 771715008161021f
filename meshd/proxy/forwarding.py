"""What a forwarded request carries besides the caller's own fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.filters.context import Context
    from meshd.wire.message import Fields

_IDENTITY: Final = (b"accept-encoding", b"identity")
"""What must be metered must be readable; the field says so to the upstream (RFC 9110, 12.5.3)."""


def added_fields(call: Call, fields: Fields, key: bytes | None, context: Context) -> Headers:
    """Return the fields that meshd adds. Raises Refused where the context does not fit into a token.

    `key` is the provider's key where meshd attaches one, and then takes the place of the caller's credentials.
    """
    headers = [_IDENTITY] if call.ask is not None or call.earlier is not None else fields.accept_encoding[:]
    if key is not None:
        headers.append((call.upstream.key_header, key))
    headers += context.forward_headers(call)
    if call.inject:
        headers += call.inject
    return headers
