"""The two vocabularies that ship with meshd, as their publisher made them.

The files are OpenAI's `cl100k_base.tiktoken` and `o200k_base.tiktoken`, compressed. tiktoken would fetch them from the
network when a model is first counted; a sidecar may have none, and must not ask strangers what its agent does. What
is read is held against the SHA-256 that tiktoken's own source names (`tiktoken_ext/openai_public.py`), as are the
patterns below, with which a text is split into words. LICENSE.tiktoken beside the files is theirs.

Nothing of this is imported before something is counted: the library and one vocabulary take tens of megabytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.tokens.encodings import CL100K, O200K

if TYPE_CHECKING:
    from collections.abc import Callable


class Vocabulary(NamedTuple):
    """One published vocabulary."""

    sha256: str
    """Of the file as published, not compressed."""
    pattern: str


_CONTRACTION: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER: Final = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER: Final = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

VOCABULARIES: Final = {
    CL100K: Vocabulary(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s",
    ),
    O200K: Vocabulary(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "|".join(
            (
                rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}",
                rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            )
        ),
    ),
}


class VocabularyError(Exception):
    """A vocabulary is not there, or is not what was published; the message says which."""


def read(name: str) -> bytes:
    """Return a vocabulary as published. Raises VocabularyError."""
    file = files("meshd.tokens") / "data" / f"{name}.tiktoken.gz"
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise VocabularyError(f"the vocabulary {name} cannot be read: {error}") from None
    if hashlib.sha256(data).hexdigest() != VOCABULARIES[name].sha256:
        raise VocabularyError(f"the vocabulary {name} is not the published one: its SHA-256 differs")
    return data


def load(name: str) -> Callable[[str], list[int]]:
    """Return what turns a text into its tokens, with the strings of special tokens taken as text.

    Takes a third of a second and about 50 MB (o200k_base) or 25 MB (cl100k_base). Raises VocabularyError, ImportError
    where tiktoken is not installed.
    """
    import tiktoken

    ranks = {
        base64.b64decode(token): int(rank) for token, rank in (line.split() for line in read(name).splitlines() if line)
    }
    encoding = tiktoken.Encoding(name, pat_str=VOCABULARIES[name].pattern, mergeable_ranks=ranks, special_tokens={})
    # It has a table of its own; this one it would only keep, at 30 MB.
    ranks.clear()
    return encoding.encode_ordinary
