"""The reply's side of an attempt in whose place something else may come: errors that do not go to the caller, streams
that are held until their first token, and what an answer goes through last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects import too_long
from meshd.outcome import Fault, Verdict, classify
from meshd.proxy.answer import Answer, AnswerError, StreamAnswer, decoded, is_encoding_known, show_head, watchers_in
from meshd.proxy.onward import onward_for
from meshd.proxy.refusing import failure_of
from meshd.proxy.sending import Sending
from meshd.proxy.substituting import answered

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.contract import Meter
    from meshd.refusal import Refused

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_FAILURE: Final = Verdict.FAILURE
_FAULT_NONE: Final = Fault.NONE
_SUCCESS: Final = Verdict.SUCCESS

FAILED: Final = ("failed",)
"""Why a response of OpenAI's ended that its provider could not bring to an end."""
BEFORE_BYTES_MAX: Final = 65_536
"""Most that is held of a stream before its first token."""


def verdict_of(meter: Meter, status: int, fault: Fault) -> Verdict:
    """Say what an answer that was read says of its upstream."""
    if meter.error_status:
        # After a 200 there is no other way to say it. Whatever came then (most clients hang up), it was said.
        return classify(meter.error_status, _FAULT_NONE, False)
    verdict = classify(status, fault, meter.is_terminal)
    if verdict is _SUCCESS and meter.finish_reasons == FAILED:
        # OpenAI's responses come to an end that says so, and counts what was used.
        return _FAILURE
    return verdict


class Degrading(Sending):
    """An attempt, as far as what stands in for its target is concerned."""

    __slots__ = ()

    def _is_passed_over(self, status: int, headers: Headers, content_length: int | None) -> bool:
        """Say whether an upstream's error does not go to the caller: another attempt follows, or something else may
        serve the call, or nothing else did and the caller is told of that."""
        substitution = self.call.substitution
        # As the official SDKs do, whose own providers send it.
        self._is_final = (b"x-should-retry", b"false") in headers
        if (status >= 500 or status == 429 or substitution is not None) and self._try_again(_FAULT_NONE):
            return True
        exchange, chain = self.exchange, self.call.plan.chain
        if substitution is not None and not exchange.is_caller_gone:
            exchange.refuse(exchange.meant(answered(self.call, status, self._retry_after_s)))
            return True
        if (
            chain is not None
            and "context" in chain.on
            and status in too_long.STATUSES
            and self.call.ask is not None
            and is_encoding_known(headers)
        ):
            self._error = []
            self._head = (status, headers, content_length)
            return True
        return False

    def _failure(self, fault: Fault, message: str) -> Refused:
        """Return the words for an attempt that something else takes the place of."""
        if fault is _FAULT_NONE:
            return answered(self.call, self.status, self._retry_after_s)
        return failure_of(fault, self.call, message)

    def _error_ended(self) -> bool:
        """The error that was held is whole: return whether something else serves the call, else pass it on."""
        pieces, self._error = self._error, None
        body = b"".join(pieces or ())
        assert self._head is not None
        said = decoded(body, self._head[1], too_long.ERROR_BYTES_MAX)
        if too_long.is_too_long(said) and self._try_again(_FAULT_NONE, is_too_long=True):
            return True
        self._pass_error_on(body)
        return False

    def _pass_error_on(self, body: bytes) -> None:
        self._error = None
        assert self._head is not None
        (status, headers, content_length), self._head = self._head, None
        show_head(watchers_in(self.exchange.tickets, self.tickets), status, headers)
        self._send_head(status, headers, content_length)
        if body and not self.exchange.is_caller_gone:
            self.exchange.caller.send_data(body)

    def _go_onward(self, headers: Headers) -> bool:
        """Find out what the answer goes through last; False where it cannot."""
        if not 200 <= self.status < 300 or self.exchange.is_tunnel or self.request.fields.is_grpc:
            return True
        try:
            self._onward = onward_for(
                self.call, self._answer, self.status, headers, is_stream=isinstance(self._answer, StreamAnswer)
            )
        except AnswerError as error:
            self._broken(str(error))
            return False
        return True

    def _hold_error(self, pieces: list[bytes], data: bytes) -> None:
        pieces.append(data)
        if sum([len(piece) for piece in pieces]) > too_long.ERROR_BYTES_MAX:
            self._pass_error_on(b"".join(pieces))

    @property
    def _is_well_ended(self) -> bool:
        """The answer is whole, and the upstream does not say that it failed."""
        meter = self._answer.meter if self._answer is not None else None
        return meter is None or (meter.is_terminal and meter.finish_reasons != FAILED)

    # ------------------------------------------------------------------ streams that have brought no token yet

    def _until_token(self, answer: Answer, data: bytes) -> bytes:
        """Look for the first token of a stream; return what is to be forwarded now."""
        if answer.has_content:
            self._first_token_s = self._heard_s - self._sent_s
        if self._head is None:
            return data
        self._before += data
        if not answer.has_content and len(self._before) <= BEFORE_BYTES_MAX:
            return b""
        return self._begin_stream()

    def _is_given_up_before_a_token(self, answer: Answer) -> bool:
        """Say whether a stream that was held has ended without a token and without its end, so that another attempt
        takes its place."""
        if self._head is None or not answer.is_stream or answer.has_content or answer.cut or answer.meter.is_terminal:
            return False
        return self._try_again(Fault.TRUNCATED, f"{self.call.upstream.name} ended its stream without a token")

    def _begin_stream(self) -> bytes:
        """Send the head of a stream that was held until its first token; return what has come of it since."""
        assert self._head is not None
        (status, headers, _), self._head = self._head, None
        before, self._before = self._before, b""
        self._send_head(status, headers, None)
        return before

    # ------------------------------------------------------------------ what the attempt makes of it

    def _send_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        raise NotImplementedError

    def _broken(self, message: str) -> None:
        raise NotImplementedError

    def _try_again(self, fault: Fault, message: str = "", *, is_too_long: bool = False) -> bool:
        raise NotImplementedError
