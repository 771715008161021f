"""What people do with prompts: look at them, add versions, move labels, see what a reference comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.prompts.choosing import ordered
from meshd.prompts.reference import BadReference, read_reference
from meshd.prompts.registry import Where
from meshd.prompts.shelf import Conflict, UnknownPrompt
from meshd.prompts.template import VariableError, listed, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshd.prompts.record import Head, Prompt, Weights
    from meshd.prompts.registry import Registry
    from meshd.prompts.terms import PromptTerms

STORE, FOLDER = "store", "folder"


class PromptDesk:
    """Every method may raise StoreError, and Damaged. What is shown is what this sidecar's tenant has."""

    def __init__(self, registry: Registry, terms: Callable[[], tuple[PromptTerms, str]]) -> None:
        """`terms` returns what the policy of the moment says, and whose sidecar this is."""
        self._registry = registry
        self._terms = terms

    def clock(self) -> float:
        """Return unix seconds."""
        return self._registry.clock()

    def _where(self) -> Where:
        terms, tenant = self._terms()
        return Where(terms, tenant)

    async def page(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str, list[str]]:
        """Return prompts in the order of their names, from the first beyond `after`; where the next page begins, empty
        for the last; and what is wrong with them, or with the policy's folder."""
        where = self._where()
        await self._registry.ready(where.terms)
        kept, problems = await self._registry.shelf.heads(where.tenant, after, limit + 1)
        heads = {head.name: (head, STORE) for head in kept}
        folder = self._registry.folder if where.terms.folder else None
        if folder is not None:
            heads |= {name: (head, FOLDER) for name, head in folder.heads.items() if name > after}
            problems = [*problems, *folder.problems]
        names = sorted(heads)
        shown = names[:limit]
        return [summary(*heads[name]) for name in shown], shown[-1] if len(names) > limit else "", problems

    async def show(self, name: str) -> dict[str, Any]:
        """Return all but the texts of a name. Raises Unresolved."""
        where = self._where()
        head = await self._registry.head(where, name)
        source = FOLDER if self._is_in_folder(name) else STORE
        return whole(head, source)

    async def prompt(self, name: str, version: str) -> Prompt:
        """Return one version. Raises Unresolved."""
        reference = read_reference(f"prompt://{name}@{version}")
        assert reference is not None
        return (await self._registry.resolve(self._where(), reference)).prompt

    async def add(self, prompt: Prompt) -> tuple[Prompt, bool]:
        """Add a version; return it, and whether it is new. Raises Conflict."""
        where = self._where()
        await self._check_owner(where, prompt.name)
        kept, is_new = await self._registry.shelf.add(where.tenant, prompt)
        await self._learn(where.tenant, prompt.name)
        return kept, is_new

    async def promote(
        self, name: str, label: str, version: str, share: int, expected: Weights | None
    ) -> dict[str, Any]:
        """Move a label to a version, or, where `share` is below 100, so many of a hundred workflows with it.

        Raises UnknownPrompt; Conflict; ValueError.
        """
        where = self._where()
        await self._check_owner(where, name)
        head = await self._registry.shelf.promote(
            where.tenant,
            name,
            label,
            lambda head: shared(head, label, version, share),
            expected,
            self._registry.clock(),
        )
        self._registry.learn(where.tenant, head)
        return whole(head, STORE)

    async def roll_back(self, name: str, label: str, expected: Weights | None) -> dict[str, Any]:
        """Move a label to where it stood before. Raises UnknownPrompt; Conflict."""
        where = self._where()
        await self._check_owner(where, name)
        head = await self._registry.shelf.roll_back(where.tenant, name, label, expected, self._registry.clock())
        self._registry.learn(where.tenant, head)
        return whole(head, STORE)

    async def render(self, text: str, variables: Mapping[str, str], workflow: str) -> tuple[Prompt, str]:
        """Return which version a reference is, and its text with the variables filled in.

        Where a workflow is named that keeps to a version already, that is the one; nothing is kept for it here. Raises
        BadReference; Unresolved; VariableError.
        """
        reference = read_reference(text)
        if reference is None:
            raise BadReference("a reference is prompt://NAME, prompt://NAME@VERSION or prompt://NAME@LABEL")
        where = self._where()
        found = None
        if workflow:
            pin = await self._registry.shelf.pinned(
                where.tenant, workflow, reference.name, reference.selector.text, self._registry.clock()
            )
            if pin is not None:
                found = await self._registry.loaded(where, pin.name, pin.version, pin.digest)
        if found is None:
            # Whom a canary would serve is drawn by the workflow, also where that has not begun.
            found = await self._registry.resolve(where._replace(agent=workflow), reference)
        foreign = [name for name in (*variables, *reference.variables) if name not in found.template.variables]
        if foreign:
            names = listed(found.template.variables)
            what = f"{found.prompt.name}@{found.prompt.version}"
            raise VariableError(f"{what} has no variable {listed(foreign)}; it has: {names}")
        return found.prompt, found.template.render({**variables, **reference.variables})

    async def _check_owner(self, where: Where, name: str) -> None:
        await self._registry.ready(where.terms)
        if self._is_in_folder(name):
            raise Conflict(f"{name} is kept in the folder {where.terms.folder}: change it there.")

    def _is_in_folder(self, name: str) -> bool:
        folder = self._registry.folder if self._where().terms.folder else None
        return folder is not None and name in folder.heads

    async def _learn(self, tenant: str, name: str) -> None:
        head, _ = await self._registry.shelf.head(tenant, name)
        if head is not None:
            self._registry.learn(tenant, head)


def shared(head: Head, label: str, version: str, share: int) -> Weights:
    """Return the weights of a label where so many of a hundred workflows get a version. Raises ValueError."""
    if version not in head.versions:
        raise UnknownPrompt(f"The prompt {head.name} has no version {version}; it has: {listed(list(head.versions))}.")
    if share >= 100:
        return {version: 1}
    others = [other for other in head.labels.get(label, {}) if other != version]
    if len(others) != 1:
        raise ValueError(
            f"a share of {label} is given beside the one other version at which it stands, and there "
            f"{'is none' if not others else 'are two'}: promote a version as a whole first"
        )
    return {others[0]: 100 - share, version: share}


def summary(head: Head, source: str) -> dict[str, Any]:
    """Return what a list says of a name."""
    versions = ordered(list(head.versions))
    return {
        "name": head.name,
        "source": source,
        "versions": len(versions),
        "newest": versions[0] if versions else "",
        "labels": head.labels,
    }


def whole(head: Head, source: str) -> dict[str, Any]:
    """Return all that is known of a name, but the texts."""
    return {
        "name": head.name,
        "source": source,
        "versions": [
            {"version": version, "digest": head.versions[version]} for version in ordered(list(head.versions))
        ],
        "labels": head.labels,
        "before": head.before,
        "history": [
            {"label": move.label, "to": move.to, "at_s": move.at_s, "is_rollback": move.is_rollback}
            for move in reversed(head.history)
        ],
    }


def variables_of(text: str) -> list[str]:
    """Return the variables of a prompt's text. Raises TemplateError."""
    return list(parse(text).variables)
