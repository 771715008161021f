"""The reply's side of an attempt in whose place something else may come: errors that do not go to the caller, streams
that are held until their first token, and what an answer goes through last.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.dialects import too_long, unpaid
from meshd.outcome import Fault, Verdict, classify
from meshd.proxy.answer import Answer, AnswerError, StreamAnswer, decoded, show_head, unknown_encoding, watchers_in
from meshd.proxy.onward import Both, Recording, onward_for
from meshd.proxy.refusing import failure_of
from meshd.proxy.sending import Sending
from meshd.proxy.substituting import answered
from meshd.refusal import Refused

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.contract import Meter
    from meshd.outcome import Outcome

log = logging.getLogger("meshd.proxy")

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_CUT: Final = Fault.CUT
_FAILURE: Final = Verdict.FAILURE
_NO_CONTENT: Final = 204
_PARTIAL: Final = 206
_REDIRECTS: Final = frozenset({300, 301, 302, 303, 307, 308})
_AGENT: Final = Kind.AGENT
_QUOTA: Final = frozenset({unpaid.AMBIGUOUS, unpaid.PAYMENT_REQUIRED})
_DECISION: Final = b"x-meshd-decision"
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
        passage = self.call.passage
        if status == 404 and passage is not None and passage.is_forgotten():
            # Its server has forgotten the session: another one is opened, and the call made in that.
            self.leave()
            self.settle(self.outcome(_FAULT_NONE))
            self.exchange.again(0.0)
            return True
        if status in _QUOTA and self.call.ask is not None and self._may_be_unpaid(status, headers, content_length):
            return True
        is_failure = status >= 500 or status == 429 or substitution is not None or self._is_unpaid
        if is_failure and self._goes_elsewhere():
            return True
        chain = self.call.plan.chain
        if (
            chain is not None
            and "context" in chain.on
            and status in too_long.STATUSES
            and self.call.ask is not None
            and self._can_be_read(headers)
        ):
            self._error = []
            self._head = (status, headers, content_length)
            return True
        return False

    def _may_be_unpaid(self, status: int, headers: Headers, content_length: int | None) -> bool:
        """Find out whether a credential has nothing left, of a model's error; return True where that stands in its
        body, which is held until it is whole."""
        if any(name == _DECISION for name, _ in headers):
            return False  # A budget of another sidecar's, which is no reason to go round it.
        if status == unpaid.PAYMENT_REQUIRED:
            self._is_unpaid = True
            return False
        if content_length == 0 or self.exchange.is_caller_gone or not self._can_be_read(headers):
            return False
        self._error = []
        self._head = (status, headers, content_length)
        return True

    def _can_be_read(self, headers: Headers) -> bool:
        """Say whether a model's reply is in an encoding that is read here; count and log it where it is not."""
        encoding = unknown_encoding(headers)
        if not encoding:
            return True
        name = self.call.target.name
        if self.exchange.proxy.telemetry.tally.unread(name, encoding):
            log.warning(
                "replies of %s, asked for plain ones, are in an encoding that cannot be read: %s", name, encoding
            )
        return False

    def _unmetered(self, headers: Headers) -> Answer | None:
        """A model's answer is passed on without being read: it is charged at its bound."""
        self._can_be_read(headers)
        return None

    def _unread(self, headers: Headers, error: AnswerError) -> None:
        """A model's answer cannot be judged: nothing of it is forwarded."""
        self._can_be_read(headers)
        self._broken(str(error))

    def _goes_elsewhere(self) -> bool:
        """Say whether another attempt or something else takes this one's place, or the caller is told that nothing
        did."""
        if self._try_again(_FAULT_NONE):
            return True
        exchange, call = self.exchange, self.call
        if call.substitution is None or exchange.is_caller_gone:
            return False
        exchange.refuse(exchange.meant(answered(call, self.status, self._retry_after_s)))
        return True

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
        if self.status == unpaid.AMBIGUOUS:
            self._is_unpaid = unpaid.is_unpaid(said)
            if self._goes_elsewhere():
                return True
        elif too_long.is_too_long(said) and self._try_again(_FAULT_NONE, is_too_long=True):
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
        if self.call.card is not None:
            return self._holds_card(headers)
        if not 200 <= self.status < 300 or self.exchange.is_tunnel or self.request.fields.is_grpc:
            return True
        try:
            self._onward = onward_for(
                self.call, self._answer, self.status, headers, is_stream=isinstance(self._answer, StreamAnswer)
            )
            passage, first = self.call.passage, self._onward
            if passage is not None:
                through = passage.onward(headers)
                if through is not None:
                    self._onward = Both(first, through) if isinstance(first, Recording) else through
        except AnswerError as error:
            self._broken(str(error))
            return False
        return True

    def _holds_card(self, headers: Headers) -> bool:
        """An agent's card is held until it is whole; False where it cannot be read."""
        if self.status == _PARTIAL:
            self._broken("a part of a card cannot be read")
            return False
        if self.status in _REDIRECTS and self.call.upstream is not None and self.call.upstream.kind is _AGENT:
            self._broken("its card is said to be elsewhere, where no policy would judge whom it leads to")
            return False
        if 200 <= self.status < 300 and self.status != _NO_CONTENT:
            self._onward = self.call.card.onward(self.call, headers)
        return True

    def _end_held(self) -> bool:
        """An answer that nothing else has read is whole: send it as what it goes through makes it; False where that is
        refused."""
        onward, exchange = self._onward, self.exchange
        assert onward is not None
        assert self._head is not None
        try:
            data = onward.end()
        except AnswerError as error:
            self._broken(str(error))
            return False
        except Refused as refused:
            exchange.refuse(refused, _CUT)
            return False
        (status, headers, _), self._head = self._head, None
        self._send_head(status, onward.fields(headers), None if self.request.fields.is_grpc else len(data))
        if data and not exchange.is_caller_gone:
            exchange.caller.send_data(data)
        return True

    def _end_passage(self) -> None:
        """Send the rest of a stream that came through the MCP gateway."""
        onward, exchange = self._onward, self.exchange
        if onward is not None and not onward.is_held and not exchange.is_caller_gone:
            data = onward.end()
            if data:
                exchange.caller.send_data(data)

    def _hold_error(self, pieces: list[bytes], data: bytes) -> None:
        pieces.append(data)
        if sum([len(piece) for piece in pieces]) > too_long.ERROR_BYTES_MAX:
            if self.status == unpaid.AMBIGUOUS:
                self._error = None
                if self._goes_elsewhere():
                    return
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

    def _is_held_back(self, answer: Answer) -> bool:
        """Say whether another attempt can take this one's place until the answer is whole, or has a token."""
        if answer.is_held:
            return True
        upstream = self.call.upstream
        return answer.is_stream and upstream is not None and upstream.first_token_timeout_s is not None

    def _is_given_up_before_a_token(self, answer: Answer) -> bool:
        """Say whether a stream that was held has ended without a token and without its end, so that another attempt
        takes its place."""
        if self._head is None or not answer.is_stream or answer.has_content or answer.cut or answer.meter.is_terminal:
            return False
        return self._try_again(Fault.TRUNCATED, f"{self.call.target.name} ended its stream without a token")

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

    def leave(self) -> None:
        """Take this attempt off its connection."""
        raise NotImplementedError

    def outcome(self, fault: Fault, refused: Refused | None = None) -> Outcome:
        """Say how the attempt ended."""
        raise NotImplementedError

    def settle(self, outcome: Outcome) -> None:
        """Settle the attempt's tickets."""
        raise NotImplementedError
