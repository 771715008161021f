"""What shared state is, without a store: the whole of it in a dict, one thing at a time. The model of the tests."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Thing:
    last: int = 0
    versions: list[tuple[int, bytes, str]] = dataclasses.field(default_factory=list)
    """Number, value and commit id, oldest first; none where there is no such object."""
    lease: tuple[str, float] | None = None
    deletion: tuple[int, str] | None = None


class Model:
    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.things: dict[str, Thing] = {}

    def _at(self, key: str, now_s: float) -> Thing:
        thing = self.things.setdefault(key, Thing())
        if thing.lease is not None and now_s >= thing.lease[1]:
            thing.lease = None
        return thing

    def commit(
        self, key: str, value: bytes | None, base: int, lease_id: str, commit_id: str, now_s: float
    ) -> tuple[str, int]:
        """Return what became of it, and the version that is there."""
        thing = self._at(key, now_s)
        current = thing.versions[-1][0] if thing.versions else 0
        for number, kept, id in thing.versions:
            if commit_id and (kept, id) == (value, commit_id) and number > base:
                return "done", number
        gone = thing.deletion if value is None else None
        if commit_id and gone is not None and gone[1] == commit_id and gone[0] > base:
            return "done", gone[0]
        if lease_id and (thing.lease is None or thing.lease[0] != lease_id):
            return "lease_lost", current
        if not lease_id and thing.lease is not None:
            return "lease_held", current
        if base != current:
            return "version", current
        thing.last += 1
        thing.lease = None
        if value is None:
            thing.versions, thing.deletion = [], (thing.last, commit_id)
        else:
            thing.deletion = None
            thing.versions = [*thing.versions, (thing.last, value, commit_id)][-self.keep :]
        return "done", thing.last

    def check_out(self, key: str, lease_id: str, until_s: float, now_s: float) -> str:
        """Return whose lease it is now."""
        thing = self._at(key, now_s)
        if thing.lease is None or thing.lease[0] == lease_id:
            thing.lease = (lease_id, until_s)
        return thing.lease[0]

    def release(self, key: str, lease_id: str, now_s: float) -> bool:
        thing = self._at(key, now_s)
        if thing.lease is None or thing.lease[0] != lease_id:
            return False
        thing.lease = None
        return True

    def history(self, key: str) -> list[tuple[int, bytes]]:
        return [(number, value) for number, value, _ in reversed(self.things.get(key, Thing()).versions)]
