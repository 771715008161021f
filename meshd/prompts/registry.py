"""What is known here of prompts: heads and texts that were read, and what workflows keep to.

What was read is kept, and a watch of the store says when a head has changed; a text never does. So a call waits for the
store when it is the first of its workflow to use a reference, and never for one that says an exact version and was used
here before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from meshd.engines.port import StoreError
from meshd.prompts.choosing import Unresolved, choose
from meshd.prompts.folder import Folder, read_folder, signature_of
from meshd.prompts.record import HEADS, Damaged, Head, Pin, Prompt, head_key
from meshd.prompts.shelf import PIN_S, Shelf
from meshd.prompts.template import Template, listed, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.engines.port import Store
    from meshd.prompts.reference import Reference
    from meshd.prompts.terms import PromptTerms

log = logging.getLogger("meshd.prompts")

HEADS_KEPT: Final = 4096
TEXTS_KEPT: Final = 256
"""Of at most 64 KiB each, and their templates."""
PINS_KEPT: Final = 65_536
POLL_S: Final = 1.0
"""How often the files of a folder are looked at."""
SWEEP_S: Final = 3600.0
"""How often pins are looked through whose time may be over."""

PinKey = tuple[str, str, str, str]
"""Tenant, workflow, name and selector."""
K = TypeVar("K")
V = TypeVar("V")


class Where(NamedTuple):
    """On whose behalf a prompt is looked up."""

    terms: PromptTerms
    tenant: str = ""
    workflow: str = ""
    """Empty where nobody can say: then nothing is kept."""
    agent: str = ""


class Resolved(NamedTuple):
    """What a reference came to."""

    prompt: Prompt
    template: Template
    is_pinned: bool


class Registry:
    """One for the process, on the loop's thread."""

    def __init__(self, store: Callable[[], Store | None], clock: Callable[[], float] = time.time) -> None:
        """`store` returns the one that is in use, None while it cannot be opened; `clock` gives unix seconds."""
        self.store_of = store
        self.shelf = Shelf(lambda: self.store_of())
        self.clock = clock
        self.folder: Folder | None = None
        """What the policy's folder holds, once it was asked for."""
        self._heads: dict[str, Head] = {}
        self._texts: dict[tuple[str, str, str], tuple[Prompt, Template]] = {}
        self._templates: dict[str, Template] = {}
        """Of the folder's texts, by digest."""
        self._pins: dict[PinKey, Pin] = {}
        self._ageing: set[PinKey] = set()
        """Pins in use whose time in the store is half over."""
        self._watched: Store | None = None
        self._unwatch: Callable[[], None] | None = None
        self._opening = asyncio.Lock()
        self._dirty: set[str] = set()
        self._changes = 0
        """How often something has changed: what was read meanwhile may be old."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # ------------------------------------------------------------------ calls

    def known(self, where: Where, reference: Reference) -> Resolved | None:
        """Return what a reference comes to, by what is known here; None where the store must be asked.

        Raises Unresolved.
        """
        folder_path = where.terms.folder
        if folder_path and (self.folder is None or self.folder.path != folder_path):
            return None
        selector = reference.selector
        if selector.exact:
            return self._resolved(where, reference.name, selector.exact, "")
        if where.workflow:
            pin = self._pin((where.tenant, where.workflow, reference.name, selector.text))
            return None if pin is None else self._resolved(where, pin.name, pin.version, pin.digest)
        head = self._head(where, reference.name)
        if head is None:
            return None
        version = choose(head, selector, where.agent)
        return self._resolved(where, head.name, version, "")

    def _pin(self, key: PinKey) -> Pin | None:
        """Return what a workflow keeps to, as far as it is known here, and see to it that the store goes on knowing."""
        pin = self._pins.get(key)
        if pin is None:
            return None
        left_s = pin.ends_s - self.clock()
        if left_s <= 0:
            # Not used for so long: whether others have, the store knows.
            del self._pins[key]
            return None
        if left_s < PIN_S / 2:
            self._ageing.add(key)
            self._begin("pins", self._keep_pins)
        return pin

    def _head(self, where: Where, name: str) -> Head | None:
        files = self._files(where, name)
        if files is not None:
            return files.heads[name]
        # Of a store that was not watched yet it is not known whether it has changed.
        return self._heads.get(head_key(where.tenant, name)) if self._watched is self.store_of() else None

    def _files(self, where: Where, name: str) -> Folder | None:
        """Return the folder, where it has the name."""
        folder = self.folder if where.terms.folder else None
        return folder if folder is not None and name in folder.heads else None

    def _resolved(self, where: Where, name: str, version: str, digest: str) -> Resolved | None:
        files = self._files(where, name)
        if files is not None:
            prompt = files.prompts.get((name, version))
            if prompt is None:
                raise _gone(name, version) if digest else _absent(files.heads[name], version)
            template = self._templates.get(prompt.digest)
            if template is None:
                template = self._templates[prompt.digest] = parse(prompt.text)
        else:
            kept = self._texts.get((where.tenant, name, version))
            if kept is None:
                return None
            prompt, template = kept
        if digest and prompt.digest != digest:
            raise Unresolved(
                f"The workflow began with another text of {name}@{version} than stands there now. A version never "
                "changes: give the new text a version of its own.",
                is_gone=True,
            )
        return Resolved(prompt, template, is_pinned=bool(digest))

    async def resolve(self, where: Where, reference: Reference) -> Resolved:
        """Return what a reference comes to, asking the store for what is not known here. The first use of a range or a
        label in a workflow is kept there for the workflow. Raises Unresolved; Damaged; StoreError."""
        await self.ready(where.terms)
        name, selector = reference.name, reference.selector
        found = self.known(where, reference)
        if found is not None:
            return found
        if selector.exact:
            return await self.loaded(where, name, selector.exact, "")
        if not where.workflow:
            head = await self.head(where, name)
            return await self.loaded(where, name, choose(head, selector, where.agent), "")
        pin = await self.shelf.pinned(where.tenant, where.workflow, name, selector.text, self.clock())
        if pin is None:
            head = await self.head(where, name)
            version = choose(head, selector, where.workflow)
            ends_s = self.clock() + PIN_S
            pin = Pin(where.workflow, name, selector.text, version, head.versions[version], ends_s)
            pin = await self.shelf.pin(where.tenant, pin)
        _keep(self._pins, (where.tenant, where.workflow, name, selector.text), pin, PINS_KEPT)
        return await self.loaded(where, name, pin.version, pin.digest)

    async def head(self, where: Where, name: str) -> Head:
        """Return what there is of a name. Raises Unresolved; Damaged; StoreError."""
        await self.ready(where.terms)
        known = self._head(where, name)
        if known is not None:
            return known
        changes = self._changes
        head, _ = await self.shelf.head(where.tenant, name)
        if head is None:
            raise Unresolved(f"There is no prompt {name}. `meshd prompts list` shows those that there are.")
        if self._changes == changes:
            _keep(self._heads, head_key(where.tenant, name), head, HEADS_KEPT)
        return head

    async def loaded(self, where: Where, name: str, version: str, digest: str) -> Resolved:
        """Return one version, which must have a digest where one is given. Raises Unresolved; Damaged; StoreError."""
        found = self._resolved(where, name, version, digest)
        if found is not None:
            return found
        prompt = await self.shelf.prompt(where.tenant, name, version)
        if prompt is None:
            raise _gone(name, version) if digest else _absent(await self.head(where, name), version)
        _keep(self._texts, (where.tenant, name, version), (prompt, parse(prompt.text)), TEXTS_KEPT)
        found = self._resolved(where, name, version, digest)
        assert found is not None
        return found

    # ------------------------------------------------------------------ what changes

    def learn(self, tenant: str, head: Head) -> None:
        """Take a head that was changed here."""
        self._changes += 1
        _keep(self._heads, head_key(tenant, head.name), head, HEADS_KEPT)

    async def ready(self, terms: PromptTerms) -> None:
        """Hear of changes from now on, in the store and the folder that are in use now. Raises StoreError."""
        store = self.store_of()
        is_read = not terms.folder or (self.folder is not None and self.folder.path == terms.folder)
        if is_read and store is not None and self._watched is store:
            return
        async with self._opening:
            if terms.folder and (self.folder is None or self.folder.path != terms.folder):
                self._take(await asyncio.to_thread(read_folder, terms.folder))
                self._begin("folder", self._poll)
            store = self.shelf.store
            if self._watched is not store:
                self._forget()
                self._unwatch = await store.watch(HEADS, self._changed)
                self._watched = store
                self._begin("sweep", self._sweep)

    def _forget(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
        self._unwatch = self._watched = None
        self._heads.clear()
        self._texts.clear()
        self._pins.clear()

    def _changed(self, key: str) -> None:
        """Somebody has changed a head; empty for any number of them."""
        self._changes += 1
        self._dirty.update(self._heads if not key else (key,) if key in self._heads else ())
        if self._dirty:
            self._begin("heads", self._read_again)

    async def _read_again(self) -> None:
        while self._dirty:
            key = self._dirty.pop()
            tenant, _, name = key.partition("/")
            try:
                head, _ = await self.shelf.head(tenant, name)
            except (StoreError, Damaged) as error:
                log.warning("the prompt %s cannot be read again: %s", name, error)
                head = None
            if head is None:
                # Whoever asks for it next waits for the store.
                self._heads.pop(key, None)
            else:
                self._heads[key] = head

    async def _keep_pins(self) -> None:
        while self._ageing:
            key = self._ageing.pop()
            tenant, workflow, name, selector = key
            try:
                pin = await self.shelf.pinned(tenant, workflow, name, selector, self.clock())
                if pin is None and (known := self._pins.get(key)) is not None:
                    # It has vanished there, and is known here still: it is put back.
                    pin = await self.shelf.pin(tenant, replace(known, ends_s=self.clock() + PIN_S))
            except (StoreError, Damaged) as error:
                log.warning("what %s keeps to of %s cannot be kept for longer yet: %s", workflow, name, error)
            else:
                if pin is not None:
                    _keep(self._pins, key, pin, PINS_KEPT)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            folder = self.folder
            if folder is not None and await asyncio.to_thread(signature_of, folder.path) != folder.signature:
                self._take(await asyncio.to_thread(read_folder, folder.path))

    def _take(self, folder: Folder) -> None:
        self.folder = folder
        self._templates.clear()
        log.info("%d prompts were read from %s", len(folder.heads), folder.path)
        for problem in folder.problems:
            log.error("%s", problem)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                async for _ in self.shelf.expired(self.clock()):
                    await asyncio.sleep(0.01)
            except (StoreError, Damaged) as error:
                log.warning("what workflows keep to of prompts could not be looked through: %s", error)

    def _begin(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._tasks.get(what)
        if task is None or task.done():
            self._tasks[what] = asyncio.get_running_loop().create_task(work())

    async def close(self) -> None:
        """Hear of nothing any more."""
        if self._unwatch is not None:
            self._unwatch()
        self._unwatch = self._watched = None
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _keep(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Put into a dict what is known, and forget what has been there longest."""
    if key not in kept and len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


def _gone(name: str, version: str) -> Unresolved:
    return Unresolved(
        f"The workflow keeps to {name}@{version}, which is there no more. Begin a new workflow, or bring it back.",
        is_gone=True,
    )


def _absent(head: Head, version: str) -> Unresolved:
    return Unresolved(f"The prompt {head.name} has no version {version}; it has: {listed(list(head.versions))}.")
