"""What agents say in a scenario: texts with placeholders, filled by a seeded die. README.md lists the placeholders."""

from __future__ import annotations

import base64
import random
import re
import uuid
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.loops.reading import FOLDER, MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

_HOLE: Final = re.compile(r"\{([^{}]*)\}")
_HISTORY_CHARS: Final = 6000
_SYLLABLES: Final = (
    "ba",
    "do",
    "ke",
    "lu",
    "mi",
    "so",
    "ven",
    "zor",
    "pla",
    "gri",
    "tho",
    "xen",
    "qua",
    "fel",
    "nor",
    "wik",
)


@cache
def pools() -> dict[str, list[str]]:
    """The lists of texts*.yaml."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("texts*.yaml")):
        for name, texts in yaml.safe_load(path.read_text("utf-8")).items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise MalformedError(f"{path.name}: {name}: must be a list of texts")
            if name in found:
                raise MalformedError(f"{path.name}: {name}: stands in another file too")
            found[name] = texts
    return found


class Filler:
    """Fills placeholders for one workflow."""

    def __init__(self, seed: int, workflow: str) -> None:
        self.dice = random.Random(seed)
        self.workflow = workflow
        self.history: list[str] = []
        self._decks: dict[str, list[str]] = {}
        self._chosen: dict[str, str] = {}
        self._counter = self.dice.randint(1, 500)

    def fill(self, speech: Any, scope: dict[str, Any], wall_s: float) -> Any:
        """Return `speech` (a text, or a mapping that holds texts) with every placeholder filled."""
        if isinstance(speech, dict):
            return {key: self.fill(value, scope, wall_s) for key, value in speech.items()}
        if isinstance(speech, list):
            return [self.fill(value, scope, wall_s) for value in speech]
        if not isinstance(speech, str):
            return speech
        if speech.startswith("=") and (number := self.fill(speech[1:], scope, wall_s)).isdigit():
            return int(number)
        while "{" in speech:
            filled = _HOLE.sub(lambda hole: self._one(hole[1], scope, wall_s), speech)
            if filled == speech:
                break
            speech = filled
        return speech

    def _one(self, hole: str, scope: dict[str, Any], wall_s: float) -> str:
        if "|" in hole:
            return self.dice.choice(hole.split("|"))
        word, _, argument = hole.partition(" ")
        if word in ("item", "round", "cycle"):
            return str(scope.get(word, ""))
        made = MAKERS.get(word)
        if made is None:
            raise MalformedError(f"{{{hole}}}: no such placeholder")
        return made(self, argument, wall_s)

    def uuid(self, _: str, __: float) -> str:
        return str(uuid.UUID(int=self.dice.getrandbits(128), version=4))

    def time(self, _: str, wall_s: float) -> str:
        return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")

    def counter(self, _: str, __: float) -> str:
        self._counter += 1
        return str(self._counter)

    def number(self, argument: str, _: float) -> str:
        first, _dots, last = (argument or "1..9999").partition("..")
        return str(self.dice.randint(int(first), int(last)))

    def words(self, argument: str, _: float) -> str:
        return " ".join(self.dice.choices(pools()["words"], k=int(argument or 8)))

    def junk(self, argument: str, _: float) -> str:
        made = ("".join(self.dice.choices(_SYLLABLES, k=self.dice.randint(2, 4))) for _ in range(int(argument or 5)))
        return " ".join(made)

    def token(self, _: str, __: float) -> str:
        return base64.b64encode(self.dice.randbytes(18)).decode()

    def any(self, pool: str, _: float) -> str:
        return self.dice.choice(_pool(pool))

    def next(self, pool: str, _: float) -> str:
        deck = self._decks.get(pool)
        if not deck:
            deck = self._decks[pool] = list(_pool(pool))
            self.dice.shuffle(deck)
        return deck.pop()

    def same(self, pool: str, _: float) -> str:
        if pool not in self._chosen:
            self._chosen[pool] = self.dice.choice(_pool(pool))
        return self._chosen[pool]

    def history_text(self, _: str, __: float) -> str:
        return "\n".join(self.history)[-_HISTORY_CHARS:].replace("{", "(").replace("}", ")")

    def name(self, _: str, __: float) -> str:
        return self.workflow


def _pool(name: str) -> list[str]:
    found = pools().get(name)
    if found is None:
        raise MalformedError(f"texts.yaml: {name}: there is no such list")
    return found


MAKERS: Final[dict[str, Callable[[Filler, str, float], str]]] = {
    "uuid": Filler.uuid,
    "time": Filler.time,
    "counter": Filler.counter,
    "number": Filler.number,
    "words": Filler.words,
    "junk": Filler.junk,
    "token": Filler.token,
    "any": Filler.any,
    "next": Filler.next,
    "same": Filler.same,
    "history": Filler.history_text,
    "workflow": Filler.name,
}
