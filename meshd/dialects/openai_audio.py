"""OpenAI audio: speech out of text, and text out of speech.

Three ways of paying: by tokens, where the newer transcribers report them; by the character (the older voices) and by
the minute (Whisper), which have no tokens at all. There the bytes that come in stand for them: of the text, which no
character exceeds, or of the recording. Of a voice that is paid by tokens no bound is published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Ask
from meshd.dialects.openai_media_meter import MediaMeter
from meshd.dialects.openai_media_request import MediaRequest, rewritten
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers

_WINDOWS: Final = {
    "gpt-4o-transcribe": 18_000,
    "gpt-4o-mini-transcribe": 18_000,
    "gpt-4o-mini-transcribe-2025-12-15": 18_000,
}
"""What a transcriber can read and write at most, as published: a window of 16,000 and 2,000 of output. 2026-11."""
_BY_CHARACTER: Final = frozenset({"tts-1", "tts-1-1106", "tts-1-hd", "tts-1-hd-1106"})
_BY_MINUTE: Final = "whisper"

_NO_VOICE: Final = "how many tokens the speech of this model may cost is not published"
_NO_WINDOW: Final = "how many tokens a recording may cost this model is not published"
_IN_PIECES: Final = (
    "a recording that the provider cuts into pieces (`chunking_strategy`) may fill any number of windows"
)


class Audio:
    """See `Api`: the operations speech, transcription and translation."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Api.read`."""
        request = MediaRequest(body, headers)
        model = model or request.model
        bound, why = request.body_bytes, ""
        if operation == "speech":
            is_stream = request.text("stream_format") == "sse"
            if model not in _BY_CHARACTER:
                why = _NO_VOICE
        else:
            is_stream = request.flag("stream")
            if not model.rpartition("/")[2].startswith(_BY_MINUTE):
                bound = _WINDOWS.get(model, 0)
                why = _IN_PIECES if request.has("chunking_strategy") else "" if bound else _NO_WINDOW
        ask = Ask(operation, model, is_stream, bound, has_output=False, fields=request, unbounded=why)
        # Neither a price by the minute nor a model's window is brought nearer by a count of texts.
        ask.bound_by = WINDOW
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Api.rewrite`."""
        return rewritten(ask, body)

    def meter(self, ask: Ask) -> MediaMeter:
        """See `Api.meter`."""
        return MediaMeter(ask)
