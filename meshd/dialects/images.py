"""How many tokens one image can cost at most, by model.

Every model that reads images scales a large one down first, so there is a most, whatever the image's bytes say. Rules
as their makers publish them (developers.openai.com/api/docs/guides/images-vision, platform.claude.com/docs/en/
build-with-claude/vision, ai.google.dev/gemini-api/docs/media-resolution), gathered in November 2026 from texts that
restate those pages as of September:

    tiles    an image is fitted into 2048 x 2048, its short side brought to 768, and cut into tiles of 512: at most
             2 x 4 of them, each at the model's price, beside a base
    patches  squares of 32 pixels, at most so many for the model and detail, times the model's multiplier
    Claude   squares of 28 pixels: 4,784 at most since 4.7, 1,568 before
    Gemini 3 2,240 at the highest resolution

A model of none of these has no most here, and an image in front of it is bounded by its window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from meshd.dialects.windows import by_prefix, plain_name

# What the published rules leave out: the rounding of a scaled side, the marks around an image.
_MARGIN_PERCENT: Final = 10
_MARGIN_TOKENS: Final = 64
_TILES_MAX: Final = 8
_CLAUDE_OLD: Final = 1_568
_CLAUDE: Final = 4_784


def _tiles(base: int, tile: int) -> tuple[int, int]:
    return base + _TILES_MAX * tile, base


def _patches(most: int, multiplier_percent: int) -> tuple[int, int]:
    # A low detail is a picture of 512 x 512: 16 x 16 patches.
    return -(-most * multiplier_percent // 100), -(-256 * multiplier_percent // 100)


_IMAGES: Final[dict[str, tuple[int, int]]] = {
    "chatgpt-4o": _tiles(85, 170),
    "gpt-4-turbo": _tiles(85, 170),
    "gpt-4-vision": _tiles(85, 170),
    "gpt-4.1": _tiles(85, 170),
    "gpt-4.5": _tiles(85, 170),
    "gpt-4o": _tiles(85, 170),
    "gpt-4o-mini": _tiles(2_833, 5_667),
    "gpt-5": _tiles(70, 140),
    "o1": _tiles(75, 150),
    "o3": _tiles(75, 150),
    # 1,536 patches when these came, 6,144 since.
    "gpt-4.1-mini": _patches(6_144, 162),
    "gpt-4.1-nano": _patches(6_144, 246),
    "gpt-5-mini": _patches(6_144, 162),
    "gpt-5-nano": _patches(6_144, 246),
    "gpt-5-codex": _patches(6_144, 246),
    "gpt-5.2": _patches(6_144, 246),
    "gpt-5.3-codex": _patches(6_144, 246),
    "gpt-5.4-mini": _patches(6_144, 162),
    "gpt-5.4-nano": _patches(6_144, 246),
    "o4-mini": _patches(6_144, 172),
    "gpt-5.4": _patches(10_000, 120),
    "gpt-5.5": _patches(10_000, 120),
    # Not scaled at all by default, and refused above 30,000.
    "gpt-5.6": _patches(30_000, 120),
    "gpt-6": _patches(30_000, 120),
    "gpt-6.1": _patches(30_000, 120),
    "claude-3": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-haiku-4": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-sonnet-4": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-opus-4": (_CLAUDE, _CLAUDE),
    "claude-opus-4-0": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-opus-4-1": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-opus-4-20250514": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-opus-4-5": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-opus-4-6": (_CLAUDE_OLD, _CLAUDE_OLD),
    "claude-haiku-5": (_CLAUDE, _CLAUDE),
    "claude-sonnet-5": (_CLAUDE, _CLAUDE),
    "claude-opus-5": (_CLAUDE, _CLAUDE),
    "claude-fable-5": (_CLAUDE, _CLAUDE),
    "claude-mythos-5": (_CLAUDE, _CLAUDE),
    "gemini-3": (2_240, 2_240),
    "gemini-3.1": (2_240, 2_240),
    "gemini-3.5": (2_240, 2_240),
}
"""By the longest prefix: the most, and the most where the request says `"detail": "low"`."""

_NOT_THESE: Final = ("gpt-5-chat", "gpt-5-pro", "gpt-5-search", "o1-mini", "o3-mini", "o3-deep", "o4-mini-deep")
"""Variants for which no rule is published, though their prefix has one."""


@lru_cache(maxsize=512)
def _images(model: str) -> tuple[int, int] | None:
    name = plain_name(model)
    if name.startswith(_NOT_THESE) and not name.startswith("gpt-5-chat-latest"):
        return None
    return by_prefix(_IMAGES, name)


def image_tokens_max(model: str, *, is_low: bool = False) -> int | None:
    """Return the tokens that one image cannot exceed in front of a model, None where no rule says so."""
    known = _images(model)
    if known is None:
        return None
    return known[is_low] + known[is_low] * _MARGIN_PERCENT // 100 + _MARGIN_TOKENS


def data_bytes(raw: Any) -> int:
    """Return the bytes of a body that are an image and no text: those of a JSON string with a data URL or base64.

    Zero where the string could be anything else: what normalises otherwise than it is long must not be taken off.
    """
    data = bytes(raw)
    return len(data) if data.isascii() and b"\\u" not in data else 0
