"""What Budget takes from a call whose upstream may report what it spent: nothing beforehand, and the report in full.

gRPC's trailers carry such a report, and the metadata of an A2A agent's answer. Only agents and tools are believed: an
LLM is metered, and a mere host has no word in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.filters.held import Held
from meshd.filters.purse import account_of
from meshd.ledger.booking import book

if TYPE_CHECKING:
    from meshd.call import Call, ReplyHead
    from meshd.filters.hearsay import Hearsay, Tasks
    from meshd.filters.purse import Terms
    from meshd.ledger import Ledger
    from meshd.outcome import Outcome

DIALECT: Final = "grpc"

_BELIEVED: Final = frozenset({Kind.AGENT, Kind.TOOL})


class Reported(Held):
    """The ticket: books what the outcome says, once."""

    __slots__ = ("_purses",)

    def __init__(self, ledger: Ledger, purses: tuple[tuple[str, int], ...]) -> None:
        # Flat, as its kin: there is no ask, and nothing is held.
        self._ledger = ledger
        self._entry = None
        self._model = ""
        self.input_bound = 0
        self.bound = 0
        self.rest = None
        self._ran_tokens = 0
        self.account, self.limit = purses[0]
        self.charged = 0
        self.is_estimated = False
        self._purses = purses
        """Accounts and their limits, as they were when the call began."""

    def settle(self, outcome: Outcome) -> None:
        """Charge what was reported to every account that counts it."""
        usage = outcome.usage
        if usage is None or not usage.total:
            return
        self.charged = self.bound = usage.total
        outcome.held = self
        for account, limit in self._purses:
            book(self._ledger, account, limit, usage.total)


class Overheard(Reported):
    """The same of an A2A answer: hears what its metadata reports, and books that."""

    __slots__ = ("_hearsay",)

    def __init__(self, ledger: Ledger, purses: tuple[tuple[str, int], ...], hearsay: Hearsay) -> None:
        super().__init__(ledger, purses)
        self._hearsay = hearsay

    def on_head(self, head: ReplyHead) -> None:
        """The answer begins."""
        self._hearsay.begin(head)

    def settle(self, outcome: Outcome) -> None:
        """Charge what was heard, also where the answer broke off."""
        usage = self._hearsay.end()
        # What stands in trailers is of this very call, and says it on purpose: it counts before what messages say.
        if usage is not None and outcome.usage is None:
            outcome.usage = usage
        super().settle(outcome)


def reported(call: Call, terms: Terms, ledger: Ledger, tasks: Tasks) -> Reported | None:
    """Return the ticket of a call that may report usage; None where nobody would believe it, or no budget counts it.

    Tokens alone are counted: what they cost in dollars, nobody here knows. `tasks` are those of A2A that have reported.
    """
    if call.target.kind not in _BELIEVED or call.dialect is None:
        return None
    is_a2a = tasks.may_report(call)
    if not is_a2a and call.dialect.name != DIALECT:
        return None
    purses = tuple([account_of(call, one) for one in (*terms.binding, *terms.trials) if not one.is_money])
    if not purses:
        return None
    return Overheard(ledger, purses, tasks.listen(call)) if is_a2a else Reported(ledger, purses)
