"""StateService: objects that agents share, over gRPC and as JSON, judged by scope, with nothing overwritten."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshd.engines.port import StoreError
from meshd.ledger import Ledger
from meshd.state.objects import Place
from meshd.state.record import OBJECTS
from meshd_sdk.v1 import context_pb2
from meshd_sdk.v1 import state_pb2 as pb
from tests.api.house import House, house, refusal, until
from tests.engines.places import place_of

POLICY = """
agent: ann
tenant: acme
upstreams:
  bob: {url: "http://127.0.0.1:9", kind: agent}
state: {value_max: 100kB, history: 3, mesh_writers: ["ann"]}
"""
PLAN = "workflow/./plan"
CODES = grpc.StatusCode


async def token_of(one: House, workflow: str = "w", agent: str = "ann") -> str:
    return str((await one.open(workflow, agent=agent)).token)


async def commit(one: House, token: str, key: str = PLAN, value: bytes = b"", base: int = 0, **more: Any) -> Any:
    return await one.state.Commit(pb.CommitRequest(token=token, key=key, value=value, base_version=base, **more))


async def get(one: House, token: str, key: str = PLAN, **more: Any) -> Any:
    return (await one.state.GetState(pb.GetStateRequest(token=token, key=key, **more))).object


async def check_out(one: House, token: str, id: str, key: str = PLAN, **more: Any) -> Any:
    return await one.state.Checkout(pb.CheckoutRequest(token=token, key=key, lease_id=id, **more))


async def shadow(one: House, token: str, value: bytes, base: int = 0, after: int = 0, key: str = PLAN) -> Any:
    request = pb.WriteShadowRequest(token=token, key=key, value=value, base_version=base, shadow_version=after)
    return (await one.state.WriteShadow(request)).commit


async def promote(one: House, token: str, key: str = PLAN, **more: Any) -> Any:
    return (await one.state.Promote(pb.PromoteRequest(token=token, key=key, **more))).commit


async def test_what_is_written_is_read_with_who_wrote_it(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        assert (await get(one, token)).version == 0
        made = (await commit(one, token, value=b"\x00one", content_type="text/plain")).object
        assert (made.key, made.version, made.writer, made.workflow) == ("workflow/w/plan", 1, "ann", "w")
        assert (made.size, made.value, len(made.clock)) == (4, b"", 1)
        found = await get(one, token)
        assert (found.value, found.content_type, found.version) == (b"\x00one", "text/plain", 1)
        assert abs(found.written.ToSeconds() - one.wall_clock()) < 60
        await commit(one, token, value=b"two", base=1)
        assert (await get(one, token, version=1)).value == b"\x00one"
        assert (await get(one, token, "mesh://state/workflow/./plan@1")).value == b"\x00one"
        assert (await get(one, token, "mesh://state/workflow/w/plan@0")).value == b"two"
        listed = await one.state.History(pb.HistoryRequest(token=token, key=PLAN))
        assert [(version.version, version.size, version.value) for version in listed.versions] == [
            (2, 3, b""),
            (1, 4, b""),
        ]
        assert not listed.HasField("lease")


async def test_a_stale_write_is_told_what_is_there(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, bob = await token_of(one), await token_of(one, agent="bob")
        key = "tenant/acme/risk"
        first = await commit(one, ann, key, b"one")
        assert not first.is_conflict
        await commit(one, bob, key, b"two", 1)
        refused = await commit(one, ann, key, b"stale", 1)
        assert refused.is_conflict
        assert (refused.conflict, refused.object.version, refused.object.writer) == (
            pb.STATE_CONFLICT_VERSION,
            2,
            "bob",
        )
        # Both acted in one workflow at one sidecar: what the writer knew, the caller might have.
        assert refused.order == pb.CLOCK_ORDER_EQUAL
        other = await token_of(one, "other")
        refused = await commit(one, other, key, b"stale", 1)
        assert (refused.object.workflow, refused.order) == ("w", pb.CLOCK_ORDER_UNSPECIFIED)
        assert (await get(one, ann, key)).value == b"two"


async def test_asked_again_with_its_id_it_is_written_once(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        for _ in range(3):
            assert (await commit(one, token, value=b"one", commit_id="c")).object.version == 1
        assert (await get(one, token)).version == 1


async def test_two_check_outs_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, bob = await token_of(one), await token_of(one, agent="bob")
        await commit(one, ann, value=b"one")
        won = await check_out(one, ann, "a", lease=Duration(seconds=30))
        assert (won.lease_id, won.object.value) == ("a", b"one")
        lost = await check_out(one, bob, "b")
        assert (lost.lease_id, lost.lease.agent, lost.lease.workflow) == ("", "ann", "w")
        assert 0 < lost.lease.until.ToSeconds() - one.wall_clock() <= 31
        refused = await commit(one, bob, value=b"bob", base=1)
        assert (refused.conflict, refused.lease.agent) == (pb.STATE_CONFLICT_LEASE_HELD, "ann")
        one.ahead_s += 31  # the holder is paused, and its lease runs out
        assert (await check_out(one, bob, "b")).lease_id == "b"
        refused = await commit(one, ann, value=b"paused", base=1, lease_id="a")
        assert (refused.conflict, refused.lease.agent) == (pb.STATE_CONFLICT_LEASE_LOST, "bob")
        assert (await commit(one, bob, value=b"bob", base=1, lease_id="b")).object.version == 2
        assert (await get(one, ann)).value == b"bob"
        assert (await check_out(one, ann, "c")).lease_id == "c"
        released = await one.state.Release(pb.ReleaseRequest(token=ann, key=PLAN, lease_id="c"))
        assert released.is_released


@pytest.mark.parametrize(
    ("key", "reads", "writes"),
    [
        ("workflow/w/x", True, True),
        ("workflow/other/x", False, False),
        ("agent/bob/x", True, True),
        ("agent/ann/x", False, False),
        ("tenant/acme/x", True, True),
        ("tenant/rival/x", False, False),
        ("mesh/x", True, False),
    ],
)
async def test_scopes(tmp_path: Path, key: str, reads: bool, writes: bool) -> None:
    async with house(tmp_path, POLICY) as one:
        bob = await token_of(one, agent="bob")
        ways = [
            (reads, one.state.GetState(pb.GetStateRequest(token=bob, key=key))),
            (reads, one.state.History(pb.HistoryRequest(token=bob, key=key))),
            (reads, one.state.Remember(pb.RememberRequest(token=bob, references=[f"mesh://state/{key}@1"]))),
            (reads, one.state.DropShadow(pb.DropShadowRequest(token=bob, key=key))),
            (writes, one.state.Commit(pb.CommitRequest(token=bob, key=key))),
            (writes, one.state.Checkout(pb.CheckoutRequest(token=bob, key=key, lease_id="l"))),
            (writes, one.state.DeleteState(pb.DeleteStateRequest(token=bob, key=key, base_version=1))),
            (writes, one.state.Release(pb.ReleaseRequest(token=bob, key=key, lease_id="l"))),
        ]
        for is_allowed, way in ways:
            if is_allowed:
                await way
            else:
                assert (await refusal(way)).code() is CODES.PERMISSION_DENIED
        watch = one.state.WatchState(pb.WatchStateRequest(token=bob, key=key))
        if reads:
            watch.cancel()
        else:
            assert (await refusal(watch.read())).code() is CODES.PERMISSION_DENIED


async def test_a_tentative_version_is_its_workflows_alone(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, bob, other = await token_of(one), await token_of(one, agent="bob"), await token_of(one, "other")
        key = "tenant/acme/view"
        await commit(one, ann, key, b"one")
        assert (await shadow(one, bob, b"maybe", 1, key=key)).object.version == 1
        refused = await shadow(one, ann, b"also", 1, key=key)
        assert (refused.is_conflict, refused.object.writer, refused.object.is_shadow) == (True, "bob", True)
        assert (await shadow(one, ann, b"maybe so", 1, 1, key=key)).object.version == 2
        assert (await get(one, other, key, reads_shadow=True)).value == b"one"
        assert (await get(one, bob, key)).value == b"one"
        seen = await get(one, bob, key, reads_shadow=True)
        assert (seen.value, seen.is_shadow, seen.base_version) == (b"maybe so", True, 1)
        promoted = await promote(one, ann, key)
        assert (promoted.is_conflict, promoted.object.version) == (False, 2)
        found = await get(one, other, key, reads_shadow=True)
        assert (found.value, found.is_shadow) == (b"maybe so", False)
        assert (await refusal(promote(one, ann, key))).code() is CODES.NOT_FOUND


async def test_what_changed_meanwhile_is_not_promoted_over(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        ann, other = await token_of(one), await token_of(one, "other")
        key = "mesh/rates"
        await commit(one, ann, key, b"one")
        await shadow(one, ann, b"mine", 1, key=key)
        await commit(one, other, key, b"theirs", 1)
        refused = await promote(one, ann, key)
        assert (refused.conflict, refused.object.version) == (pb.STATE_CONFLICT_VERSION, 2)
        assert (await get(one, ann, key, reads_shadow=True)).value == b"mine"  # it stays, to be looked at
        await shadow(one, ann, b"mine and theirs", 2, 1, key=key)
        assert (await promote(one, ann, key, commit_id="p")).object.version == 3
        assert (await promote(one, ann, key, commit_id="p")).object.version == 3
        await shadow(one, ann, b"no", 3, key=key)
        assert (await one.state.DropShadow(pb.DropShadowRequest(token=ann, key=key))).is_dropped
        assert not (await one.state.DropShadow(pb.DropShadowRequest(token=ann, key=key))).is_dropped
        assert (await get(one, ann, key, reads_shadow=True)).value == b"mine and theirs"


async def test_it_expires_with_the_workflow(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        await commit(one, await token_of(one), value=b"short-term")
        await shadow(one, await token_of(one), b"maybe", key="mesh/x")
        await commit(one, await token_of(one), "agent/./x", b"long-term")
        one.ahead_s += 86_400 + 3600
        token = await token_of(one)
        assert (await get(one, token)).version == 0
        assert not (await get(one, token, "mesh/x", reads_shadow=True)).is_shadow
        assert (await get(one, token, "agent/./x")).value == b"long-term"


async def test_who_acts_in_no_workflow_has_no_short_term_memory(tmp_path: Path) -> None:
    from meshd_sdk.context import Context

    async with house(tmp_path, POLICY) as one:
        token = one.mesh.issue(Context("", "ann", account="unattributed/ann/2026-01-01"), "").decode()
        assert (await refusal(commit(one, token))).code() is CODES.INVALID_ARGUMENT
        assert (await refusal(shadow(one, token, b"", key="mesh/x"))).code() is CODES.PERMISSION_DENIED
        assert (await commit(one, token, "agent/./x", b"mine")).object.version == 1


# ------------------------------------------------------------------ references


async def test_references_travel_and_are_handed_within_their_scope(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        made = await one.state.Remember(
            pb.RememberRequest(
                token=token,
                references=["mesh://state/workflow/./plan@3", "mesh://state/agent/./habits@0", "mesh://state/mesh/r@1"],
            )
        )
        held = ["mesh://state/workflow/w/plan@3", "mesh://state/agent/ann/habits@0", "mesh://state/mesh/r@1"]
        assert list(made.context.memory) == held
        again = (await one.contexts.Read(context_pb2.ReadRequest(token=made.context.token))).context
        assert list(again.memory) == held
        # As a sidecar hands the context on to bob: what is ann's own is not among it.
        theirs = one.mesh.issue(one.mesh.read(made.context.token), "bob").decode()
        read = (await one.contexts.Read(context_pb2.ReadRequest(token=theirs))).context
        assert list(read.memory) == [held[0], held[2]]
        kept = context_pb2.NarrowRequest(token=made.context.token, memory=held[:1], keeps_memory_listed=True)
        assert list((await one.contexts.Narrow(kept)).context.memory) == held[:1]


async def test_who_may_not_read_the_mesh_is_handed_no_reference_to_it(tmp_path: Path) -> None:
    policy = POLICY.replace("state: {", 'state: {mesh_readers: ["ann"], ')
    async with house(tmp_path, policy) as one:
        held = ["mesh://state/workflow/w/plan@3", "mesh://state/tenant/acme/q@1", "mesh://state/mesh/merger@1"]
        made = await one.state.Remember(pb.RememberRequest(token=await token_of(one), references=held))
        assert list(made.context.memory) == held
        theirs = one.mesh.issue(one.mesh.read(made.context.token), "bob").decode()
        read = (await one.contexts.Read(context_pb2.ReadRequest(token=theirs))).context
        assert list(read.memory) == held[:2]


async def test_more_references_than_a_token_holds(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        long = [f"mesh://state/mesh/{'k' * 60}{number}@1" for number in range(8)]
        error = await refusal(one.state.Remember(pb.RememberRequest(token=token, references=long)))
        assert error.code() is CODES.RESOURCE_EXHAUSTED
        assert "keep them in one object" in error.details()
        for wrong in ([], ["mesh://state/mesh/x"], ["x"], ["mesh://state/../x@1"], long * 3):
            error = await refusal(one.state.Remember(pb.RememberRequest(token=token, references=wrong)))
            assert error.code() is CODES.INVALID_ARGUMENT


# ------------------------------------------------------------------ watching


async def test_a_watch_is_told_of_changes(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        watch = one.state.WatchState(pb.WatchStateRequest(token=token, key=PLAN))
        await commit(one, token, value=b"one")
        first = (await watch.read()).object
        assert (first.version, first.value) == (1, b"one")
        await commit(one, token, value=b"two", base=1)
        assert (await watch.read()).object.value == b"two"
        await one.state.DeleteState(pb.DeleteStateRequest(token=token, key=PLAN, base_version=2))
        gone = (await watch.read()).object
        assert (gone.version, gone.is_deleted, gone.writer) == (3, True, "ann")
        later = one.state.WatchState(pb.WatchStateRequest(token=token, key=PLAN, known_version=3))
        await commit(one, token, value=b"anew")
        assert (await later.read()).object.version == 4
        watch.cancel()
        later.cancel()
        assert one.mesh.state is not None
        watching = one.mesh.state.watching
        await until(lambda: watching.count == 0)


async def test_a_watch_is_told_of_what_begins_anew(tmp_path: Path) -> None:
    """What has expired and was swept begins with version 1 again: less than the watch knew."""
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        for base in range(3):
            await commit(one, token, value=b"old", base=base)
        watch = one.state.WatchState(pb.WatchStateRequest(token=token, key=PLAN))
        assert (await watch.read()).object.version == 3
        assert one.mesh.state is not None
        await one.mesh.state.objects.forget(Place(OBJECTS, "workflow/w/plan"))
        await commit(one, token, value=b"anew")
        found = (await watch.read()).object
        assert (found.version, found.value) == (1, b"anew")
        watch.cancel()


# ------------------------------------------------------------------ bad input, and a store that is away


@pytest.mark.parametrize(
    ("method", "body", "words"),
    [
        ("GetState", {"key": ""}, "key must be"),
        ("GetState", {"key": "../../x"}, "key must be"),
        ("GetState", {"key": "k" * 10_000}, "255"),
        ("GetState", {"key": "mesh/x", "version": str(2**64 - 1)}, "version must be"),
        ("GetState", {"key": "mesh://state/mesh/x@1", "version": "2"}, "version must be"),
        ("Commit", {"key": "mesh://state/mesh/x@1"}, "key must be a key"),
        ("Commit", {"key": "mesh/x", "contentType": "a\nb"}, "content_type"),
        ("Commit", {"key": "mesh/x", "contentType": "a" * 200}, "content_type"),
        ("Commit", {"key": "mesh/x", "commitId": "c" * 65}, "commit_id"),
        ("Commit", {"key": "mesh/x", "leaseId": "l\u00e9"}, "lease_id"),
        ("Checkout", {"key": "mesh/x"}, "lease_id"),
        ("Checkout", {"key": "mesh/x", "leaseId": "l", "lease": "0.5s"}, "lease must be"),
        ("Checkout", {"key": "mesh/x", "leaseId": "l", "lease": "7200s"}, "lease must be"),
        ("Release", {"key": "mesh/x"}, "lease_id"),
        ("DeleteState", {"key": "mesh/x"}, "base_version"),
        ("WriteShadow", {"key": "mesh/x", "shadowVersion": str(2**60)}, "shadow_version"),
    ],
)  # fmt: skip
async def test_nonsense_is_refused_by_its_field(tmp_path: Path, method: str, body: Any, words: str) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        status, said = await one.ask(f"StateService/{method}", body | {"token": token})
        assert (status, said["code"]) == (400, "invalid_argument")
        assert words in said["message"]
        assert await one.mesh.ledger.store().keys("state") == []  # type: ignore[union-attr]


async def test_a_value_that_is_too_long_and_a_token_that_is_none(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        assert (await commit(one, token, value=b"x" * 100_000)).object.size == 100_000
        error = await refusal(commit(one, token, value=b"x" * 100_001, base=1))
        assert error.code() is CODES.RESOURCE_EXHAUSTED
        assert "state.value_max" in error.details()
        for method, request in [("Commit", pb.CommitRequest), ("GetState", pb.GetStateRequest)]:
            for wrong in ("", "junk", token[:-1]):
                error = await refusal(getattr(one.state, method)(request(token=wrong, key=PLAN)))
                assert error.code() is CODES.UNAUTHENTICATED


async def test_after_the_deadline_nothing_is_written(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = (await one.open("w", timeout=Duration(seconds=50))).token
        await commit(one, token, value=b"one")
        one.ahead_s += 60
        assert (await refusal(commit(one, token, value=b"two", base=1))).code() is CODES.DEADLINE_EXCEEDED
        assert (await get(one, token)).value == b"one"


async def test_a_store_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        await commit(one, token, value=b"one")
        store: Any = one.mesh.ledger.store()
        store.fault = StoreError("the store is away")
        for way in (commit(one, token, base=1), get(one, token), check_out(one, token, "l"), promote(one, token)):
            error = await refusal(way)
            assert error.code() is CODES.UNAVAILABLE
            assert "the store is away" in error.details()
        store.fault = None
        assert (await get(one, token)).value == b"one"


async def test_as_json(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        value = base64.b64encode(b"\xff\x00").decode()
        status, said = await one.ask("StateService/Commit", {"token": token, "key": PLAN, "value": value})
        assert (status, said["object"]["version"], said["object"]["writer"]) == (200, "1", "ann")
        status, said = await one.ask("StateService/GetState", {"token": token, "key": PLAN})
        assert (status, said["object"]["value"]) == (200, value)
        status, said = await one.ask("StateService/Commit", {"token": token, "key": PLAN})
        assert (said["isConflict"], said["conflict"]) == (True, "STATE_CONFLICT_VERSION")


async def test_what_was_done_is_counted(tmp_path: Path) -> None:
    from meshd.api.state_start import start_state

    async with house(tmp_path, POLICY) as one:
        sweeping = start_state(one.mesh)
        token = await token_of(one)
        await commit(one, token, value=b"one")
        await commit(one, token, value=b"two")
        counts = one.mesh.telemetry.sources.state
        assert counts is not None
        assert dict(counts()) == {("commit", "done"): 1, ("commit", "version"): 1}
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


# ------------------------------------------------------------------ two sidecars


@asynccontextmanager
async def two_sidecars(tmp_path: Path, engine: str) -> AsyncIterator[tuple[House, House]]:
    """Two sidecars on one store, with one mesh key."""
    async with place_of(engine, tmp_path) as place:
        made: list[House] = []
        for name in ("one", "other"):
            home = tmp_path / name
            home.mkdir()
            if made:
                (home / "mesh.key").write_bytes((made[0].home / "mesh.key").read_bytes())
                (home / "mesh.key").chmod(0o600)
            made.append(House(home))
            await made[-1].build(POLICY, await Ledger.open(home, store=await place.open()))
        try:
            yield made[0], made[1]
        finally:
            for one in made:
                await one.close()


@pytest.mark.parametrize("engine", ["redis", "nats", "postgres"])
async def test_two_sidecars_share_it_and_their_clocks_tell_what_came_first(tmp_path: Path, engine: str) -> None:
    async with two_sidecars(tmp_path, engine) as (one, other):
        ann, bob = await token_of(one), await token_of(other, agent="bob")
        key = "workflow/w/risk"
        watch = other.state.WatchState(pb.WatchStateRequest(token=bob, key="tenant/acme/seen"))
        first = (await commit(one, ann, key, b"one")).object
        # Bob's sidecar knows nothing of it yet.
        refused = await commit(other, bob, key, b"blind")
        assert (refused.object.writer, refused.order) == ("ann", pb.CLOCK_ORDER_BEFORE)
        await get(other, bob, key)
        second = (await commit(other, bob, key, b"two", 1)).object
        assert dict(second.clock).keys() > dict(first.clock).keys()
        assert (await commit(one, ann, key, b"stale", 1)).order == pb.CLOCK_ORDER_BEFORE
        await commit(one, ann, "workflow/w/mine", b"meanwhile")
        assert (await commit(one, ann, key, b"stale", 1)).order == pb.CLOCK_ORDER_CONCURRENT
        await get(one, ann, key)
        assert (await commit(one, ann, key, b"stale", 1)).order == pb.CLOCK_ORDER_AFTER
        assert (await check_out(one, ann, "a", key)).lease_id == "a"
        assert (await check_out(other, bob, "b", key)).lease.agent == "ann"
        await commit(one, ann, "tenant/acme/seen", b"by the other")
        assert (await watch.read()).object.value == b"by the other"
        watch.cancel()
