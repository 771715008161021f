"""What a forwarded request carries besides the caller's own fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.gemini import without_key
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.filters.context import Context
    from meshd.wire.message import Fields

_IDENTITY: Final = (b"accept-encoding", b"identity")
"""What must be metered must be readable; the field says so to the upstream (RFC 9110, 12.5.3)."""

_GEMINI: Final = "gemini"
_A2A: Final = "a2a"


def added_fields(call: Call, fields: Fields, key: bytes | None, context: Context, *, is_read: bool = False) -> Headers:
    """Return the fields that meshd adds. Raises Refused where the context does not fit into a token.

    `is_read`: the reply must be readable, though no dialect reads it.

    `key` is the provider's key where meshd attaches one, and then takes the place of the caller's credentials.
    """
    is_read = is_read or call.ask is not None or call.earlier is not None or _is_overheard(call, fields)
    headers = [_IDENTITY] if is_read else fields.accept_encoding[:]
    if key is not None:
        assert call.upstream is not None
        assert call.upstream.key_header is not None
        headers.append((call.upstream.key_header, key))
    headers += context.forward_headers(call)
    if call.inject:
        headers += call.inject
    return headers


def _is_overheard(call: Call, fields: Fields) -> bool:
    """Say whether the answer is an A2A agent's, in which something is looked for as it passes."""
    rpc = call.rpc
    return rpc is not None and call.reply_heard_by is not None and rpc.protocol == _A2A and not fields.is_grpc


def path_to_send(call: Call, key: bytes | None) -> str:
    """Return the path to forward: where it says the model, the one that was granted; where it may carry the caller's
    key, none of that if meshd attaches its own. Raises Refused where that cannot be, or the request is signed.
    """
    ask, path = call.ask, call.path
    if ask is not None and ask.model_granted is not None:
        path = call.dialect.redirect(ask, path)
    if key is not None and "?" in path and call.upstream is not None and call.upstream.dialect == _GEMINI:
        path = without_key(path)
    if ask is not None and ask.is_sealed and key is None:
        _check_sealed(call, path)
    return path


def _check_sealed(call: Call, path: str) -> None:
    """Refuse a signed request that would have to be changed: the upstream would take it for a forgery."""
    ask = call.ask
    assert ask is not None
    body = call.body or b""
    if path == call.path and call.dialect.rewrite(ask, body) is body:
        return
    granted = ask.output_cap_granted
    cap = f" with an output cap of at most {granted}" if granted is not None else ""
    raise Refused(
        Reason.NOT_ALLOWED,
        f"This request is signed (AWS Signature Version 4), so meshd cannot set its output cap or model, as the policy "
        f"needs. Send it{cap} for a model that the policy does not replace, or call with a Bedrock API key "
        "(AWS_BEARER_TOKEN_BEDROCK), or let meshd attach one: such requests can be changed.",
    )
