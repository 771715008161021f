"""The books of this sidecar: opened on the engine that the configuration names, and tried again where they cannot be.

Everything but budgets runs without them; budgets refuse, and say why. An engine may be late (pods start in any order),
away for a while, locked by a meshd that is about to end, or full: so it is tried again for as long as the sidecar runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from meshd.engines.port import StoreError
from meshd.engines.table import open_store
from meshd.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("meshd")

RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 15.0
"""Between two tries, doubling, each drawn up to the whole: many sidecars must not come back in step."""


async def open_books(home: Path, store: str) -> Ledger:
    """Open them. `store` is an engine's URL, empty for the embedded one in the state directory `home`.

    Raises StoreUnable where no engine can do what the URL asks; another StoreError where it cannot be used now.
    """
    if store in ("", "sqlite:"):
        return await Ledger.open(home)
    engine = await open_store(store, home)
    try:
        if engine.name == "memory":
            ledger = Ledger.in_memory(store=engine)
        else:
            ledger = await Ledger.open(home, store=engine)
    except BaseException:
        await engine.close()
        raise
    if engine.caution:
        log.warning("the %s store may lose what budgets are kept in: %s", engine.name, engine.caution)
    return ledger


async def keep_trying(home: Path, store: str, why: StoreError, opened: Callable[[Ledger], None]) -> None:
    """Try until the books are open, and hand them over. A reason that is new is logged, one that stays is not."""
    wait_s = RETRY_S
    while True:
        await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - nobody gains by guessing it
        wait_s = min(2 * wait_s, RETRY_S_MAX)
        try:
            ledger = await open_books(home, store)
        except StoreError as error:
            if str(error) != str(why):
                log.error("the ledger still cannot be opened, so every budget refuses: %s", error)
            why = error
        else:
            log.warning("the ledger is open: budgets are kept again")
            opened(ledger)
            return
