"""The texts of a protobuf message whose schema nobody knows, as gRPC frames it: lengths are no letters of a word."""

from __future__ import annotations

from typing import Final

DEPTH_MAX: Final = 4
FRAME_BYTES: Final = 5
_TAGS: Final = frozenset((0x08, 0x0A, 0x10, 0x12, 0x18, 0x1A))


def texts_of(raw: bytes) -> bytes | None:
    """Return the texts and numbers of a message, or of frames of them, one a line; None for what is none.

    The end may be missing, as that of a sample is.
    """
    if raw[:1] == b"\x00" and len(raw) > FRAME_BYTES:
        pieces: list[bytes] = []
        at = 0
        while at + FRAME_BYTES <= len(raw) and raw[at] == 0:
            end = at + FRAME_BYTES + int.from_bytes(raw[at + 1 : at + FRAME_BYTES], "big")
            message = raw[at + FRAME_BYTES : end]
            pieces.append(_read(message, 0, is_whole=end <= len(raw)) or message)
            at = end
        return b"\n".join(pieces)
    if raw and raw[0] in _TAGS:
        return _read(raw, 0, is_whole=True)
    return None


def _read(raw: bytes, depth: int, *, is_whole: bool) -> bytes | None:
    found: list[bytes] = []
    at, size = 0, len(raw)
    while at < size:
        tag, at = _varint(raw, at)
        kind = tag & 7
        if tag < 8 or at < 0:
            return None
        if kind == 2:
            length, at = _varint(raw, at)
            if at < 0 or (at + length > size and is_whole):
                return None
            piece = raw[at : at + length]
            at += length
            inner = _read(piece, depth + 1, is_whole=True) if depth < DEPTH_MAX and not _is_text(piece) else None
            found.append(inner if inner is not None else piece)
        elif kind == 0:
            number, at = _varint(raw, at)
            if at < 0:
                return None
            found.append(b"= %d," % number)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return None
    return b"\n".join(found)


def _is_text(piece: bytes) -> bool:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() or all(one.isprintable() or one in "\n\r\t" for one in text)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, -1
