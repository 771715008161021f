"""Resuming: what a client of MCP 2026-07-28 is told to bring along when it makes a call again that must wait.

The state says for which approval it is, which leg of the call comes next and until when that holds; its seal covers
these and whose call it is, to what, with which arguments. It grants nothing: the approval is found by what the call
is, and a call without a state asks as well. A state that was altered, has expired or is of another call is refused, so
that nobody counts legs, or answers a question, in another's place.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.claims.keys import principal_of
from meshd.dialects.mcp import LEGS_MAX, STATE_PREFIX
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.approvals.record import Approval
    from meshd.call import Call
    from meshd.mesh_key import MeshKeys
    from meshd_sdk.context import Key

ASK_S: Final = 2.5
"""For which a call is held before its client is asked to show its user where to decide."""
INVALID_PARAMS: Final = -32602
ID_MARK: Final = "{id}"
"""In `approvals.page`: stands for the approval's id."""

_LABEL: Final = b"\0meshd mcp state 1"
"""A token of a context begins otherwise (see `meshd_sdk.context`): no seal is a signature there."""


def asks_user(call: Call) -> bool:
    """Say whether a call's client can be asked to show its user where people decide, and has not been yet."""
    rpc, page = call.rpc, call.policy.approvals.page
    return rpc is not None and bool(page) and rpc.elicits_urls and rpc.is_resumable and rpc.leg == 0


class Resuming:
    """Seals states, and looks at those that come back."""

    __slots__ = ("_keys",)

    def __init__(self, keys: MeshKeys) -> None:
        self._keys = keys

    def offer(self, call: Call, approval: Approval, refused: Refused) -> None:
        """Let the client of a call that must wait make it again by itself, where it does that."""
        rpc = call.rpc
        if rpc is None or not rpc.is_resumable or rpc.leg >= LEGS_MAX or rpc.is_declined:
            return
        fields = f"{rpc.leg + 1}.{int(approval.expires_s) + 1}.{approval.id}"
        seal = _sealed(self._keys.ring.signing, call, fields)
        refused.state = f"{STATE_PREFIX}{fields}.{seal}"
        if asks_user(call):
            page: str = call.policy.approvals.page
            params = {"mode": "url", "message": refused.message, "url": page.replace(ID_MARK, approval.id)}
            refused.asks = {f"approval-{approval.id}": {"method": "elicitation/create", "params": params}}

    def check(self, call: Call, now_s: float) -> None:
        """Look at the state that a call brings. Raises Refused."""
        rpc: Any = call.rpc
        fields, _, seal = rpc.state.removeprefix(STATE_PREFIX).rpartition(".")
        is_ours = any(hmac.compare_digest(_sealed(key, call, fields), seal) for key in self._keys.ring.keys)
        if not is_ours:
            raise _invalid("params.requestState was not given out for this call: it was altered, or is another's")
        if now_s >= int(fields.split(".")[1]):
            raise _invalid("params.requestState has expired. Make the call anew, without it")


def _sealed(key: Key, call: Call, fields: str) -> str:
    rpc: Any = call.rpc
    hashed = sha256(_LABEL)
    texts = (fields, principal_of(call), call.target.name, call.path, rpc.method, rpc.tool)
    for part in (*(text.encode("utf-8", "surrogatepass") for text in texts), rpc.arguments or b""):
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return urlsafe_b64encode(key.mac(_LABEL + hashed.digest())).decode().rstrip("=")


def _invalid(words: str) -> Refused:
    refused = Refused(Reason.MALFORMED, f"{words}.")
    refused.jsonrpc = INVALID_PARAMS
    return refused
