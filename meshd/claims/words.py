"""What those are told whose call is not carried out because it may have been already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.claims.record import ClaimRecord

_ANEW = "To carry it out anew all the same, send it with a fresh key."


def missing(rule: str) -> Refused:
    """The policy asks for a key, and there is none."""
    return Refused(
        Reason.KEY_MISSING,
        "This call may change something and has no key, which the policy asks for: send an Idempotency-Key of 1 to 255 "
        "printable characters, a new one for each call and the same one for each retry of it.",
        rule=rule,
    )


def reused(rule: str) -> Refused:
    """The key was given to another call."""
    return Refused(
        Reason.KEY_REUSED,
        "This idempotency key was used for a call that said something else, so neither is carried out again under it. "
        "Send each new call with a key of its own, and a retry exactly as the first attempt.",
        rule=rule,
    )


def in_flight(rule: str) -> Refused:
    """The first is under way, and the policy does not let others wait for it."""
    return Refused(
        Reason.KEY_IN_FLIGHT,
        "A call with this idempotency key is still under way. Ask again in a moment, with the same key: its answer is "
        "given again once it is there.",
        rule=rule,
        retry_after_s=1,
    )


def unknown(rule: str, why: str) -> Refused:
    """Nobody can say whether the first was carried out."""
    return Refused(
        Reason.KEY_UNKNOWN,
        f"A call with this idempotency key may have been carried out, and its answer is not known: {why}. It is not "
        f"carried out again. Look at what it was to change first. {_ANEW}",
        rule=rule,
    )


def too_long(rule: str, record: ClaimRecord) -> Refused:
    """It was carried out and answered, and the answer is gone."""
    answer = record.answer
    status, size = (answer.status, answer.size) if answer is not None else (0, 0)
    return Refused(
        Reason.KEY_UNKNOWN,
        f"The call with this idempotency key was carried out and answered with status {status}; the answer, of "
        f"{size} bytes or more, is longer than is kept (idempotency.reply) or was lost. It is not carried out again. "
        f"{_ANEW}",
        rule=rule,
    )


def unwritten(rule: str, error: object) -> Refused:
    """No claim can be read or written."""
    return Refused(
        Reason.STORE_UNAVAILABLE,
        f"It cannot be written down that this call goes out, so it is not sent: a retry might carry it out twice "
        f"({error}).",
        rule=rule,
    )
