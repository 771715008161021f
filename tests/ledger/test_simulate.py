"""A slice of `make simulate` with a fixed seed, and the proof that it finds what it looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshd.ledger.account import Owner
from meshd.ledger.holder import Holder
from tests.ledger import simulate, world

if TYPE_CHECKING:
    from collections.abc import Callable


def test_nothing_is_overspent_where_check_then_charge_overspends() -> None:
    tally = simulate.run(1, 3_000)
    assert (tally.schedules, tally.overspent, tally.first) == (3_000, 0, "")
    assert tally.admitted > 3_000, "a guarantee that admits nothing is none"
    assert tally.theirs_overspent > 1_000


def refunds_an_old_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new epoch gives back what the old one held, in place of writing it off."""
    real = Owner._settle

    def settle(self: Owner, stake: Any, spent: int, returned: int) -> None:
        real(self, stake, stake.spent, returned + spent - stake.spent) if spent == stake.granted - returned else real(
            self, stake, spent, returned
        )

    monkeypatch.setattr(Owner, "_settle", settle)


def grants_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A need is granted whatever is available."""
    monkeypatch.setattr(Owner, "_sized", lambda self, message, most: message.need)


def gives_back_without_reducing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner credits what the holder goes on to spend."""
    monkeypatch.setattr(
        Holder, "give_back_idle", lambda self: self.report()._replace(returned=self.returned + max(0, self.room))
    )


def trusts_a_copied_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is older than what was spent, or gone, is taken at its word."""
    real = world._closed

    def closed(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **{**options, "is_trusted": True})

    monkeypatch.setattr(world, "_closed", closed)


def takes_a_child_back_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child has left flows back as often as it is told to."""

    def take_back(self: Owner, child: str, left: int) -> None:
        given = self.children.pop(child, left)
        self.available += left
        self.settled += given - left
        self.total += left if given == left else 0

    monkeypatch.setattr(Owner, "take_back", take_back)


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    "fault",
    [
        refunds_an_old_lease,
        grants_what_is_not_there,
        gives_back_without_reducing,
        trusts_a_copied_journal,
        takes_a_child_back_twice,
    ],
)
def test_each_rule_that_is_broken_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert simulate.run(1, 2_000).overspent > 0
