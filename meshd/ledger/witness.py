"""Is this the store that we knew, and who are we to it? What a state directory remembers of a shared store.

A shared store that was emptied, or put back from a copy, would grant again what was spent. A sidecar that has met it
before knows its name; one that has not cannot tell, so the guarantee needs one that has (guarantees, part 1, rule 6).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from meshd.engines.port import StoreCorrupt

if TYPE_CHECKING:
    from meshd.ledger.desk import Desk
    from meshd.ledger.directory import Directory

_HOLDER: Final = "holder"
_STORE: Final = "store"
ANOTHER: Final = (
    "What was spent would be granted again: go on with the store of before, or begin anew on this one with another "
    "state directory (MESHD_HOME), into which mesh.key may be copied"
)
"""What to do where a store is not the one that a state directory belongs to. Nothing has to be removed for it."""
_NAME: Final = re.compile(r"[0-9a-f]{24}\Z")


def holder_name(directory: Directory) -> str:
    """Return the name under which this directory's sidecar holds leases: made once, at random. Raises StoreError."""
    return _known(directory, _HOLDER) or _made(directory, _HOLDER, os.urandom(12).hex())


async def recognise(desk: Desk, directory: Directory) -> None:
    """Learn the store's name, or see that it is the one known. Raises StoreError; StoreCorrupt where it is another."""
    known = _known(directory, _STORE)
    if known:
        found = await desk.read_identity()
        if found != known:
            raise StoreCorrupt(
                f"the {desk.store.name} store is not the one that {directory.path} belongs to: it is another than "
                f"before, was replaced, emptied or put back from a copy. {ANOTHER}"
            )
    else:
        known = await desk.name_store(os.urandom(12).hex())
        if _NAME.match(known) is None:
            raise StoreCorrupt(f"the {desk.store.name} store holds records of something else under meshd's names")
        _made(directory, _STORE, known)
    desk.identity = known


def _known(directory: Directory, file: str) -> str:
    name = directory.recall(file)
    if name and _NAME.match(name) is None:
        raise StoreCorrupt(f"{directory.path / file} is damaged; remove {directory.path} to begin anew")
    return name


def _made(directory: Directory, file: str, name: str) -> str:
    directory.remember(file, name)
    return name
