"""One POST of one notice, signed as Standard Webhooks 1.0 has it. In a thread: it is rare, and it may take seconds."""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from meshd.approvals.notices import Unheard

TIMEOUT_S: Final = 10.0
SECRET_PREFIX: Final = "whsec_"
SECRET_BYTES_MAX: Final = 4096


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What was signed for one address is not sent to another."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def secret_of(settings: Any) -> bytes:
    """Return the key that notices are signed with, empty where they are not. Raises Unheard where it cannot be read."""
    key = settings.webhook_key
    if key is None:
        return b""
    if key.env:
        text = os.environ.get(key.env, "")
    else:
        try:
            with Path(key.file).open("rb") as file:
                text = file.read(SECRET_BYTES_MAX).decode("utf-8", "replace").strip()
        except OSError as error:
            raise Unheard(f"the key {key.file} cannot be read: {error.strerror}") from None
    if not text:
        raise Unheard(f"{key.env or key.file} holds no key to sign with")
    if text.startswith(SECRET_PREFIX):
        try:
            return base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            raise Unheard(f"the key to sign with begins {SECRET_PREFIX}, and is not in base 64") from None
    return text.encode()


def signature(secret: bytes, id: str, at_s: int, body: bytes) -> str:
    """Return what `webhook-signature` holds."""
    signed = b"%s.%d.%s" % (id.encode(), at_s, body)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


async def post(settings: Any, body: bytes, id: str, now_s: float) -> None:
    """Send a notice to `settings.webhook`. Raises Unheard where it was not taken with a 2xx."""
    headers = {
        "content-type": "application/cloudevents+json",
        "user-agent": "meshd",
        "webhook-id": id,
        "webhook-timestamp": str(int(now_s)),
    }
    secret = secret_of(settings)
    if secret:
        headers["webhook-signature"] = signature(secret, id, int(now_s), body)
    await asyncio.to_thread(_post, settings.webhook, body, headers)


def _post(url: str, body: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - the policy's, http or https
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as reply:
            status = reply.status
    except urllib.error.HTTPError as error:
        error.close()
        raise Unheard(f"the webhook answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unheard(f"the webhook does not answer: {getattr(error, 'reason', None) or error}") from None
    if not 200 <= status < 300:
        raise Unheard(f"the webhook answers {status}")
