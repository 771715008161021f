"""Accounts over the admin port: what is shown, what orders do to real books, and what nonsense does there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from meshd.engines.port import Change, StoreLocked
from meshd.ledger import Ledger
from meshd.ledger.account import Owner, Request
from meshd.ledger.desk import ACCOUNTS, Desk
from meshd.ledger.entry import Reservation
from meshd.prices import MONEY

if TYPE_CHECKING:
    from tests.admin.daemon import Ports

pytestmark = pytest.mark.both_loops

ID = "workflow/report-42"


async def spend(ports: Ports, account: str = ID, tokens: int = 100, limit: int = 1000) -> Reservation:
    """Spend from an account as a call does, and leave a call of 50 in flight."""
    ledger = ports.daemon.ledger
    spent = await ledger.wait(account, limit, tokens, tokens, queue_s=0)
    assert isinstance(spent, Reservation)
    spent.settle(tokens)
    flying = await ledger.wait(account, limit, 50, 50, queue_s=0)
    assert isinstance(flying, Reservation)
    return flying


async def lease_elsewhere(ports: Ports, account: str = ID, holder: str = "far", tokens: int = 200) -> None:
    """Let another sidecar on the same store take tokens on lease."""
    request = Request(holder, 1, 1, 1, 1000, tokens, tokens, 0, 0, is_volatile=True)
    await Desk(ports.daemon.store, lease_tokens_max=tokens).tell(account, request)


async def ask(ports: Ports, id: str = ID) -> tuple[int, Any]:
    status, body, _ = await ports.admin(f"/v1/account?id={quote(id, safe='')}")
    return status, body


async def order(ports: Ports, what: str, **body: Any) -> tuple[int, Any]:
    status, answer, kind = await ports.admin(f"/v1/accounts/{what}", "POST", data=json.dumps(body).encode())
    assert kind == ("application/json" if status == 200 else "application/problem+json")
    return status, answer


async def test_an_account_shows_the_books_and_what_is_in_flight_here(ports: Ports) -> None:
    await lease_elsewhere(ports)
    flying = await spend(ports)
    status, body = await ask(ports)
    assert status == 200
    assert (body["id"], body["scope"], body["unit"], body["total"]) == (ID, "workflow", "tokens", 1000)
    assert (body["used"], body["reserved"], body["left"], body["delegated"]) == (100, 50, 850, 0)
    assert body["is_open_here"]
    leases = {one["holder"]: one for one in body["leases"]}
    assert (leases["far"]["outstanding"], leases["far"]["is_own"]) == (200, False)
    assert leases["local"]["is_own"]
    assert sum(one["outstanding"] for one in leases.values()) + body["available"] + body["used"] == 1000
    flying.settle(7)
    assert [(await ask(ports))[1][key] for key in ("used", "reserved", "left")] == [107, 0, 893]


@pytest.mark.parametrize(
    "id",
    ["workflow/..", "workflow/a%2Fb", "workflow/a b?c=d&e#f", "unattributed/a/2026-11-26", "agent/é", "workflow/../x"],
)
async def test_ids_of_any_kind_are_found_under_their_own_name(ports: Ports, id: str) -> None:
    await spend(ports, id)
    status, body = await ask(ports, id)
    assert (status, body["id"], body["used"]) == (200, id, 100)
    assert (await order(ports, "close", id=id))[1]["account"]["is_closed"]


async def test_a_delegation_shows_on_both_sides(ports: Ports) -> None:
    await ports.daemon.ledger.delegate(ID, 1000, f"delegated/x/{ID}", 300, 1, queue_s=0)
    _, parent = await ask(ports)
    assert (parent["delegated"], parent["left"], parent["children"]) == (300, 700, {f"delegated/x/{ID}": 300})
    _, child = await ask(ports, f"delegated/x/{ID}")
    assert (child["parent"], child["total"], child["scope"]) == (ID, 300, "delegated")


async def test_pages_miss_nothing_and_a_damaged_account_hides_no_other(ports: Ports) -> None:
    ids = [f"workflow/{number:03}" for number in range(25)]
    for id in ids:
        await spend(ports, id)
    broken = Change(ACCOUNTS, ids[7], b'{"total": 5}')
    await ports.daemon.store.write([broken])
    seen: list[dict[str, Any]] = []
    after = ""
    while True:
        status, body, _ = await ports.admin(f"/v1/accounts?limit=10&after={after}")
        assert status == 200
        seen += body["accounts"]
        if not (after := body["next_after"]):
            break
    assert [one["id"] for one in seen] == ids
    assert [one["id"] for one in seen if one["damage"]] == [ids[7]]
    assert "do not add up" in seen[7]["damage"]
    assert (await ask(ports, ids[7]))[0] == 503


async def test_a_top_up_lets_a_workflow_go_on(ports: Ports) -> None:
    ledger = ports.daemon.ledger
    (await spend(ports, tokens=950)).settle(50)
    assert not isinstance(await ledger.wait(ID, 1000, 10, 10, queue_s=0), Reservation)
    status, body = await order(ports, "top-up", id=ID, tokens=500)
    assert (status, body["is_new"], body["account"]["total"], body["account"]["extra"]) == (200, False, 1500, 500)
    assert body["account"]["left"] == 500
    assert isinstance(await ledger.wait(ID, 1000, 10, 10, queue_s=0), Reservation)


async def test_an_account_can_be_topped_up_before_its_first_use(ports: Ports) -> None:
    status, body = await order(ports, "top-up", id=ID, tokens=500)
    assert (status, body["is_new"], body["account"]["extra"]) == (200, True, 500)
    flying = await ports.daemon.ledger.wait(ID, 1000, 1500, 1500, queue_s=0)
    assert isinstance(flying, Reservation)


async def test_dollars_go_to_accounts_of_dollars_to_the_last_millionth(ports: Ports) -> None:
    status, body = await order(ports, "top-up", id=ID + MONEY, dollars="$1.000001")
    assert (status, body["account"]["unit"], body["account"]["extra"]) == (200, "microdollars", 1_000_001)
    assert (await order(ports, "top-up", id=ID + MONEY, dollars=0.25))[1]["account"]["extra"] == 1_250_001
    for id, amount, other in ((ID, {"dollars": "5"}, ID + MONEY), (ID + MONEY, {"tokens": 5}, ID)):
        status, body = await order(ports, "top-up", id=id, **amount)
        assert (status, body["title"]) == (409, "Order refused")
        assert body["detail"].endswith(f"; {other} counts these.")


async def test_close_and_reopen(ports: Ports) -> None:
    (await spend(ports)).settle(0)
    ledger = ports.daemon.ledger
    assert (await order(ports, "close", id=ID))[1]["account"]["is_closed"]
    await ledger._leases.finish()
    assert not isinstance(await ledger.wait(ID, 1000, 10, 10, queue_s=0), Reservation)
    status, body = await order(ports, "reopen", id=ID)
    assert (status, body["account"]["is_closed"]) == (200, False)
    assert isinstance(await ledger.wait(ID, 1000, 10, 10, queue_s=0), Reservation)


async def test_a_frozen_account_says_why_and_is_let_go(ports: Ports) -> None:
    owner = Owner(total=1000, available=1000)
    owner.freeze(9)
    import msgspec

    await ports.daemon.store.write([Change(ACCOUNTS, ID, msgspec.json.encode(owner))])
    assert "lost writes" in (await ask(ports))[1]["frozen"]
    assert (await order(ports, "reopen", id=ID))[1]["account"]["frozen"] == ""


async def test_a_lease_that_will_not_come_back_is_written_off(ports: Ports) -> None:
    await lease_elsewhere(ports)
    status, body = await order(ports, "write-off", id=ID, holder="far")
    assert (status, body["written_off"], body["account"]["used"], body["account"]["left"]) == (200, 200, 200, 800)
    status, body = await order(ports, "write-off", id=ID, holder="far")
    assert (status, body["title"]) == (404, "Unknown account")
    assert "has no open lease" in body["detail"]


async def test_the_lease_of_the_sidecar_that_is_asked_is_not_written_off(ports: Ports) -> None:
    flying = await spend(ports)
    status, body = await order(ports, "write-off", id=ID, holder="local")
    assert (status, body["title"]) == (409, "Order refused")
    assert "it is alive" in body["detail"]
    flying.settle(1)
    assert (await ask(ports))[1]["used"] == 101


@pytest.mark.parametrize("what", ["close", "reopen", "write-off"])
async def test_an_account_that_nobody_has_used_is_unknown(ports: Ports, what: str) -> None:
    body = {"id": ID} | ({"holder": "far"} if what == "write-off" else {})
    assert (await order(ports, what, **body))[0] == 404
    assert (await ask(ports))[0] == 404
    assert await ports.daemon.ledger.orders.names() == []


@pytest.mark.parametrize("id", ["wrokflow/x", "workflow", "workflow/", "/x", "report-42", "delegated/x/workflow/y"])
async def test_a_name_that_no_call_can_have_is_not_topped_up(ports: Ports, id: str) -> None:
    status, body = await order(ports, "top-up", id=id, tokens=5)
    assert (status, body["title"]) == (409, "Order refused")
    assert await ports.daemon.ledger.orders.names() == []


async def test_more_than_an_account_can_hold_is_refused(ports: Ports) -> None:
    assert (await order(ports, "top-up", id=ID, tokens=10**15))[0] == 200
    assert (await order(ports, "top-up", id=ID, tokens=1))[0] == 409
    assert (await ask(ports))[1]["extra"] == 10**15


async def test_books_that_are_away_are_a_503_that_says_why(ports: Ports) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            async def fail(*_arguments: Any, **_named: Any) -> Any:
                raise StoreLocked("redis at 10.0.0.9 does not answer")

            return fail

    ports.daemon.ledger._desk.store = Away()  # type: ignore[assignment]
    asked = [await ports.admin("/v1/accounts"), (*(await ask(ports)), "")]
    asked += [(*(await order(ports, "top-up", id=ID, tokens=5)), ""), (*(await order(ports, "close", id=ID)), "")]
    for status, body, _ in asked:
        assert (status, body["title"]) == (503, "The books cannot be reached")
        assert "does not answer" in body["detail"]


async def test_books_that_could_not_be_opened_are_away_too(ports: Ports) -> None:
    ports.daemon.ledger = Ledger.failed(StoreLocked("in use by another meshd"))
    status, body = await order(ports, "top-up", id=ID, tokens=5)
    assert (status, body["detail"]) == (503, "in use by another meshd")


NONSENSE: list[bytes] = [
    b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b'{"id": 5, "tokens": 5}', b'{"tokens": 5}',
    b'{"id": "workflow/x"}', b'{"id": "workflow/x", "tokens": 5, "dollars": "5"}',
    b'{"id": "workflow/x", "tokens": 0}', b'{"id": "workflow/x", "tokens": -5}',
    b'{"id": "workflow/x", "tokens": 1e3}', b'{"id": "workflow/x", "tokens": 5.5}',
    b'{"id": "workflow/x", "tokens": "5"}', b'{"id": "workflow/x", "tokens": true}',
    b'{"id": "workflow/x", "tokens": NaN}', b'{"id": "workflow/x", "tokens": Infinity}',
    b'{"id": "workflow/x", "tokens": 1000000000000000000000000000000}',
    b'{"id": "workflow/x", "tokens": 1000000000000001}', b'{"id": "workflow/x", "tokens": 5, "note": "hi"}',
    b'{"id": "workflow/x/@usd", "dollars": "0"}', b'{"id": "workflow/x/@usd", "dollars": -1}',
    b'{"id": "workflow/x/@usd", "dollars": "0.0000001"}', b'{"id": "workflow/x/@usd", "dollars": "1e9"}',
    b'{"id": "workflow/x/@usd", "dollars": NaN}', b'{"id": "workflow/x/@usd", "dollars": 1e30}',
    b'{"id": "workflow/x/@usd", "dollars": true}', b'{"id": "workflow/x/@usd", "dollars": []}',
    b'{"id": "", "tokens": 5}', b'{"id": "workflow/\\u0000", "tokens": 5}', b'{"id": "workflow/\\n", "tokens": 5}',
    b'{"id": "workflow/\\ud800", "tokens": 5}', b'{"id": "workflow/\\u202e", "tokens": 5}',
    b'{"id": "workflow/' + b"x" * 600 + b'", "tokens": 5}', b"[" * 4000,
]  # fmt: skip


@pytest.mark.parametrize("body", NONSENSE, ids=lambda body: body[:60].decode("ascii", "replace"))
async def test_nonsense_in_a_body_is_a_problem_and_changes_nothing(ports: Ports, body: bytes) -> None:
    for what in ("top-up", "close", "reopen", "write-off"):
        status, answer, kind = await ports.admin(f"/v1/accounts/{what}", "POST", data=body)
        is_unused = what in ("close", "reopen") and body == b'{"id": "workflow/x"}'
        assert (status, kind) == (404 if is_unused else 400, "application/problem+json"), what
        assert answer["title"]
    assert await ports.daemon.ledger.orders.names() == []


async def test_huge_bodies_are_not_read(ports: Ports) -> None:
    huge = json.dumps({"id": "workflow/" + "x" * 100_000, "tokens": 5}).encode()
    for what in ("top-up", "close", "reopen", "write-off"):
        assert (await ports.admin(f"/v1/accounts/{what}", "POST", data=huge))[0] == 413


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/v1/accounts?limit=0", "GET", 400), ("/v1/accounts?limit=-1", "GET", 400),
        ("/v1/accounts?limit=1e3", "GET", 400), ("/v1/accounts?limit=100000", "GET", 400),
        ("/v1/accounts?limit=" + "9" * 5000, "GET", 400), ("/v1/accounts?limit=%D9%A1", "GET", 400),
        ("/v1/accounts?limit=", "GET", 400), ("/v1/accounts?limit=1&limit=2", "GET", 400),
        ("/v1/accounts?lmit=1", "GET", 400), ("/v1/accounts?after=" + "x" * 600, "GET", 400),
        ("/v1/accounts?after=%00", "GET", 400), ("/v1/account", "GET", 400), ("/v1/account?id=", "GET", 400),
        ("/v1/account?id=%00", "GET", 400), ("/v1/account?id=%0a", "GET", 400),
        ("/v1/account?id=%ED%A0%80", "GET", 404),
        ("/v1/account?id=" + "x" * 600, "GET", 400), ("/v1/account?id=a&id=b", "GET", 400),
        ("/v1/account?name=a", "GET", 400), ("/v1/account/workflow/x", "GET", 404), ("/v1/accounts", "POST", 405),
        ("/v1/accounts/top-up", "GET", 405), ("/v1/accounts/top-up?id=a", "POST", 400), ("/v1/accounts/x", "POST", 404),
        ("/v1/workflows", "GET", 404),
    ],
)  # fmt: skip
async def test_nonsense_in_an_address_is_a_problem(ports: Ports, path: str, method: str, expected: int) -> None:
    status, body, kind = await ports.admin(path, method)
    assert (status, kind, body["status"]) == (expected, "application/problem+json", expected)


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/accounts", "GET"), ("/v1/account?id=workflow/x", "GET"), ("/v1/calls", "GET"), ("/v1/calls/x", "GET")]
    + [(f"/v1/accounts/{what}", "POST") for what in ("top-up", "close", "reopen", "write-off")],
)
async def test_without_the_token_there_is_nothing_to_see_or_order(ports: Ports, path: str, method: str) -> None:
    body = {"data": json.dumps({"id": ID, "tokens": 5}).encode()} if method == "POST" else {}
    assert (await ports.admin(path, method, token="wrong", **body))[0] == 401
    assert await ports.daemon.ledger.orders.names() == []
