"""Finding in the catalogue: an index that is kept in step with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.discovery.document import document_of, texts_of
from meshd.discovery.entry import Entry, Sort
from meshd.discovery.index import Found, Index
from meshd.discovery.meanings import blended

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meshd.discovery.catalogue import Catalogue

    Key = tuple[Sort, str, str]


class Finder:
    """Finds entries of a catalogue by words. Brought up to date when it is asked, where the catalogue has changed."""

    __slots__ = ("_catalogue", "_generation", "_held", "_index")

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._index: Index[Key] = Index()
        self._held: dict[Key, tuple[Entry, Entry | None]] = {}
        self._generation = -1

    def find(
        self,
        words: str,
        k: int,
        *,
        sorts: Collection[Sort] | None = None,
        admit: Callable[[Entry], bool] | None = None,
        vector: Sequence[float] | None = None,
    ) -> list[Found[Entry]]:
        """Return at most `k` entries for `words`, the best first: of these sorts, and of those that `admit` lets pass.

        What is not admitted is passed over before anything is counted off, so it takes nobody's place. `vector` is
        what a model makes of `words`, where entries have been given vectors (`embed`).
        """
        self._refresh()
        held = self._held

        def may(key: Key) -> bool:
            return (sorts is None or key[0] in sorts) and (admit is None or admit(held[key][0]))

        return [Found(held[one.key][0], one.score) for one in self._index.search(words, k, may, vector)]

    def unembedded(self) -> list[tuple[Key, tuple[str, ...]]]:
        """Return the entries without vectors, with the texts that a model is to embed (`embed` takes what it makes)."""
        self._refresh()
        return [(key, texts_of(self._index.document(key))) for key in self._index.unembedded()]

    def embed(self, key: Key, vectors: Sequence[Sequence[float]]) -> None:
        """Keep the vectors of an entry's texts; one that is gone or has changed meanwhile is asked for again.

        Raises ValueError where they have no direction, or another size than those that are there.
        """
        self._index.embed(key, blended(vectors))

    def _refresh(self) -> None:
        catalogue = self._catalogue
        if catalogue.generation == self._generation:
            return
        agents = {entry.owner: entry for entry in catalogue if entry.sort is Sort.AGENT}
        now = {entry.key: (entry, agents.get(entry.owner)) for entry in catalogue}
        for key in self._held.keys() - now.keys():
            self._index.remove(key)
        for key, (entry, owner) in now.items():
            if self._held.get(key) != (entry, owner):
                self._index.put(key, document_of(entry, owner))
        self._held = now
        self._generation = catalogue.generation
