"""What a word says: nothing, thanks, a number, or its stem. Each is worked out once."""

from __future__ import annotations

from typing import Final
from zlib import crc32


def words_of(text: str) -> frozenset[str]:
    """Return the words of a list."""
    return frozenset(text.split())


CONTENT: Final = 0
SILENT: Final = 1
"""It is in every text."""
COURTEOUS: Final = 2
GERMAN: Final = 3
"""It is in every German text: there nouns have capitals, and so capitals do not mark names."""
ORDINAL: Final = 4
NUMERAL: Final = 5
UNSPACED: Final = 6
"""Of a script that puts no blanks between words."""
SHORT: Final = 7
"""It says nothing, unless it is written as a name is."""

UNSPACED_FROM: Final = 0x2E80
HIRAGANA_FROM: Final = 0x3041
HIRAGANA_TO: Final = 0x309F
"""Of a Japanese text these are endings and little words."""
CHARACTERS_MAX: Final = 64
STEM_CHARACTERS: Final = 6
KNOWN_MAX: Final = 16_384
KNOWN_CHARACTERS_MAX: Final = 24

_STOP_ELSEWHERE: Final = words_of(
    "bitte sie was mit der die das dem den des ist sind und oder ich wir ihr nicht ein eine einen welche welchen "
    "welcher könnten können soll sollen sagen genau für von zum zur auf "
    "les des une est sont pas vous nous dans pour que qui quelle quel quelles plaît dois faut pourriez "
    "los las una por favor que con para del como cual cuál puede podría son"
)
COURTESY: Final = words_of(
    "thank thanks welcome glad happy pleasure sorry lot much appreciate appreciated grateful hello hi regards cheers "
    "apologise apologize apologies apologising apologizing confusion excuse pardon help helping helped "
    "bye goodbye farewell wishes wishing danke gern gerne tschüss merci revoir gracias adiós obrigado obrigada grazie "
    "prego ciao"
)
PHATIC: Final = words_of(
    "time keep that's day evening afternoon night weekend morning care see soon later next best lovely nice great good "
    "wonderful "
    "perfect pleasant fantastic well stay safe everything anytime likewise mention nothing problem worries kind friend "
    "talk rest wish enjoy hope hear ahead million always forward meet meeting working pleased luck bless "
    "abend tag wochenende woche schönen schöne bald später gute gutes nacht wiedersehen alles mühe freut gleichfalls "
    "bonne journée soirée bientôt plaisir prochaine pareillement "
    "día noche semana pronto luego placer cuídate saludos igualmente buenas buen"
)
"""What is said beside thanks and farewells, and says as little there."""
STOP: Final = words_of(
    "the and for that this with you your are was were will would could should can may might shall have has had not but "
    "from they them their there here what when where which who whom how why its our out any all some more most than "
    "then into onto over under about again please kindly just also too very now well yes let get got need want like "
    "one two once still really maybe perhaps first before after being been does did doing done each such only own "
    "same both few other nor off down up tell told know sure able exactly "
    "needs wants asks precisely mean means meant say says said give given provide start begin you're here's it's i'm "
    "i'll we'll you'll don't can't she he him his her hers"
)
_AMBIGUOUS: Final = words_of("may will")
_GERMAN: Final = words_of(
    "der das und ist nicht ein eine einen einer mit bitte welche welcher welches welchen soll sollen können könnten "
    "würden sie wir ich für die den dem des du mir mich dir ihr ihre ihren ihrem ihnen uns unser unsere mein meine "
    "noch wie wann wird werden wurde haben hat habe kann könnte auch nur schon doch bei beim nach vom zum zur aus dass "
    "weil wenn aber oder als dafür dazu davon etwas"
)
_STOP_CHARACTERS: Final = frozenset("请您你我的了吗呢吧一下谢在是把和")
_ORDINALS: Final = words_of(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "ersten zweiten dritten vierten fünften sechsten erste zweite dritte vierte fünfte sechste erster zweiter dritter "
    "vierter fünfter première premier deuxième troisième quatrième cinquième sixième primera segunda tercera cuarta "
    "quinta sexta primer segundo tercer cuarto quinto sexto prima seconda terza quarta primeira terceira"
)
_NUMERALS: Final = words_of(
    "one two three four five six seven eight nine ten eleven twelve eins zwei drei vier fünf sechs un deux trois "
    "quatre cinq six uno dos tres cuatro cinco seis due tre quattro cinque sei"
)
PRONOUNS: Final = words_of("one un uno una eins")
"""Numbers that mostly are none."""
_known: Final[dict[str, tuple[int, int]]] = {}


def look_up(lower: str) -> tuple[int, int]:
    """Return what a word in lower case is, and the hash of its stem; 0 where it has none."""
    found = _known.get(lower)
    if found is None:
        found = _judged(lower)
        if len(lower) <= KNOWN_CHARACTERS_MAX:
            if len(_known) >= KNOWN_MAX:
                _known.clear()
            _known[lower] = found
    return found


def _judged(lower: str) -> tuple[int, int]:
    if ord(lower[0]) >= UNSPACED_FROM:
        return UNSPACED, 0
    says = lower not in STOP and (len(lower) > 2 or not lower.isascii())
    mark = crc32(stem(lower).encode()) if says else 0
    if lower in _ORDINALS:
        return ORDINAL, mark
    if lower in _NUMERALS:
        return NUMERAL, mark
    if lower in _GERMAN:
        return GERMAN, 0
    if lower in COURTESY:
        return COURTEOUS, 0
    if lower in _AMBIGUOUS or (not says and lower not in STOP):
        return SHORT, 0
    if not says or lower in _STOP_ELSEWHERE:
        return SILENT, 0
    return CONTENT, mark


def characters(word: str) -> list[int]:
    """Return what a word says of a script without blanks: its characters stand for words."""
    return [
        crc32(one.encode())
        for one in word[:CHARACTERS_MAX]
        if one not in _STOP_CHARACTERS and not HIRAGANA_FROM <= ord(one) <= HIRAGANA_TO
    ]


def stem(word: str) -> str:
    """Return what words of one family have in common: rough, and the same for all of them."""
    if word[1:2] in ("'", "’") and len(word) > 4:
        # An article or a pronoun, as in `l'envoyer`.
        word = word[2:]
    if word[-2:] in ("'s", "’s"):
        word = word[:-2]
    size = len(word)
    if size > 5 and word[-3:] == "ing":
        word = word[:-3]
    elif size > 4 and word[-2:] in ("ed", "es"):
        word = word[:-2]
    elif size > 3 and word[-1] == "s" and word[-2] != "s":
        word = word[:-1]
    if len(word) > 3:
        word = word.rstrip("e")
    return word[:STEM_CHARACTERS]
