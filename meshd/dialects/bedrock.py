"""Amazon Bedrock, where it serves Anthropic's models with their own bodies.

    /model/<model>/invoke                         plain
    /model/<model>/invoke-with-response-stream    an event stream of Amazon's, see `wire.event_stream`

`/converse` and the bodies of other vendors are languages of their own and are not read: a budget refuses them. A
request that is signed (SigV4) is sealed: the signature covers its path and body, so it passes as it came or not at
all. A Bedrock API key, which is a bearer token, is no seal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from meshd.dialects.anthropic import Anthropic, read_messages
from meshd.dialects.bedrock_meter import BedrockMeter, error_name
from meshd.dialects.placing import unescaped
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Ask, Headers

_PATH: Final = re.compile(r"(?P<before>.*/model/)(?P<model>[^/?]+)/(?P<action>[a-z-]+)(?P<query>\?.*)?\Z", re.DOTALL)
_STREAMED: Final = "invoke-with-response-stream"
_ACTIONS: Final = frozenset({"invoke", _STREAMED})
_VENDOR: Final = re.compile(r"(?:[a-z]+\.)?anthropic\.")
"""How the ids of Anthropic's models begin, a region's or a group's prefix included. An ARN says nothing."""
_SIGNED: Final = b"aws4-"


class Bedrock(Anthropic):
    """The dialect `bedrock`."""

    name = "bedrock"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        found = _PATH.match(path) if method == "POST" else None
        if found is None or found["action"] not in _ACTIONS:
            return None
        return "chat" if _VENDOR.match(unescaped(found["model"])) else None

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: counting tokens."""
        found = _PATH.match(path)
        return method == "POST" and found is not None and found["action"] == "count-tokens"

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`."""
        found = _PATH.match(path)
        is_stream = found is not None and found["action"] == _STREAMED
        model = unescaped(found["model"]) if found is not None else ""
        ask = read_messages(body, model, is_streamed_by_path=is_stream)
        # Nothing but the path says so here; `stream` is no member of these bodies.
        ask.is_stream = is_stream
        ask.is_sealed = is_signed(headers or [])
        return ask

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`."""
        if ask.model_sent == ask.model:
            return path
        found = _PATH.match(path)
        if found is None or not unescaped(ask.model_sent):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The model stands in the path of this call, and {ask.model_sent[:128]!r} cannot stand there: name it "
                "as Bedrock does, for example anthropic.claude-3-haiku-20240307-v1:0.",
            )
        return f"{found['before']}{quote(ask.model_sent, safe=':')}/{found['action']}{found['query'] or ''}"

    def meter(self, ask: Ask) -> BedrockMeter:
        """See `Dialect.meter`."""
        return BedrockMeter(ask)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. Amazon's SDKs read `__type` and `message`, Anthropic's reads `error`."""
        row = refused.row
        error = {"type": row.anthropic_type, "message": refused.message, "details": {"error_code": row.code}}
        body = {"__type": error_name(refused), "message": refused.message, "type": "error", "error": error}
        return b"application/json", msgspec.json.encode(body | {"request_id": call_id})


def is_signed(headers: Headers) -> bool:
    """Say whether a request carries a signature of its path and body (AWS Signature Version 4)."""
    return any(name == b"authorization" and value[:5].lower() == _SIGNED for name, value in headers)
