"""A small world for the ledger's state machines: sidecars, a network and a provider, all of them unlucky.

Everything here is drawn from one source of chance, so that a seed is a schedule. The pure parts are the real ones:
owner, holder, and what a restart makes of a journal. What is played is what stands between them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Final

from meshd.ledger.account import Answer, Message, Owner
from meshd.ledger.desk import HolderRecord
from meshd.ledger.holder import Holder
from meshd.ledger.journal import Replay
from meshd.ledger.recovery import _closed

if TYPE_CHECKING:
    import random

TOTAL: Final = 1000
LEASE_MAX: Final = 400
BOUND_MAX: Final = 300
ROOT: Final = "w"
BOOT: Final = "boot"


class OverspentError(AssertionError):
    """The guarantee does not hold."""


class Call:
    """A call that is out: the provider will bill up to `bound`."""

    __slots__ = ("account", "bound")

    def __init__(self, account: str, bound: int) -> None:
        self.account = account
        self.bound = bound


class Sidecar:
    """A holder's process and its disk."""

    __slots__ = ("calls", "epoch", "holders", "is_cut_off", "journal", "name", "slot")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 1
        self.slot = 0
        self.holders: dict[str, Holder] = {}
        self.calls: list[Call] = []
        self.journal: dict[int, int] = {}
        """By slot: tokens owed. What is on disk."""
        self.is_cut_off = False

    def holder(self, account: str) -> Holder:
        """Return this sidecar's side of an account."""
        one = self.holders.get(account)
        if one is None:
            self.slot += 1
            one = self.holders[account] = Holder(self.name, self.epoch, self.slot)
        return one

    def note(self, holder: Holder) -> None:
        """Log what a lease owes."""
        self.journal[holder.slot] = holder.spent + holder.reserved


class World:
    """One budget, its owner's books in a store, three sidecars that spend from it, and delegated parts of it."""

    __slots__ = ("accounts", "billed", "budget", "chance", "children", "limit", "network", "open_bounds", "sidecars")

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.accounts: dict[str, Owner] = {ROOT: Owner()}
        self.sidecars = [Sidecar(f"h{number}") for number in range(3)]
        self.network: list[tuple[str, Sidecar, int, Message | Answer]] = []
        """Account, sidecar, its epoch when it was sent, and a message to the owner or an answer from it."""
        self.children: list[str] = []
        self.budget = TOTAL
        """What the policy says."""
        self.limit = TOTAL
        """What may be spent, an operator's word included."""
        self.billed = 0
        self.open_bounds = 0

    # What sidecars do.

    def admit(self, bound: int) -> bool:
        """A call comes in somewhere."""
        chance = self.chance
        account = chance.choice(self.children) if self.children and chance.random() < 0.4 else ROOT
        sidecar = chance.choice(self.sidecars)
        holder = sidecar.holder(account)
        if not holder.reserve(bound):
            request = holder.request(self.budget, holder.lacking(bound), bound, is_volatile=False)
            if sidecar.is_cut_off or chance.random() < 0.3:
                self.send(account, sidecar, request)
                return False
            holder.hear(self.step(account, request))
            if not holder.reserve(bound):
                return False
        sidecar.note(holder)
        sidecar.calls.append(Call(account, bound))
        self.open_bounds += bound
        return True

    def settle(self) -> None:
        """A call ends, and its usage comes back."""
        sidecar = self.chance.choice(self.sidecars)
        if sidecar.calls:
            call = sidecar.calls.pop(self.chance.randrange(len(sidecar.calls)))
            actual = self.bill(call)
            holder = sidecar.holder(call.account)
            holder.settle(call.bound, actual)
            sidecar.note(holder)

    def bill(self, call: Call) -> int:
        """The provider takes what it took."""
        actual = self.chance.randint(0, call.bound)
        self.open_bounds -= call.bound
        self.billed += actual
        return actual

    def talk(self) -> None:
        """A report, a refill ahead of need, idle tokens given back, or a whole lease."""
        sidecar = self.chance.choice(self.sidecars)
        if not sidecar.holders:
            return
        account, holder = self.chance.choice(list(sidecar.holders.items()))
        kind = self.chance.randrange(4)
        if kind == 0:
            self.send(account, sidecar, holder.report())
        elif kind == 1:
            self.send(account, sidecar, holder.request(self.budget, 0, BOUND_MAX, is_volatile=False))
        elif kind == 2:
            self.send(account, sidecar, holder.give_back_idle())
        elif not any(call.account == account for call in sidecar.calls):
            self.send(account, sidecar, holder.give_back())

    def crash(self) -> None:
        """A process dies with calls out, some of them forwarded, and starts again with what is on its disk."""
        sidecar = self.chance.choice(self.sidecars)
        for call in sidecar.calls:
            if self.chance.random() < 0.7:
                self.bill(call)
            else:
                self.open_bounds -= call.bound
        sidecar.calls.clear()
        what = self.chance.random()
        # A journal that was put back from a copy is known as one, and tells no more than one that is lost.
        has_log = what < 0.6
        log = Replay(sidecar.epoch, BOOT, [0], dict(sidecar.journal) if has_log else {})
        before = HolderRecord(sidecar.epoch, BOOT)
        for account in sidecar.holders:
            owner = self.accounts[account]
            closed = _closed(account, owner, sidecar.name, before, log, is_trusted=has_log, is_same_boot=True)
            if closed is not None:
                owner.step(closed.report, LEASE_MAX)
        sidecar.epoch += 1
        sidecar.holders.clear()
        sidecar.journal.clear()

    def cut_off(self) -> None:
        """A partition begins, or ends."""
        sidecar = self.chance.choice(self.sidecars)
        sidecar.is_cut_off = not sidecar.is_cut_off

    # What the network and the owners do.

    def send(self, account: str, sidecar: Sidecar, message: Message | Answer) -> None:
        """Send, unless it is lost; sometimes twice."""
        luck = self.chance.random()
        if luck >= 0.1:
            self.network.append((account, sidecar, sidecar.epoch, message))
        if luck >= 0.9:
            self.network.append((account, sidecar, sidecar.epoch, message))

    def deliver(self) -> None:
        """Any message arrives, whichever was sent first."""
        if not self.network:
            return
        at = self.chance.randrange(len(self.network))
        account, sidecar, epoch, message = self.network[at]
        if sidecar.is_cut_off:
            return
        self.network[at] = self.network[-1]
        self.network.pop()
        if isinstance(message, Answer):
            # An answer is for the process that asked; a later one never hears it.
            holder = sidecar.holders.get(account)
            if holder is not None and epoch == sidecar.epoch:
                holder.hear(message)
        else:
            self.send(account, sidecar, self.step(account, message))

    def step(self, account: str, message: Message) -> Answer:
        """Step an owner; sometimes another desk has read the same books and comes too late with its own step."""
        owner = self.accounts[account]
        if self.chance.random() < 0.02:
            # Its compare-and-set is refused: all that it did is gone, and nobody hears of it.
            deepcopy(owner).step(message, LEASE_MAX)
        return owner.step(message, LEASE_MAX)

    # Delegation: two records, and a crash may come between them.

    def delegate(self) -> None:
        """Give a part of the budget to a child account; sometimes whoever does it dies half-way."""
        child = f"{ROOT}/{len(self.accounts)}"
        tokens = self.chance.randint(1, 300)
        if self.accounts[ROOT].transfer(child, tokens):
            self.accounts[child] = Owner()
            if self.chance.random() < 0.8:
                self.accounts[child].receive(ROOT, tokens)
                self.children.append(child)  # only now does a context name it

    def end_child(self) -> None:
        """Close a child; what it has left flows back when nobody holds a lease on it, perhaps much later."""
        if not self.accounts[ROOT].children:
            return
        child, given = self.chance.choice(list(self.accounts[ROOT].children.items()))
        owner = self.accounts[child]
        if owner.parent != ROOT:
            owner.receive(ROOT, given)
        if not owner.is_closed:
            owner.close()
        if self.chance.random() < 0.7 and not owner.outstanding:
            self.accounts[ROOT].take_back(child, owner.available)
            if self.chance.random() < 0.1:
                self.accounts[ROOT].take_back(child, owner.available)

    def top_up(self) -> None:
        """An operator adds to the budget."""
        tokens = self.chance.randint(1, 100)
        self.accounts[ROOT].top_up(tokens)
        self.limit += tokens

    # What must hold.

    def check(self) -> None:
        """Raise OverspentError where the books do not add up, or more is spent or may be than the budget has."""
        root = self.accounts[ROOT]
        if self.billed + self.open_bounds > self.limit:
            raise OverspentError(f"{self.billed} billed and {self.open_bounds} out, of {self.limit}")
        for account, owner in self.accounts.items():
            if not owner.is_balanced or owner.available < 0:
                raise OverspentError(f"the books of {account} do not add up: {owner}")
            if owner.parent and account in root.children and owner.total != root.children[account]:
                raise OverspentError(f"{account} has {owner.total}, and was given {root.children[account]}")
        for sidecar in self.sidecars:
            for account, holder in sidecar.holders.items():
                if holder.room < 0:
                    raise OverspentError(f"{sidecar.name} holds more of {account} than it was granted: {holder.room}")

    def ends_well(self) -> None:
        """Everything heals; then all that is left, and counts as neither spent nor stranded, can be spent."""
        self.network.clear()
        for sidecar in self.sidecars:
            sidecar.is_cut_off = False
            for call in sidecar.calls:
                holder = sidecar.holder(call.account)
                holder.settle(call.bound, self.bill(call))
            sidecar.calls.clear()
            for account, holder in sidecar.holders.items():
                holder.hear(self.accounts[account].step(holder.give_back(), LEASE_MAX))
        for _ in range(len(self.children)):
            self.end_children()
        root, last = self.accounts[ROOT], self.sidecars[0].holder(ROOT)
        before = last.room
        left = root.available
        if left > 0:
            last.hear(root.step(last.request(self.budget, left, left, is_volatile=False), LEASE_MAX))
            if last.room - before < left:
                raise OverspentError(f"{left} are left, and a call for them is not admitted: {last.room}")
        self.check()

    def end_children(self) -> None:
        """Close every child that can be."""
        root = self.accounts[ROOT]
        for child in tuple(root.children):
            owner = self.accounts[child]
            owner.receive(ROOT, root.children[child])
            owner.close()
            if not owner.outstanding:
                root.take_back(child, owner.available)
