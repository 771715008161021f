"""Who asks for which object, and whether they may: what every request of StateService begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.api.fields import checked_id, malformed
from meshd.api.state_noting import Noting
from meshd.api.state_start import keeping_of
from meshd.filters.minting import mesh_terms
from meshd.policy.model_state import StateSection
from meshd.refusal import Reason, Refused
from meshd.state.access import Act, denied
from meshd.state.deciding import Keep
from meshd.state.keys import PREFIX, VERSION_MAX, Key, KeyMalformed, Who, key_of, reference_of
from meshd.state.objects import ends_of, place_of, shadow_of
from meshd.state.record import Version

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.state.keeping import Keeping
    from meshd.state.objects import Place
    from meshd_sdk.context import Context

CONTENT_TYPE_CHARACTERS_MAX: Final = 127


class Asked(NamedTuple):
    """Who asks for which object."""

    context: Context
    who: Who
    key: Key
    settings: StateSection

    @property
    def place(self) -> Place:
        """Where the object lies."""
        return place_of(self.key)

    @property
    def shadow(self) -> Place:
        """Where tentative versions of it lie. Raises Refused(NOT_ALLOWED) for who acts in no workflow."""
        if not self.who.workflow:
            raise Refused(
                Reason.NOT_ALLOWED,
                "Tentative versions belong to a workflow, and this context to none: act in that of a call or an event, "
                "or open one.",
            )
        return shadow_of(self.key, self.who.workflow)

    @property
    def keep(self) -> Keep:
        """How much history is kept."""
        return Keep(self.settings.history, self.settings.history_max)


class Judging:
    """See the module. Every method raises Refused."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def _noting(self, act: str) -> Noting:
        """Return what writes down an operation."""
        return Noting(self._mesh, act)

    @property
    def _state(self) -> Keeping:
        return keeping_of(self._mesh)

    def _who(self, context: Context) -> Who:
        return Who(context.agent, context.workflow, self._mesh.policy.tenant)

    def _asked(self, noting: Noting, token: str, text: str, act: Act) -> Asked:
        context = self._mesh.read(token)
        noting.asked(context, text)
        who = self._who(context)
        try:
            key = reference_of(text, who).key if text.startswith(PREFIX) else key_of(text, who)
        except KeyMalformed as error:
            raise malformed("key", str(error)) from None
        noting.asked(context, str(key))
        self._check(key, act, who)
        return Asked(context, who, key, self._settings)

    def _writer(self, noting: Noting, token: str, text: str) -> Asked:
        if text.startswith(PREFIX):
            raise malformed("key", "a key: a reference names a version that is there already")
        asked = self._asked(noting, token, text, Act.WRITE)
        self._check_time(asked.context)
        return asked

    @property
    def _settings(self) -> StateSection:
        return self._mesh.policy.state or StateSection()

    def _check(self, key: Key, act: Act, who: Who) -> None:
        why = denied(key, act, who, mesh_terms(self._mesh.policy))
        if why:
            raise Refused(Reason.NOT_ALLOWED, f"{who.agent} may not {act.value} {key}: {why}.")

    def _check_time(self, context: Context) -> None:
        if context.deadline_s is not None and context.deadline_s <= self._mesh.wall_clock():
            raise Refused(Reason.DEADLINE, f"The time of workflow {context.workflow} is over: nothing more is written.")

    @staticmethod
    def _number(field: str, number: int) -> int:
        if number >= VERSION_MAX:
            raise malformed(field, f"a version below {VERSION_MAX}")
        return number

    @staticmethod
    def _lease_id(id: str) -> str:
        return checked_id("lease_id", id) if id else ""

    def _ends_s(self, asked: Asked, key: Key | None) -> float:
        return ends_of(key, asked.context.deadline_s, self._state.objects.clock())

    def _draft(
        self, asked: Asked, content_type: str, commit_id: str, size: int, *, base: int = 0, is_deleted: bool = False
    ) -> Version:
        if size > asked.settings.value_max:
            raise Refused(
                Reason.TOO_LARGE,
                f"The value has {size} bytes, and state.value_max allows {asked.settings.value_max}: keep it where "
                "large things are kept, and its address here.",
            )
        if len(content_type) > CONTENT_TYPE_CHARACTERS_MAX or not all(" " <= one <= "~" for one in content_type):
            raise malformed("content_type", f"at most {CONTENT_TYPE_CHARACTERS_MAX} visible ASCII characters")
        who, now_s = asked.who, self._state.objects.clock()
        commit = checked_id("commit_id", commit_id) if commit_id else ""
        return Version(
            0, size, who.agent, who.workflow, now_s, content_type, commit=commit, is_deleted=is_deleted, base=base
        )
