"""What becomes of an object, decided on its head alone. Pure: time is handed in, every outcome is a value."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from msgspec.structs import replace

from meshd.state.record import Head, Lease, Version, pieces_of

LEASE_S: Final = 60.0
LEASE_S_MIN: Final = 1.0
LEASE_S_MAX: Final = 3600.0
CLOCKS_S: Final = 300.0
"""By which sidecars' clocks may differ. A lease that has longer to run than the longest and this was taken by a clock
that is wrong, and would keep everybody out for as long as it is ahead: it is not in force, as its holder is told."""
EMPTY_S: Final = 3600.0
"""How long an object that was checked out and not made outlives the lease."""
EMPTY: Final = Head()


class Keep(NamedTuple):
    """How much history is kept beside the newest version."""

    versions: int = 16
    """The newest one included."""
    bytes: int = 8 * 2**20
    """Of all values together; the newest is kept, whatever its size."""


class Cause(str, Enum):
    """Why nothing is written."""

    VERSION = "version"
    LEASE_HELD = "lease_held"
    LEASE_LOST = "lease_lost"


class Conflict(NamedTuple):
    """Nothing is written."""

    cause: Cause
    current: Version | None
    """The newest version; None where there is no such object."""
    lease: Lease | None = None
    """Of whoever else has checked it out."""


class Done(NamedTuple):
    """It was written before, under the same id."""

    version: Version


def living(head: Head | None, now_s: float) -> Head:
    """Return the head without what time has taken from it: a lease that ran out, versions that expired."""
    if head is None:
        return EMPTY
    if head.ends_s and now_s >= head.ends_s:
        return Head(head.last, dropped=(*head.dropped, *pieces_of(head.versions)), ends_s=head.ends_s)
    if head.lease is not None and not now_s < head.lease.until_s <= now_s + LEASE_S_MAX + CLOCKS_S:
        return replace(head, lease=None)
    return head


def commit(
    head: Head | None,
    draft: Version,
    *,
    base: int,
    lease_id: str,
    now_s: float,
    keep: Keep,
    ends_s: float = 0.0,
) -> Head | Conflict | Done:
    """Return the head with `draft`, which has its value's size and checksum, as its next version; or why not.

    `base` is the version that it is made from, 0 for an object that is to be made. The lease is the fencing token: who
    shows one that is not in force any more writes nothing, although nobody else may have written meanwhile.
    """
    found = living(head, now_s)
    current = found.newest
    if draft.commit:
        for one in found.versions:
            if one.number > base and _is_same(one, draft):
                return Done(one)
    refused = _leased(found, lease_id, draft)
    if refused is not None:
        return refused
    if base != (current.number if current is not None else 0):
        return Conflict(Cause.VERSION, current)
    made = replace(draft, number=found.last + 1)
    before = found.versions if current is not None and not made.is_deleted else ()
    kept, gone = _trimmed((made, *before), keep)
    if not before:
        gone = (*gone, *found.versions)
    expired = found.dropped[len(head.dropped) :] if head is not None else ()
    return Head(made.number, kept, None, (*expired, *pieces_of(gone)), ends_s)


def check_out(head: Head | None, lease: Lease, *, now_s: float, ends_s: float = 0.0) -> Head | Lease:
    """Return the head with a lease on its next version; or the lease of another, which is in force.

    `ends_s` is when it may be forgotten then, 0 for when it would be anyway.
    """
    found = living(head, now_s)
    if found.lease is not None and _holder(found.lease) != _holder(lease):
        return found.lease
    if not found.last and not ends_s:
        ends_s = lease.until_s + EMPTY_S  # of an object that is never made nothing stays
    return replace(found, lease=lease, ends_s=ends_s or found.ends_s)


def release(head: Head | None, lease: Lease, now_s: float) -> Head | None:
    """Return the head without that lease; None where it is not in force."""
    found = living(head, now_s)
    if found.lease is None or _holder(found.lease) != _holder(lease):
        return None
    return replace(found, lease=None)


def promoted(shadow: Head, found: Head) -> Version | None:
    """Return the object's version that the newest tentative one has become; None where none is kept."""
    newest = shadow.newest
    if newest is None:
        return None
    made = (one for one in found.versions if one.commit and one.commit in shadow.promoting)
    return next((one for one in made if one.workflow == newest.workflow and _value(one) == _value(newest)), None)


def is_in_front(shadow: Head, found: Head) -> bool:
    """Say whether its workflow sees the newest tentative version before the object's.

    Not one that was promoted; and where it was to be, and the object has gone on so far that nobody can tell, not
    either: what is newer counts for more.
    """
    newest = shadow.newest
    if newest is None or not shadow.promoting:
        return newest is not None
    oldest = found.versions[-1].number if found.versions else found.last + 1
    return promoted(shadow, found) is None and (found.last <= newest.base or oldest <= newest.base + 1)


def kept(head: Head | None, number: int, now_s: float) -> Version | None:
    """Return a version, the newest for 0; None where there is none, or it is not kept any more."""
    found = living(head, now_s)
    if not number:
        return found.newest
    return next((one for one in found.versions if one.number == number and not one.is_deleted), None)


def _is_same(one: Version, draft: Version) -> bool:
    """Say whether a version was asked for by the same request. Ids are chosen by callers: others may choose the same
    one, and none of them may take another's version for its own."""
    return one.commit == draft.commit and _written(one) == _written(draft)


def _written(one: Version) -> tuple[object, ...]:
    return one.writer, one.workflow, one.is_deleted, _value(one)


def _value(one: Version) -> tuple[str, int, int]:
    return one.content_type, one.size, one.checksum


def _holder(lease: Lease) -> tuple[str, str, str]:
    return lease.id, lease.agent, lease.workflow


def _leased(head: Head, lease_id: str, draft: Version) -> Conflict | None:
    """Its id is what its holder chose: another may have chosen the same."""
    lease = head.lease
    if lease_id and (lease is None or _holder(lease) != (lease_id, draft.writer, draft.workflow)):
        return Conflict(Cause.LEASE_LOST, head.newest, lease)
    if lease is not None and not lease_id:
        return Conflict(Cause.LEASE_HELD, head.newest, lease)
    return None


def _trimmed(versions: tuple[Version, ...], keep: Keep) -> tuple[tuple[Version, ...], tuple[Version, ...]]:
    size = count = 0
    for one in versions:
        size += one.size
        if count and (count >= keep.versions or size > keep.bytes):
            break
        count += 1
    return versions[:count], versions[count:]
