"""What answers of OpenAI responses, images and audio may hold; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec

# Null counts as absent too, but is told from it by who reads it: msgspec knows no Raw that may be None.
_ABSENT = msgspec.Raw()


class StreamEvent(msgspec.Struct, gc=False):
    type: Any = None
    sequence_number: Any = None
    output_index: Any = None
    content_index: Any = None
    item_id: Any = None
    delta: Any = None
    item: msgspec.Raw = _ABSENT
    part: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    usage: Any = None
    error: Any = None
    code: Any = None


class Item(msgspec.Struct, gc=False):
    """An item of the output, begun or whole, or a part of one."""

    id: Any = None
    type: Any = None
    name: Any = None


class Response(msgspec.Struct, gc=False):
    """What a `response` says but for its output; an answer about images or audio has the `usage` alone."""

    id: Any = None
    model: Any = None
    status: Any = None
    incomplete_details: Any = None
    error: Any = None
    usage: Any = None
    tool_usage: Any = None
    service_tier: Any = None


class WholeResponse(Response, gc=False):
    """A plain answer."""

    output: Any = None
