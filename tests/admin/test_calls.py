"""What was decided of calls, over the admin port."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from meshd.ledger import Shortfall
from meshd.refusal import Reason, Refused
from tests.telemetry.calls import call, outcome, upstream

if TYPE_CHECKING:
    from tests.admin.daemon import Ports

pytestmark = pytest.mark.both_loops


def see(ports: Ports, id: str, refused: Refused | None = None) -> None:
    made = call(upstream())
    made.id = id
    telemetry = ports.daemon.telemetry
    telemetry.started(made)
    if refused is None:
        telemetry.attempted(made, outcome())
    telemetry.ended(made, 200, outcome(), refused)


async def test_a_refusal_is_found_by_its_id_with_what_the_account_lacked(ports: Ports) -> None:
    refused = Refused(
        Reason.BUDGET_EXHAUSTED, "account has too few tokens left; Bearer sk-abcdefghijklmnopqrstuvwx", rule="b"
    )
    refused.short = Shortfall("workflow/w", 1000, 900, 50, 200, 120, is_busy=False)
    see(ports, "abc-1", refused)
    status, body, _ = await ports.admin("/v1/calls/abc-1")
    assert status == 200
    (found,) = body["refusals"]
    assert (found["reason"], found["status"], found["rule"], found["is_shadow"]) == (
        "budget_exhausted",
        402,
        "b",
        False,
    )
    assert (found["account"], found["unit"]) == ("workflow/w", "tokens")
    assert [found[key] for key in ("limit", "used", "reserved", "bound", "least")] == [1000, 900, 50, 200, 120]
    assert "sk-abcdef" not in json.dumps(body)


async def test_the_refused_can_be_listed_apart(ports: Ports) -> None:
    for number in range(5):
        see(ports, f"ok-{number}")
        see(ports, f"no-{number}", Refused(Reason.LOOP, "no"))
    _, body, _ = await ports.admin("/v1/calls?refused=1&limit=2")
    assert [one["id"] for one in body["calls"]] == ["no-4", "no-3"]
    _, body, _ = await ports.admin("/v1/calls?limit=3")
    assert [one["id"] for one in body["calls"]] == ["no-4", "ok-4", "no-3"]
    assert body["calls"][1]["attempts"][0]["verdict"] == "success"


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/v1/calls/never-seen", "GET", 404), ("/v1/calls/" + "x" * 65, "GET", 400), ("/v1/calls/a%00b", "GET", 400),
        ("/v1/calls/a%20b", "GET", 400), ("/v1/calls/%0a", "GET", 400), ("/v1/calls/a%2Fb", "GET", 400),
        ("/v1/calls/a/b", "GET", 404), ("/v1/calls/x?y=1", "GET", 400), ("/v1/calls/x", "DELETE", 405),
        ("/v1/calls?refused=yes", "GET", 400), ("/v1/calls?limit=0", "GET", 400), ("/v1/calls?limit=1001", "GET", 400),
        ("/v1/calls?limit=1&limit=1", "GET", 400), ("/v1/calls", "POST", 405),
    ],
)  # fmt: skip
async def test_nonsense_is_a_problem(ports: Ports, path: str, method: str, expected: int) -> None:
    status, body, kind = await ports.admin(path, method)
    assert (status, kind, body["status"]) == (expected, "application/problem+json", expected)
