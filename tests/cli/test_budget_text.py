"""What `meshd budget` prints, without a daemon: widths, bars, money, and names that would play with a terminal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from meshd.admin.view import AccountDump, LeaseDump
from meshd.cli.budget_text import account_text, table


def account(id: str = "workflow/a", **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "scope": "workflow", "unit": "tokens", "total": 1000, "extra": 0, "used": 0, "settled": 0, "reserved": 0,
        "delegated": 0, "left": 1000, "available": 1000,
    }  # fmt: skip
    return dataclasses.asdict(AccountDump(id=id, **(given | more)))


@pytest.mark.parametrize(
    ("used", "bar"), [(0, "-" * 24), (500, "#" * 12 + "-" * 12), (1000, "#" * 24), (9000, "#" * 24)]
)
def test_bars_are_for_terminals(used: int, bar: str) -> None:
    line = table([account(used=used)], rows=9, columns=120, is_whole=True).splitlines()[1]
    assert line.endswith(f"  {bar}")
    assert "#" not in table([account(used=used)], rows=9, columns=0, is_whole=True)


@pytest.mark.parametrize("columns", range(1, 130, 7))
def test_no_line_with_a_bar_is_wider_than_the_terminal(columns: int) -> None:
    accounts = [account(used=500), account("workflow/b", used=10, is_closed=True)]
    bare = table(accounts, rows=9, columns=0, is_whole=True)
    shown = table(accounts, rows=9, columns=columns, is_whole=True)
    assert shown == bare or max(map(len, shown.splitlines())) <= columns


def test_accounts_in_use_come_before_those_that_are_over() -> None:
    accounts = [
        account("workflow/over", used=1000), account("workflow/b", used=10, is_open_here=True),
        account("workflow/a", used=900, is_open_here=True), account("workflow/none", total=0, left=0),
    ]  # fmt: skip
    lines = table(accounts, rows=9, columns=0, is_whole=True).splitlines()[1:]
    assert [line.split()[0].removeprefix("workflow/") for line in lines] == ["a", "b", "over", "none"]


def test_money_is_shown_as_money() -> None:
    made = account(
        "agent/a/@usd", unit="microdollars", total=5_000_000, extra=1_000_000, used=1_250_000, left=3_750_000,
        leases=[LeaseDump("far", 250_000, 1_000_001, is_open=True)],
    )  # fmt: skip
    line = table([made], rows=9, columns=0, is_whole=True).splitlines()[1]
    assert line.split()[:6] == ["agent/a/@usd", "$1.25", "25%", "$5.00", "$0.00", "$3.75"]
    assert line.endswith("$0.25 on lease elsewhere")
    text = account_text(made)
    assert "limit       $5.00, $1.00 of it topped up" in text
    assert "far     $1.000001     $0.25" in text


def test_what_keeps_an_account_from_spending_is_told_with_what_to_do() -> None:
    text = account_text(account(frozen="the store has lost writes", is_closed=True, wants={"far": 50}))
    assert "frozen      the store has lost writes" in text
    assert "`meshd budget reopen workflow/a`" in text
    assert "waiting     far for 50 tokens" in text
    assert (
        account_text(account(damage="the record is damaged")).splitlines()[1] == "  damaged     the record is damaged"
    )
    assert table([account(damage="x")], rows=9, columns=0, is_whole=True).splitlines()[1].split()[-1] == "damaged"


def test_delegations_are_shown_from_both_ends() -> None:
    child = "delegated/x/workflow/a"
    assert f"    {child}  300" in account_text(account(delegated=300, left=700, children={child: 300}))
    assert "given by    workflow/a" in account_text(account(child, parent="workflow/a"))


def test_a_name_cannot_play_with_the_terminal() -> None:
    made = account("workflow/\x1b[2J\u202e\n", children={"\x1b]0;x\x07": 5}, delegated=5)
    for text in (table([made], rows=9, columns=0, is_whole=True), account_text(made)):
        assert text.replace("\n", "").isprintable()
