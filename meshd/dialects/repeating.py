"""The pieces of a stream that say nothing but the next words, told by their bytes.

A provider writes the pieces of one stream alike: from one to the next a single string differs. Once a whole piece has
been decoded and found to say nothing beside that string, others that begin and end as it does need not be decoded,
which is most of what reading a piece costs. Pure: what is known is the bytes around the string, and nothing is known
before it was proved on a piece of this stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_QUOTE: Final = 0x22
_TRIALS_MAX: Final = 4
"""How often in a stream a shape is looked for: one that changes with each piece is not worth it."""
_PAD: Final = b'"obfuscation":"'
_PAD_END: Final = b'"}\n\n'
"""OpenAI ends each piece with letters and digits that are different every time, and mean nothing."""
_PROBE: Final = b"meshd"


class Repeating:
    """The shape of one stream's pieces: what stands before their text, and what behind it."""

    __slots__ = ("_head", "_is_padded", "_mark", "_tail", "_trials", "size")

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        """What stands before the text, such as `"content":"`."""
        self._head = b""
        self._tail = b""
        self._is_padded = False
        self._trials = 0
        self.size = 0
        """Bytes of the text that was last found."""

    def text_of(self, raw: bytes) -> str | None:
        """Return the text of an event that says nothing else; None where that cannot be told by its bytes alone."""
        head, tail = self._head, self._tail
        if not head or not raw.startswith(head):
            return None
        begin = len(head)
        if not self._is_padded:
            end = len(raw) - len(tail)
        else:
            # In what is padded the text is found by the quote that ends it.
            end = raw.find(_QUOTE, begin)
            behind = end + len(tail)
            # Compiled, a slice must not end before it begins.
            if end < 0 or behind > len(raw) - len(_PAD_END) or not raw.endswith(_PAD_END):
                return None
            pad = raw[behind : len(raw) - len(_PAD_END)]
            if pad and not pad.isalnum():
                return None
            raw = raw[:behind]
        if end < begin or not raw.endswith(tail):
            return None
        try:
            text = raw[begin:end].decode()
        except UnicodeDecodeError:
            return None
        # What a JSON string cannot hold as it is (RFC 8259, section 7), and some other rare letters: decoding tells.
        if '"' in text or "\\" in text or not text.isprintable():
            return None
        self.size = end - begin
        return text

    def learn(self, raw: bytes, is_text: Callable[[bytes, str], bool]) -> None:
        """Look for the shape of an event, one line of data, that was found to be text.

        `is_text` says whether an event says the text that is given and nothing else: it is asked about this one with
        another text in the place that was found.
        """
        if self._trials >= _TRIALS_MAX or (self._head and raw.startswith(self._head)):
            return
        self._trials += 1
        begin = raw.find(self._mark) + len(self._mark)
        end = raw.find(_QUOTE, begin)
        if begin < len(self._mark) or end < 0:
            return
        head, tail, pad = raw[:begin], raw[end:], b""
        at = tail.find(_PAD) + len(_PAD)
        is_padded = at >= len(_PAD) and tail.endswith(_PAD_END)
        if is_padded:
            tail, pad = tail[:at], _PROBE + _PAD_END
        if is_text(head + _PROBE + tail + pad, _PROBE.decode()):
            self._head, self._tail, self._is_padded = head, tail, is_padded
