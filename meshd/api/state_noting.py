"""One operation on shared state, from its beginning to its end, as it is written into the trace, and as a span.

The span names the operation's first record by `meshd.event`, and the records have the span: one leads to the other.
That a version is to be written stands there before the store is asked, as a call does before it goes out; the version
takes that record's clock along, so that whoever reads it, at whichever sidecar, is known to follow from it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from meshd.api.failing import refused_by
from meshd.api.session_contexts import actor_of
from meshd.engines.port import StoreError
from meshd.refusal import Refused
from meshd.telemetry import names, redact
from meshd.telemetry.entries import Place, Told, tell, trace_of
from meshd.trace import acts
from meshd.trace.acts import Actor
from meshd.trace.record import callers
from meshd_sdk.context import parent_bytes

if TYPE_CHECKING:
    from types import TracebackType

    from meshd.api.mesh import Mesh
    from meshd.state.record import Version
    from meshd.trace.knowledge import Told as Heard
    from meshd.trace.recorder import Recorder
    from meshd_sdk.context import Context

STATE: Final = "state"
"""Stands for the kind of a target where a refusal is written down."""
WATCH: Final = "watch"
"""Has no span: it lasts for as long as somebody listens."""
_NOWHERE: Final = Actor("", "")


class Noting:
    """Use it as a context manager: what leaves it as an error was refused."""

    __slots__ = (
        "_actor", "_began_s", "_event", "_found", "_key", "_mesh", "_noted", "_place", "_span", "_workflow", "act",
    )  # fmt: skip

    def __init__(self, mesh: Mesh, act: str) -> None:
        self._mesh = mesh
        self.act = act
        self._actor = _NOWHERE
        self._workflow = ""
        self._key = ""
        self._noted = 0
        """The record of what is to be written; 0 for none."""
        self._event = 0
        """The first record; 0 for none."""
        self._found: dict[str, Any] = {}
        """What the span says of how it ended."""
        self._place: Place | None = None
        """Of the span; None where it is not known who asks, or spans go nowhere."""
        self._span = b""
        self._began_s = mesh.wall_clock()

    def asked(self, context: Context, key: str) -> None:
        """It is known who asks, and for what."""
        self._actor, self._workflow, self._key = actor_of(context), context.workflow, key
        tracer = self._mesh.telemetry.tracer
        if not tracer.has_sink or self.act == WATCH:
            # No span is added here: what is written down stands in that of the caller.
            self._span = callers(parent_bytes(context.parent))
        elif self._place is None:
            root = trace_of(self._actor.workflow, context.parent, tracer.ratio)
            place = self._place = Place(root.trace_id, random.getrandbits(64) or 1, root.span_id, root.is_sampled)
            self._span = place.as_bytes if place.is_sampled or context.parent else b""

    async def writing(self, base: int, value: bytes) -> bytes:
        """A version is to be written: return the clock that goes with it. Raises Refused(STORE_UNAVAILABLE) where the
        trace must be written and cannot be."""
        trace = self._trace
        if trace is None:
            return b""
        self._noted = acts.writing(trace, self._actor, self.act, self._key, base, value, self._span)
        self._first(self._noted)
        await acts.on_disk(trace, self._noted)
        return trace.signed(self._workflow, self._noted) if self._noted else b""

    def wrote(self, version: int, result: str, value: bytes = b"", current: Version | None = None) -> None:
        """What became of it: `version` is there now. In place of what was to be written there may be another's,
        `current`."""
        self._found = {names.MESHD_STATE_VERSION: version, names.MESHD_STATE_RESULT: result}
        trace = self._trace
        if trace is None:
            return
        causes: tuple[int | str, ...] | None = (self._noted,) if self._noted else None
        if current is not None and causes is not None and (told := self._heard(trace, current)) is not None:
            causes = (*causes, told.event)
        digest = acts.digest_of(value)
        self._first(acts.state(trace, self._actor, self.act, self._key, version, result, causes, digest, self._span))

    def read(self, version: Version | None, result: str) -> None:
        """The agent is told of a version; of none where there is none."""
        number, writer = (version.number, version.writer) if version is not None else (0, "")
        self._found = {names.MESHD_STATE_VERSION: number, names.MESHD_STATE_RESULT: result}
        trace = self._trace
        if trace is None:
            return
        told = self._heard(trace, version) if version is not None else None
        self._first(acts.read(trace, self._actor, self.act, self._key, number, result, writer, told, self._span))

    def __enter__(self) -> Noting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trace, why = self._trace, None
        if isinstance(error, Refused | StoreError):
            why = refused_by(error, "The store failed")
            self._found = {names.ERROR_TYPE: why.reason.value}
        if trace is not None and why is not None:
            causes: tuple[int | str, ...] | None = (self._noted,) if self._noted else None
            # The span of what fails is kept, whatever was drawn for it.
            span = self._place.as_bytes if self._place is not None else self._span
            verb = self.act.upper()
            self._first(acts.refused(trace, self._actor, verb, STATE, self._key, why, causes, span))
        if self._place is not None and (error is None or why is not None):
            self._tell(self._place, is_error=why is not None)

    def _first(self, event: int) -> None:
        self._event = self._event or event

    def _tell(self, place: Place, *, is_error: bool) -> None:
        """Hand the span on, where it is kept."""
        trace, actor = self._trace, self._actor
        told: dict[str, Any] = {
            names.MESHD_WORKFLOW: self._workflow,
            names.MESHD_AGENT: actor.agent,
            names.MESHD_STATE_KEY: redact.text(self._key),
            names.MESHD_EVENT: f"{trace.prefix}{self._event}" if trace is not None and self._event else "",
        }
        found = {name: value for name, value in told.items() if value != ""} | self._found
        began_ns, ended_ns = int(self._began_s * 1e9), int(self._mesh.wall_clock() * 1e9)
        span = Told(names.STATE, f"{names.STATE} {self.act}", began_ns, ended_ns, is_error, found)
        tell(self._mesh.telemetry.tracer, span, place)

    @property
    def _trace(self) -> Recorder | None:
        return self._mesh.telemetry.provenance.trace

    def _heard(self, trace: Recorder, version: Version) -> Heard | None:
        """Take what came with a version: within its own workflow all that its writer knew is known from now on."""
        where = f"version {version.number} of {self._key}"
        return trace.heard(version.told, version.workflow, self._workflow, where)
