"""Logs for tests: small segments, a clock that is handed in, and events of every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshd.call import Call, Direction, Kind, Target
from meshd.trace import kinds
from meshd.trace.opening import DIRECTORY, open_trace
from meshd.trace.reading import Reader, Segment, open_segment
from meshd.trace.recorder import Recorder
from meshd_sdk.context import Context

SEGMENT_BYTES = 4096
BOOT = "5ad0a4b6-0000-4000-8000-000000000001"
OTHER_BOOT = "5ad0a4b6-0000-4000-8000-000000000002"


class Wall:
    """A clock of the wall that a test moves."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def opened(home: Path, *, boot: str = BOOT, **more: Any) -> Recorder:
    given: dict[str, Any] = {"wall_clock": Wall(), "segment_bytes": SEGMENT_BYTES, "boot": lambda: boot}
    given = given | {"keep_s": 1e9} | more
    return open_trace(home, **given)


def filled(home: Path, count: int, *, workflow: str = "w", **more: Any) -> Recorder:
    """Open a log and write `count` events into it."""
    recorder = opened(home, **more)
    for number in range(count):
        assert recorder.note(kinds.STATE, workflow, (f"key-{number}", number, "put" * (number % 7)), agent="ann")
    return recorder


def gathered(recorder: Recorder, count: int, *, workflow: str = "w") -> list[int]:
    """Write `count` events as calls do in one turn of the loop, as one record; return their sequences."""
    recorder.log.is_gathering = True
    found = []
    for number in range(count):
        call = Call(f"call-{number}", Direction.OUTBOUND, "POST", "/", "", [], 0.0, recorder.wall_clock())
        call.context = Context(workflow if number % 3 else f"{workflow}-{number}", "ann")
        call.target = Target(Kind.LLM, "llm", "m" * (number % 5))
        recorder.answered(call, 200)
        found.append(call.event)
    recorder.log.is_gathering = False
    recorder.log.commit()
    return found


def killed(recorder: Recorder) -> None:
    """Let go of a log as a killed process does: nothing is synced, cut or said."""
    release, recorder.release = recorder.release, None
    assert release is not None
    release()


def reader(home: Path) -> Reader:
    return Reader(home / DIRECTORY)


def frames_in(path: Path) -> list[int]:
    """Return where each whole record of a segment is."""
    segment = open_segment(path)
    assert isinstance(segment, Segment)
    found = [frame.at for frame in segment.frames()]
    segment.close()
    return found
