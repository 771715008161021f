"""StateService before what is wrong: damage, other formats, wrong clocks, crowds, keys without end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration

from meshd.engines.port import Change
from meshd.state.record import FORMAT, OBJECTS
from meshd_sdk.v1 import state_pb2 as pb
from tests.api.house import House, house, refusal
from tests.api.test_state import CODES, POLICY, check_out, commit, get, token_of, two_sidecars

KEY = "mesh/x"
NEWER = msgspec.msgpack.encode([7, [], None, [], 0.0, FORMAT + 1])
METHODS: dict[str, dict[str, Any]] = {
    "GetState": {},
    "History": {},
    "Commit": {},
    "Checkout": {"leaseId": "l"},
    "Release": {"leaseId": "l"},
    "DeleteState": {"baseVersion": "1"},
    "WriteShadow": {},
    "Promote": {},
    "DropShadow": {},
}


async def spoilt(one: House, value: bytes) -> None:
    """Put something else in the place of an object's record, and of a tentative version's."""
    store = one.mesh.ledger.store()
    assert store is not None
    await store.write([Change(OBJECTS, KEY, value), Change("state-shadow", f"w/{KEY}", value)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "key",
    ["k" * 10_000, "mesh/" + "k" * 10_000, "mesh://state/mesh/" + "k" * 10_000 + "@1"],
    ids=["bare", "key", "reference"],
)
async def test_a_key_of_ten_kilobytes(tmp_path: Path, method: str, key: str) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        status, said = await one.ask(f"StateService/{method}", METHODS[method] | {"token": token, "key": key})
        assert (status, said["code"]) == (400, "invalid_argument")
        assert len(said["message"]) < 500


@pytest.mark.parametrize(("value", "words"), [(NEWER, "newer meshd"), (b"\xc1", "damaged")], ids=["newer", "damaged"])
async def test_an_object_of_a_newer_meshd_or_a_damaged_one(tmp_path: Path, value: bytes, words: str) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        await spoilt(one, value)
        for method, more in METHODS.items():
            status, said = await one.ask(f"StateService/{method}", more | {"token": token, "key": KEY})
            assert (status, said["code"]) == (503, "unavailable"), method
            assert words in said["message"]
            assert "is_retryable" not in said["details"][0]["debug"]["metadata"]
        error = await refusal(get(one, token, KEY))
        assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
        # A watch ends with it, and is not told to watch again.
        error = await refusal(one.state.WatchState(pb.WatchStateRequest(token=token, key=KEY)).read())
        assert error.code() is CODES.UNAVAILABLE
        assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
        # The rest goes on, and what is there is left as it is.
        assert (await commit(one, token, value=b"one")).object.version == 1
        store = one.mesh.ledger.store()
        assert store is not None
        assert (await store.read(OBJECTS, (KEY,)))[KEY].value == value


@pytest.mark.parametrize("engine", ["redis", "nats", "postgres"])
async def test_many_check_outs_at_once_over_two_sidecars(tmp_path: Path, engine: str) -> None:
    async with two_sidecars(tmp_path, engine) as (one, other):
        tokens = [await token_of(one), await token_of(other, agent="bob")]
        await commit(one, tokens[0], value=b"one")
        asked = [check_out([one, other][n % 2], tokens[n % 2], f"l{n}") for n in range(10)]
        answers = await asyncio.gather(*asked)
        (winner,) = (answer.lease_id for answer in answers if answer.lease_id)
        assert {answer.lease.agent for answer in answers} == {"ann" if int(winner[1:]) % 2 == 0 else "bob"}
        writes = [commit([one, other][n % 2], tokens[n % 2], value=b"x", base=1, lease_id=f"l{n}") for n in range(10)]
        made = [answer.object.version for answer in await asyncio.gather(*writes) if not answer.is_conflict]
        assert made == [2]


async def test_clocks_from_the_future_keep_nobody_out_and_overwrite_nothing(tmp_path: Path) -> None:
    async with two_sidecars(tmp_path, "redis") as (one, other):
        ann, bob = await token_of(one), await token_of(other, agent="bob")
        key = "tenant/acme/x"
        await commit(one, ann, key, b"one")
        other.ahead_s = 365 * 86_400.0
        bob = await token_of(other, agent="bob")
        # By that clock ann's lease has long run out, and its own lasts for a year.
        assert (await check_out(one, ann, "a", key)).lease_id == "a"
        assert (await check_out(other, bob, "b", key)).lease_id == "b"
        refused = await commit(one, ann, key, b"ann's", 1, lease_id="a")
        assert refused.conflict == pb.STATE_CONFLICT_LEASE_LOST
        assert (await check_out(one, ann, "c", key, lease=Duration(seconds=3600))).lease_id == "c"
        refused = await commit(other, bob, key, b"bob's", 1, lease_id="b")
        assert (refused.conflict, refused.object.version) == (pb.STATE_CONFLICT_LEASE_LOST, 1)
        assert (await commit(one, ann, key, b"ann's", 1, lease_id="c")).object.version == 2
        made = (await commit(other, bob, key, b"bob's", 2)).object
        assert made.written.ToSeconds() > one.wall_clock() + 300 * 86_400
        assert (await get(one, ann, key)).value == b"bob's"
        assert (await commit(one, ann, key, b"back", 3)).object.version == 4


async def test_a_deadline_in_ten_thousand_years(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        error = await refusal(one.open("far", timeout=Duration(seconds=315_576_000_000)))
        assert error.code() is CODES.INVALID_ARGUMENT
        token = str((await one.open("far", timeout=Duration(seconds=366 * 86_400))).token)
        await commit(one, token, value=b"one")
        one.ahead_s += 365 * 86_400.0
        assert (await get(one, await token_of(one, "far"))).value == b"one"
