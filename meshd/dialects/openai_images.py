"""OpenAI images: made from a prompt, or from images and a prompt.

What an image costs, OpenAI has published for its first models: so many output tokens by size and quality. For the
later ones there is no table, and for those that are paid by the image there are no tokens: no number bounds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Ask
from meshd.dialects.openai_media_meter import MediaMeter
from meshd.dialects.openai_media_request import MediaRequest, rewritten
from meshd.dialects.openai_request import TOOLS_TOKENS

if TYPE_CHECKING:
    from meshd.call import Headers

IMAGES_MAX: Final = 10
"""`n` as the API's reference allows it."""
_PARTIAL_MAX: Final = 3
_PARTIAL_TOKENS: Final = 100
_SQUARE: Final = "1024x1024"

_OUTPUT_TOKENS: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "gpt-image-1": {"low": (272, 408), "medium": (1_056, 1_584), "high": (4_160, 6_240)},
    # Published as prices by the image and by the token, each rounded to a tenth of a cent: the quotient, and that.
    "gpt-image-1-mini": {"low": (688, 813), "medium": (1_438, 1_938), "high": (4_563, 6_563)},
}
"""Output tokens of an image by quality: a square one, and the dearer of the two that are not. Gathered 2026-11."""
_INPUT_TOKENS: Final[dict[str, int]] = {"gpt-image-1": 65 + 4 * 129 + 6_240}
"""Tokens of an image that is given: base, four tiles, and what `input_fidelity: high` adds at most."""
_STILLS: Final = frozenset({None, "", "png", "jpeg", "webp"})

_NO_TABLE: Final = "what an image of this model costs in tokens is not published"
_NO_INPUT_TABLE: Final = "what an image given to this model costs in tokens is not published"
_VARIATIONS: Final = "variations are paid by the image and have no tokens"


class Images:
    """See `Api`: the operations image_generation, image_edit and image_variation."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Api.read`."""
        request = MediaRequest(body, headers)
        model = model or request.model
        is_stream = request.flag("stream")
        choices = request.integer("n", least=1, most=IMAGES_MAX) or 1
        given = request.given("image", "images", "mask")
        made = _made_tokens(model, request)
        seen = _INPUT_TOKENS.get(model, 0) if given else 1
        why = ""
        if operation == "image_variation":
            why = _VARIATIONS
        elif made == 0:
            why = _NO_TABLE
        elif seen == 0:
            why = _NO_INPUT_TABLE
        bound = request.text_bytes + TOOLS_TOKENS + choices * made + given * seen
        return Ask(operation, model, is_stream, bound, None, choices, False, fields=request, unbounded=why)

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Api.rewrite`."""
        return rewritten(ask, body)

    def meter(self, ask: Ask) -> MediaMeter:
        """See `Api.meter`."""
        return MediaMeter(ask)


def _made_tokens(model: str, request: MediaRequest) -> int:
    """Return the most output tokens that one image can cost, 0 where nobody has published it."""
    by_quality = _OUTPUT_TOKENS.get(model)
    if by_quality is None or request.text("output_format") not in _STILLS:
        return 0
    # What is not asked for is the model's choice, and what is not known the provider's to refuse: the dearest.
    square, other = by_quality.get(request.text("quality") or "", by_quality["high"])
    partial = request.integer("partial_images", least=0, most=_PARTIAL_MAX) or 0
    return (square if request.text("size") == _SQUARE else other) + partial * _PARTIAL_TOKENS
