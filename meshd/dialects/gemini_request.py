"""What a request for Gemini brings: its parts, tools and configuration, under either spelling."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.json_pairs import Pairs, RawJson, malformed
from meshd.dialects.remembering import remembered

if TYPE_CHECKING:
    from meshd.call import Headers

CANDIDATES_MAX: Final = 128

_TEXT_PARTS: Final = frozenset(
    {
        "text", "thought", "thoughtSignature", "functionCall", "executableCode", "codeExecutionResult", "partMetadata",
    }
)  # fmt: skip
"""Members of a part whose tokens their bytes bound. Others that `_is_shown` knows are looked into."""
_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
_DRAWN: Final = "a picture or sound that a model makes has no published most in tokens"
_DRAWING: Final = re.compile(r"-(?:image|tts|native-audio|live)(?:-|\Z)")
"""Models that make pictures or sound unless they are told not to."""
_TEXT: Final = b'"TEXT"'
_STANDARD: Final = "standard"
_TIER_FIELD: Final = b"x-vertex-ai-llm-shared-request-type"
_TIER_CHARACTERS_MAX: Final = 32
_CAMEL: Final = re.compile(r"_([a-z])")
_SNAKE: Final = re.compile(r"(?<=[a-z])([A-Z])")
_TEXT_BEGINS: Final = b'[{"text":"'
_BRACE: Final = 0x7B
_QUOTE: Final = 0x22


class Request:
    """What `rewrite` needs to know of a request that was read."""

    __slots__ = (
        "cap_name", "config", "config_name", "image_bytes", "image_tokens", "model", "pairs", "thinking",
        "thinking_budget",
    )  # fmt: skip

    def __init__(self, pairs: Pairs, model: str) -> None:
        self.pairs = pairs
        self.model = model
        self.image_tokens = 0
        """Tokens that the request's images cannot exceed."""
        self.image_bytes = 0
        """Bytes of the body that are those images."""
        self.config: Pairs = {}
        self.config_name = "generationConfig"
        self.cap_name = "maxOutputTokens"
        self.thinking: tuple[str, Pairs, str] | None = None
        """The name and members of the thinking configuration, and the name of the budget in it."""
        self.thinking_budget: int | None = None


@lru_cache(maxsize=256)
def snake_case(name: str) -> str:
    """Return a member's name in its other spelling."""
    return _SNAKE.sub(r"_\1", name).lower()


def either(pairs: Pairs, name: str) -> str:
    """Return under which spelling a member stands, camel or snake case; empty where under none.

    Raises Refused(MALFORMED) where it stands under both: which one counts differs between parsers.
    """
    snake = snake_case(name)
    if snake == name or snake not in pairs:
        return name if name in pairs else ""
    if name in pairs:
        malformed(f"the request has both {name!r} and {snake!r}; which one counts differs between parsers")
    return snake


def tier_of(pairs: Pairs, headers: Headers | None) -> str:
    """Return the tier of service that a request asks for: in its body, or on Vertex AI in a header field. Both APIs
    serve a request that asks for none as a standard one."""
    name = either(pairs, "serviceTier")
    tier = (pairs_of.text(pairs, name) or "").lower() if name else ""
    for field, value in headers or ():
        if field == _TIER_FIELD and tier in ("", "unspecified", _STANDARD):
            tier = value.decode("latin-1").lower()
    return _STANDARD if tier in ("", "unspecified") else tier[:_TIER_CHARACTERS_MAX]


def why_unbounded(request: Request) -> str:
    """Return why no number bounds the answer: it may hold more than text, and no cap is known to limit that. Empty
    where it is text alone."""
    name = either(request.config, "responseModalities")
    raw = pairs_of.member(request.config, name) if name else None
    if raw is None:
        is_text = _DRAWING.search(request.model) is None
    elif memoryview(raw)[0] == _QUOTE:
        is_text = bytes(raw) == _TEXT
    else:
        is_text = all(bytes(one) == _TEXT for one in pairs_of.read_items(raw, f"'{name}'"))
    return "" if is_text else _DRAWN


def listed(raw: RawJson, where: str, at: int = -1) -> list[Pairs]:
    """Return the members of each object of a list, or of the one object that stands for it."""
    if memoryview(raw)[0] == _BRACE:
        return [pairs_of.read_object(raw, where, at)]
    return pairs_of.read_objects(raw, where, at)


def read_config(request: Request) -> tuple[int | None, int]:
    """Return the output cap of each candidate, None where there is none, and the number of candidates."""
    pairs = request.pairs
    if not (name := either(pairs, "generationConfig")):
        return None, 1
    request.config_name = name
    raw = pairs_of.member(pairs, name)
    if raw is None:
        return None, 1
    config = request.config = pairs_of.read_object(raw, f"'{name}'")
    if name := either(config, "maxOutputTokens"):
        request.cap_name = name
    cap = pairs_of.integer(config, request.cap_name, least=1)
    choices = None
    if name := either(config, "candidateCount"):
        choices = pairs_of.integer(config, name, least=1, most=CANDIDATES_MAX)
    if (name := either(config, "thinkingConfig")) and (raw := pairs_of.member(config, name)) is not None:
        thinking = pairs_of.read_object(raw, f"'{name}'")
        if member := either(thinking, "thinkingBudget"):
            # -1: the model thinks as long as it likes, within the cap.
            request.thinking_budget = pairs_of.integer(thinking, member, least=-1)
            request.thinking = name, thinking, member
    return cap, choices or 1


def _read_offered(raw: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the names in `tools`, those of the service in snake case, and whether the service runs one of them."""
    names: list[str] = []
    is_hosted = False
    for index, tool in enumerate(listed(raw, "'tools'")):
        declared = either(tool, "functionDeclarations")
        for name in tool:
            value = pairs_of.member(tool, name)
            if value is None:
                continue
            if name != declared:
                names.append(snake_case(name) or malformed(f"'tools'[{index}] names no tool"))
                # A computer is used by the client, as a function is called.
                is_hosted = is_hosted or names[-1] != "computer_use"
                continue
            for function in listed(value, "'tools'", index):
                called = pairs_of.text(function, "name", "'tools'", index)
                names.append(called or malformed(f"'tools'[{index}] has a function without a name"))
    return tuple(names), is_hosted


offered = remembered(_read_offered)


def is_input_hidden(request: Request, contents: list[Pairs] | None) -> bool:
    """Say whether a part brings input whose tokens nothing here bounds: sound, video, files, and images for a model
    that no published rule bounds them for. Others are added to `image_tokens`."""
    pairs = request.pairs
    is_hidden = False
    if (name := either(pairs, "systemInstruction")) and (raw := pairs_of.member(pairs, name)) is not None:
        # Some clients send bare text, which the API takes too.
        is_hidden = memoryview(raw)[0] != _QUOTE and _hides(listed(raw, f"'{name}'"), request, f"'{name}'")
    if contents is None:
        raw = pairs_of.member(pairs, "contents") if "contents" in pairs else None
        if raw is None:
            return is_hidden
        contents = listed(raw, "'contents'")
    return _hides(contents, request, "'contents'") or is_hidden


def _hides(contents: list[Pairs], request: Request, where: str) -> bool:
    is_hidden = False
    for index, content in enumerate(contents):
        raw = pairs_of.member(content, "parts") if "parts" in content else None
        if raw is not None and not _is_text_alone(bytes(raw)):
            for part in listed(raw, where, index):
                is_hidden = _is_hiding_part(part, request, where, index) or is_hidden
    return is_hidden


def _is_text_alone(parts: bytes) -> bool:
    """Say whether parts are one text and nothing else, as most contents are: where that is cheap to prove.

    The first quote behind that which opens the text is the last of all, so no other member can stand there.
    """
    return parts[:10] == _TEXT_BEGINS and parts.find(b'"', 10) == len(parts) - 3 and parts[-2:] == b"}]"


def _is_hiding_part(part: Pairs, request: Request, where: str, at: int) -> bool:
    is_hidden = False
    for name in part:
        camel = _CAMEL.sub(lambda found: found.group(1).upper(), name) if "_" in name else name
        if camel in _TEXT_PARTS or pairs_of.member(part, name) is None:
            continue
        is_hidden = not _is_shown(camel, part[name], request, where, at) or is_hidden
    return is_hidden


def _is_shown(name: str, raw: RawJson, request: Request, where: str, at: int) -> bool:
    if name == "inlineData":
        return _is_image_bounded(raw, request, where, at)
    if name == "functionResponse":
        # It may hold parts of its own, with images in them.
        return "parts" not in pairs_of.read_object(raw, where, at)
    # A level is within the most of an image; a number of tokens is what it says.
    return name == "mediaResolution" and not either(pairs_of.read_object(raw, where, at), "numTokens")


def _is_image_bounded(raw: RawJson, request: Request, where: str, at: int) -> bool:
    """Say whether data is an image whose tokens are bounded, and add them. Its bytes cost none themselves."""
    blob = pairs_of.read_object(raw, where, at)
    kind = either(blob, "mimeType")
    if not kind or pairs_of.text(blob, kind, where, at) not in _IMAGES:
        return False
    most = image_tokens_max(request.model)
    data = pairs_of.member(blob, "data") if "data" in blob else None
    if most is None or data is None or memoryview(data)[0] != _QUOTE:
        return False
    request.image_tokens += most
    request.image_bytes += data_bytes(data)
    return True


def hidden_embeddings(request: Request) -> int:
    """Return in how many requests something other than text is to be embedded, all of them where one is so: a model
    reads each with a window of its own."""
    pairs = request.pairs
    is_hidden = False
    requests = [pairs]
    if (raw := pairs_of.member(pairs, "requests") if "requests" in pairs else None) is not None:
        requests = listed(raw, "'requests'")
    for index, one in enumerate(requests):
        content = pairs_of.member(one, "content") if "content" in one else None
        if content is None:
            is_hidden = True
        elif memoryview(content)[0] != _QUOTE:
            is_hidden = _hides(listed(content, "'requests'", index), request, "'content'") or is_hidden
    return len(requests) if is_hidden else 0
