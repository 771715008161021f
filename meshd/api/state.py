"""StateService: versioned objects that agents share, judged by scope, kept in the store."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from msgspec import structs

from meshd.api.fields import checked_id, malformed, seconds
from meshd.api.fields import shown as shown_context
from meshd.api.state_messages import CAUSES, ORDERS, lease_of, shown
from meshd.api.state_watching import StateWatch
from meshd.refusal import Reason, Refused
from meshd.state.access import Act
from meshd.state.deciding import LEASE_S, LEASE_S_MAX, LEASE_S_MIN, Conflict
from meshd.state.keys import PREFIX, KeyMalformed, reference_of
from meshd.state.objects import Place, Wish, shadow_of
from meshd.state.record import Lease, Version
from meshd_sdk.v1 import state_pb2 as pb

if TYPE_CHECKING:
    from meshd.api.state_judging import Asked
    from meshd.api.state_noting import Noting

REFERENCES_MAX: Final = 16
"""Of one request; of one context as many as fit into its token."""


class StateService(StateWatch):
    """Answers for meshd.v1.StateService. Every method raises Refused: CONTEXT_INVALID, MALFORMED, NOT_ALLOWED,
    STORE_UNAVAILABLE; those that write DEADLINE and TOO_LARGE too."""

    # ------------------------------------------------------------------ reading

    async def get_state(self, request: pb.GetStateRequest) -> pb.GetStateResponse:
        """Read the newest version or a given one."""
        with self._noting("get") as noting:
            asked = self._asked(noting, request.token, request.key, Act.READ)
            number = self._number("version", request.version)
            if request.key.startswith(PREFIX):
                named = reference_of(request.key, asked.who).version
                if number not in (0, named):
                    raise malformed("version", "that of the reference, or 0")
                number = named
            state = self._state
            found, is_shadow = None, False
            if request.reads_shadow and not number and asked.who.workflow:
                found = await state.shadows.get(asked.shadow, asked.place)
                is_shadow = found is not None
            if found is None:
                found = await state.objects.get(asked.place, number)
            result = "found" if found is not None else "absent"
            state.count("get", result)
            noting.read(found[0] if found is not None else None, result)
            if found is None:
                return pb.GetStateResponse(object=shown(str(asked.key), None))
            state.knowing.read(asked.who.workflow, found[0])
            return pb.GetStateResponse(object=shown(str(asked.key), *found, is_shadow=is_shadow))

    async def history(self, request: pb.HistoryRequest) -> pb.HistoryResponse:
        """List the versions that are kept."""
        with self._noting("history") as noting:
            asked = self._asked(noting, request.token, request.key, Act.READ)
            head = await self._state.objects.living(asked.place)
            result = "found" if head.versions else "absent"
            self._state.count("history", result)
            noting.read(head.versions[0] if head.versions else None, result)
            return pb.HistoryResponse(
                versions=[shown(str(asked.key), one) for one in head.versions], lease=lease_of(head.lease)
            )

    # ------------------------------------------------------------------ writing

    async def commit(self, request: pb.CommitRequest) -> pb.CommitResponse:
        """Write the next version."""
        with self._noting("commit") as noting:
            asked = self._writer(noting, request.token, request.key)
            base = self._number("base_version", request.base_version)
            draft = self._draft(asked, request.content_type, request.commit_id, len(request.value))
            wish = Wish(draft, request.value, base, self._lease_id(request.lease_id))
            return await self._committed(noting, asked, asked.place, wish)

    async def delete_state(self, request: pb.DeleteStateRequest) -> pb.DeleteStateResponse:
        """Delete an object."""
        with self._noting("delete") as noting:
            asked = self._writer(noting, request.token, request.key)
            base = self._number("base_version", request.base_version)
            if not base:
                raise malformed("base_version", "the version that is to be deleted")
            draft = self._draft(asked, "", request.commit_id, 0, is_deleted=True)
            wish = Wish(draft, b"", base, self._lease_id(request.lease_id))
            return pb.DeleteStateResponse(commit=await self._committed(noting, asked, asked.place, wish))

    async def checkout(self, request: pb.CheckoutRequest) -> pb.CheckoutResponse:
        """Read an object, and take a lease on its next version."""
        with self._noting("checkout") as noting:
            asked = self._writer(noting, request.token, request.key)
            id = checked_id("lease_id", request.lease_id)
            lasts_s = seconds("lease", request.lease) if request.HasField("lease") else LEASE_S
            if not LEASE_S_MIN <= lasts_s <= LEASE_S_MAX:
                raise malformed("lease", f"from {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds")
            state, key = self._state, str(asked.key)
            wanted = Lease(id, asked.who.agent, asked.who.workflow, state.objects.clock() + lasts_s)
            head, lease = await state.objects.check_out(asked.place, wanted, self._ends_s(asked, asked.key))
            newest = head.newest
            value = await state.objects.value(asked.place, newest) if newest is not None else b""
            if newest is not None and value is None:
                # Its pieces went between the two: only whoever writes without a lease is that quick.
                newest, value = await state.objects.get(asked.place) or (None, b"")
            if newest is not None:
                state.knowing.read(asked.who.workflow, newest)
            is_own = lease is wanted
            result = "done" if is_own else "lease_held"
            state.count("checkout", result)
            noting.read(newest, result)
            return pb.CheckoutResponse(
                object=shown(key, newest, value or b""), lease_id=id if is_own else "", lease=lease_of(lease)
            )

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        """Give a lease back."""
        with self._noting("release") as noting:
            asked = self._asked(noting, request.token, request.key, Act.WRITE)
            id = checked_id("lease_id", request.lease_id)
            lease = Lease(id, asked.who.agent, asked.who.workflow, 0.0)
            is_released = await self._state.objects.release(asked.place, lease)
            result = "done" if is_released else "lease_lost"
            self._state.count("release", result)
            noting.wrote(0, result)
            return pb.ReleaseResponse(is_released=is_released)

    # ------------------------------------------------------------------ tentative versions

    async def write_shadow(self, request: pb.WriteShadowRequest) -> pb.WriteShadowResponse:
        """Write a tentative version. Whoever may read the object may: what it becomes is judged when it is promoted."""
        with self._noting("shadow") as noting:
            asked = self._asked(noting, request.token, request.key, Act.READ)
            self._check_time(asked.context)
            place, base = asked.shadow, self._number("base_version", request.base_version)
            draft = self._draft(asked, request.content_type, request.commit_id, len(request.value), base=base)
            wish = Wish(draft, request.value, self._number("shadow_version", request.shadow_version))
            await self._state.shadows.clear(place, asked.place)
            return pb.WriteShadowResponse(commit=await self._committed(noting, asked, place, wish))

    async def promote(self, request: pb.PromoteRequest) -> pb.PromoteResponse:
        """Make a tentative version the object's next one. Raises Refused(UNKNOWN_TARGET) where there is none."""
        with self._noting("promote") as noting:
            asked = self._writer(noting, request.token, request.key)
            number = self._number("shadow_version", request.shadow_version)
            commit_id = checked_id("commit_id", request.commit_id) if request.commit_id else ""
            before = await self._promoted(asked, number, commit_id)
            if before is not None:
                noting.wrote(before.number, "done")
                return pb.PromoteResponse(commit=pb.CommitResponse(object=shown(str(asked.key), before)))
            found = await self._state.objects.get(asked.shadow, number)
            if found is None:
                raise Refused(
                    Reason.UNKNOWN_TARGET,
                    f"This workflow has no tentative version of {asked.key}: it was promoted or dropped, it has "
                    "expired, or none was written.",
                )
            shadow, value = found
            # Without an id of the caller's it has one all the same: promoted twice, it becomes one version.
            told = f"{asked.who.workflow}\n{shadow.number}\n{shadow.written_s}\n{shadow.checksum}"
            commit_id = commit_id or sha256(told.encode()).hexdigest()[:32]
            draft = self._draft(asked, shadow.content_type, commit_id, len(value))
            wish = Wish(draft, value, shadow.base, self._lease_id(request.lease_id))
            shadows = self._state.shadows
            await shadows.begin(asked.shadow, shadow, commit_id)
            made = await self._committed(noting, asked, asked.place, wish)
            if made.is_conflict:
                await shadows.give_up(asked.shadow, shadow, commit_id)
            else:
                await shadows.drop(asked.shadow, shadow)
            return pb.PromoteResponse(commit=made)

    async def _promoted(self, asked: Asked, number: int, commit_id: str) -> Version | None:
        """Return the version that an earlier request has made: of the same id, or for the same tentative version,
        which a crash kept from being dropped."""
        tentative = (await self._state.objects.living(asked.shadow)).newest
        before = await self._state.shadows.clear(asked.shadow, asked.place)
        if before is not None and tentative is not None and number in (0, tentative.number):
            return before
        versions = (await self._state.objects.living(asked.place)).versions if commit_id else ()
        who = asked.who
        made = (one for one in versions if one.commit == commit_id)
        return next((one for one in made if (one.writer, one.workflow) == (who.agent, who.workflow)), None)

    async def drop_shadow(self, request: pb.DropShadowRequest) -> pb.DropShadowResponse:
        """Drop tentative versions."""
        with self._noting("drop") as noting:
            asked = self._asked(noting, request.token, request.key, Act.READ)
            is_dropped = await self._state.objects.forget(asked.shadow)
            result = "done" if is_dropped else "absent"
            self._state.count("drop", result)
            noting.wrote(0, result)
            return pb.DropShadowResponse(is_dropped=is_dropped)

    # ------------------------------------------------------------------ references

    async def remember(self, request: pb.RememberRequest) -> pb.RememberResponse:
        """Return a context with these references added. Raises Refused(TOO_LARGE) where they do not fit in."""
        context = self._mesh.read(request.token)
        who = self._who(context)
        if not 0 < len(request.references) <= REFERENCES_MAX:
            raise malformed("references", f"1 to {REFERENCES_MAX} references")
        found = []
        for number, text in enumerate(request.references):
            try:
                one = reference_of(text, who)
            except KeyMalformed as error:
                raise malformed(f"references[{number}]", str(error)) from None
            self._check(one.key, Act.READ, who)
            found.append(str(one))
        memory = tuple(dict.fromkeys((*context.memory, *found)))
        context = replace(context, memory=memory)
        try:
            token = self._mesh.issue(context, "")
        except Refused as refused:
            if refused.reason is not Reason.HOP_LIMIT:
                raise
            raise Refused(
                Reason.TOO_LARGE,
                f"{len(memory)} references do not fit into a context token: keep them in one object, and hand on the "
                "reference to that.",
            ) from refused
        return pb.RememberResponse(context=shown_context(context, token))

    async def _committed(self, noting: Noting, asked: Asked, place: Place, wish: Wish) -> pb.CommitResponse:
        state, key, workflow = self._state, str(asked.key), asked.who.workflow
        state.objects.check()  # without a store nobody knows this sidecar's name in clocks
        is_shadow = place == shadow_of(asked.key, workflow)
        clock, told = state.knowing.next(workflow), await noting.writing(wish.base, wish.value)
        wish = wish._replace(draft=structs.replace(wish.draft, clock=clock.encode(), told=told))
        ends_s = self._ends_s(asked, None if is_shadow else asked.key)
        found = await state.objects.commit(place, wish, asked.keep, ends_s)
        if isinstance(found, Conflict):
            current = found.current
            number = current.number if current is not None else 0
            state.count(noting.act, found.cause.value)
            noting.wrote(number, found.cause.value, current=current)
            return pb.CommitResponse(
                object=shown(key, current, is_shadow=is_shadow),
                is_conflict=True,
                order=ORDERS[state.knowing.order(workflow, current)] if current is not None else ORDERS[None],
                conflict=CAUSES[found.cause],
                lease=lease_of(found.lease),
            )
        state.knowing.read(workflow, found)
        state.count(noting.act, "done")
        noting.wrote(found.number, "done", wish.value)
        return pb.CommitResponse(object=shown(key, found, is_shadow=is_shadow))
