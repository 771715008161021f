"""A2A agent cards: what of one is read, and which entries it makes. Cards of 0.3 and of 1.0, as JSON.

A card is written by whoever serves the agent: all of it is read as a stranger's, within bounds, and nothing in it is
believed that would give the agent more than its policy does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.discovery.entry import Entry, Origin, Sort

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD_BYTES_MAX: Final = 2**20
"""Of a card: the largest in public use are some tens of kilobytes."""
DEPTH_MAX: Final = 64
SKILLS_MAX: Final = 1000
"""Of one agent. One that says more of itself is not a card but a flood: nothing of it is taken."""
NAME_CHARACTERS_MAX: Final = 256
TEXT_CHARACTERS_MAX: Final = 8192
INTENTS_MAX: Final = 64
"""Tags and examples of a skill that are read."""
DEFINITION_BYTES_MAX: Final = 32_768

_APART: Final = frozenset({"skills", "signatures"})
"""What an agent's own definition is kept without: skills are entries of their own, and a signature is of the bytes."""


class CardError(ValueError):
    """What an agent calls its card is none that can be used; the message says why, and what to do."""


def read_card(body: bytes) -> dict[str, Any]:
    """Return a card from its JSON text. Raises CardError on what is too large, no JSON, too deep or no card."""
    if len(body) > CARD_BYTES_MAX:
        raise CardError(f"the card has {len(body)} bytes, and {CARD_BYTES_MAX} are the most that is read of one")
    try:
        card = msgspec.json.decode(body)
    except RecursionError:
        raise CardError(f"the card is nested more than {DEPTH_MAX} deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CardError(f"the card is not JSON: {error}") from None
    check_card(card)
    return card  # type: ignore[no-any-return]


def check_card(card: object) -> None:
    """Raise CardError where this is no card, or one that is too deep or offers too many skills."""
    if not isinstance(card, dict):
        raise CardError("the card is no JSON object")
    if not isinstance(card.get("name"), str) or not card["name"]:
        raise CardError('the card has no "name"')
    if _is_deeper(card, DEPTH_MAX):
        raise CardError(f"the card is nested more than {DEPTH_MAX} deep")
    skills = card.get("skills")
    if skills is not None and not isinstance(skills, list):
        raise CardError('the "skills" of the card are no list')
    if skills and len(skills) > SKILLS_MAX:
        raise CardError(f"the card offers {len(skills)} skills, and {SKILLS_MAX} are the most that an agent may have")


def entries_of(card: dict[str, Any], owner: str) -> list[Entry]:
    """Return what a card says of the agent `owner`: the agent itself, then its skills in the card's order.

    The agent's entry has the name of its owner, by which it is called; what the card calls it is its title. A skill
    without an id is left out, and so is a second one of the same id. Raises CardError as `check_card` does.
    """
    check_card(card)
    version = _short(card.get("version"))
    skills = list(_skills(card, owner, version))
    agent = Entry(
        Sort.AGENT,
        owner,
        owner,
        description=_text(card.get("description")),
        title=_short(card["name"]),
        origin=Origin.A2A,
        version=version,
        definition=_definition({name: value for name, value in card.items() if name not in _APART}),
    )
    return [agent, *skills]


def _skills(card: dict[str, Any], owner: str, version: str) -> Iterator[Entry]:
    seen: set[str] = set()
    for skill in card.get("skills") or ():
        id = _short(skill.get("id")) if isinstance(skill, dict) else ""
        if not id or id in seen:
            continue
        seen.add(id)
        yield Entry(
            Sort.SKILL,
            owner,
            id,
            description=_text(skill.get("description")),
            title=_short(skill.get("name")),
            origin=Origin.A2A,
            version=version,
            intents=_intents(skill),
            definition=_definition(skill),
        )


def _intents(skill: dict[str, Any]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in ("tags", "examples"):
        listed = skill.get(name)
        for words in listed if isinstance(listed, list) else ():
            if isinstance(words, str) and words.strip():
                found[words.strip()[:TEXT_CHARACTERS_MAX]] = None
            if len(found) >= INTENTS_MAX:
                return tuple(found)
    return tuple(found)


def _definition(value: dict[str, Any]) -> bytes:
    """Return it as JSON text; empty where it is too long to be kept."""
    try:
        text = msgspec.json.encode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return b""
    return text if len(text) <= DEFINITION_BYTES_MAX else b""


def _short(value: object) -> str:
    return value[:NAME_CHARACTERS_MAX] if isinstance(value, str) else ""


def _text(value: object) -> str:
    return value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else ""


def _is_deeper(value: object, depth: int) -> bool:
    """Say whether objects and lists are within one another more than `depth` times."""
    level: list[Any] = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
