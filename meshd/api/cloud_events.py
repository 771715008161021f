"""CloudEvents 1.0 over HTTP, read and written: binary mode (`ce-` fields), structured and batched JSON. Pure.

Sources: CloudEvents 1.0.2 ("Context Attributes", "Naming Conventions"), its HTTP Protocol Binding (3.1 binary, 3.2
structured, 3.3 batched; 3.1.3.2 header values) and its JSON Event Format (2 attributes, 3.1 data, 4 batches).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from meshd.dialects.json_pairs import member, read_items, read_object
from meshd.engines.bus_event import completed
from meshd.engines.bus_moment import unix_ns
from meshd.engines.bus_port import Event, EventMalformed
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

STRUCTURED: Final = "application/cloudevents+json"
BATCHED: Final = "application/cloudevents-batch+json"
JSON: Final = "application/json"
VERSION: Final = "1.0"
BATCH_MAX: Final = 1000
PREFIX: Final = "ce-"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_FIELDS: Final = {
    "id": "id",
    "source": "source",
    "type": "type",
    "subject": "subject",
    "datacontenttype": "data_content_type",
    "dataschema": "data_schema",
    "dataref": "data_ref",
    "partitionkey": "partition_key",
}
"""By an attribute's name in CloudEvents or in its extensions (Dataref, Partitioning), our own."""
_NAMES: Final = {field: name for name, field in _FIELDS.items()}
_TEXTS: Final = frozenset({*_FIELDS, "specversion", "time"})
"""Of which the specification says that they are texts; an extension may be a number or a boolean."""
_OURS: Final = frozenset({"correlationid", "causationid", "sequence"})
"""Written by the sidecar: what a publisher puts there is passed over."""
_NAME: Final = re.compile(r"[a-z0-9]{1,20}")
# RFC 3339, as section "Type System" has it.
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - frozenset(b'"%')
"""Bytes that stand for themselves in a header (HTTP Protocol Binding, 3.1.3.2)."""


def is_json(content_type: str) -> bool:
    """Say whether data of a type is JSON (JSON Event Format, 3.1): `*/json`, `*/*+json`, and where none is said."""
    media = content_type.partition(";")[0].strip().lower()
    return not media or media.endswith(("/json", "+json"))


# ---------------------------------------------------------------------- reading


def read(topic: str, headers: Iterable[tuple[str, str]], body: bytes) -> list[Event]:
    """Return the events of a request to `topic`, one unless they are batched. Names of headers are in lower case.

    Raises EventMalformed, naming what is missing or not as the specification has it.
    """
    fields: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(PREFIX) or name == "content-type":
            if name in fields:
                raise EventMalformed(name, "stands more than once")
            fields[name] = value
    content_type = fields.pop("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == STRUCTURED:
        return [_from_json(topic, _utf8(body), "event")]
    if media == BATCHED:
        try:
            found = read_items(_utf8(body), "this")
        except Refused as refused:
            raise EventMalformed("event", f"a batch is a JSON array of events, and {refused.message}") from None
        if len(found) > BATCH_MAX:
            raise EventMalformed("event", f"a batch has at most {BATCH_MAX} events, and this one {len(found)}")
        return [_from_json(topic, one, f"event[{index}]") for index, one in enumerate(found)]
    if media.startswith("application/cloudevents"):
        raise EventMalformed("content-type", f"{media[:80]} is not read here: {STRUCTURED} and {BATCHED} are")
    attributes = {name.removeprefix(PREFIX): _from_header(name, value) for name, value in fields.items()}
    if "datacontenttype" in attributes:
        raise EventMalformed("ce-datacontenttype", "the type of the data is the request's own Content-Type")
    if content_type:
        attributes["datacontenttype"] = content_type
    return [_event(topic, attributes, body, PREFIX)]


def _utf8(body: bytes) -> bytes:
    if not body.isascii():
        # Strings that are passed over unread are not looked at.
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise EventMalformed("event", f"is no JSON: it is not UTF-8 ({error.reason}, byte {error.start})") from None
    return body


def _from_json(topic: str, raw: Any, where: str) -> Event:
    """Return the event that a JSON object is. Its data is kept as it was written, without the blanks."""
    try:
        found = read_object(raw, where)
    except Refused as refused:
        raise EventMalformed(where, refused.message.removeprefix(where).removeprefix(":").strip()) from None
    data, encoded = found.pop("data", None), member(found, "data_base64")
    found.pop("data_base64", None)
    if data is not None and encoded is not None:
        raise EventMalformed(where, "has both data and data_base64")
    read = {name: _value(f"{where}.{name}", value) for name, value in found.items()}
    attributes = {name: _text(where, name, value) for name, value in read.items() if value is not None}
    if encoded is not None:
        return _event(topic, attributes, _from_base64(where, _value(f"{where}.data_base64", encoded)), f"{where}.")
    if data is None:
        return _event(topic, attributes, b"", f"{where}.")
    value = _value(f"{where}.data", data)
    if isinstance(value, str) and not is_json(attributes.get("datacontenttype", "")):
        return _event(topic, attributes, value.encode(), f"{where}.")
    return _event(topic, attributes, msgspec.json.format(bytes(data), indent=-1), f"{where}.")


def _value(name: str, raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EventMalformed(name[:80], f"is no JSON: {str(error)[:200]}") from None


def _from_base64(where: str, encoded: Any) -> bytes:
    try:
        return b64decode(encoded.encode("ascii"), validate=True)
    except (AttributeError, ValueError):
        raise EventMalformed(f"{where}.data_base64", "is no base64") from None


def _text(where: str, name: str, value: Any) -> str:
    """Return an attribute's value in its canonical text (section "Type System")."""
    if isinstance(value, str):
        return value
    if name in _TEXTS:
        raise EventMalformed(f"{where}.{name}", "is no JSON string")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise EventMalformed(f"{where}.{name}"[:80], "is neither text, number nor boolean")


def _from_header(name: str, value: str) -> str:
    value = value.strip(" \t")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError:
        raise EventMalformed(name[:80], "is no UTF-8 in percent-encoding") from None


def _event(topic: str, attributes: dict[str, str], data: bytes, prefix: str) -> Event:
    for name in _REQUIRED:
        if not attributes.get(name):
            raise EventMalformed(f"{prefix}{name}", "is missing: CloudEvents 1.0 requires it")
    if attributes["specversion"] != VERSION:
        raise EventMalformed(
            f"{prefix}specversion", f"{attributes['specversion'][:20]!r} is not read here: {VERSION} is"
        )
    known: dict[str, Any] = {}
    extensions: dict[str, str] = {}
    for name, value in attributes.items():
        if not value and name in _FIELDS:
            raise EventMalformed(f"{prefix}{name}", "is empty: leave it out")
        if name in _FIELDS:
            known[_FIELDS[name]] = value
        elif name == "time":
            known["time_ns"] = unix_ns(f"{prefix}time", value)
        elif name != "specversion" and name not in _OURS:
            if _NAME.fullmatch(name) is None:
                raise EventMalformed(f"{prefix}{name[:40]}", "is no name of lower-case letters and digits, at most 20")
            extensions[name] = value
    made = Event(topic=topic, data=data, extensions=extensions, **known)
    try:
        # The bus would say so too, and not of which of a batch.
        completed(made, 0, str)
    except EventMalformed as error:
        field = error.field
        place = f"{prefix}{_NAMES[field]}" if field in _NAMES else f"{prefix.removeprefix(PREFIX)}{field}"
        raise EventMalformed(place, error.text) from None
    return made


# ---------------------------------------------------------------------- writing


def attributes_of(event: Event) -> dict[str, str]:
    """Return an event's attributes, extensions included, by their names in CloudEvents."""
    found = {"specversion": VERSION}
    for name, field in _FIELDS.items():
        if value := getattr(event, field):
            found[name] = value
    found["type"] = event.type or event.topic
    if event.time_ns:
        found["time"] = _to_time(event.time_ns)
    ours = {
        "correlationid": event.correlation_id,
        "causationid": event.causation_id,
        "sequence": event.sequence,
    }
    found.update({name: value for name, value in ours.items() if value})
    # Never in the place of what the sidecar writes.
    return {**event.extensions, **found}


def binary(event: Event) -> list[tuple[bytes, bytes]]:
    """Return the header fields of an event in binary mode; its data is the body."""
    found = attributes_of(event)
    content_type = found.pop("datacontenttype", JSON)
    fields = [(b"content-type", to_header(content_type, is_encoded=False))]
    fields += [(f"{PREFIX}{name}".encode(), to_header(value)) for name, value in found.items()]
    return fields


def to_header(value: str, *, is_encoded: bool = True) -> bytes:
    """Return a text as a header's value has it: percent-encoded where a byte does not stand for itself. A media type
    is never encoded; what no header can hold is left out of it."""
    if not is_encoded:
        return bytes(one for one in value.encode("latin-1", "ignore") if 0x20 <= one < 0x7F)
    return b"".join(
        bytes((one,)) if one in _PLAIN else b"%%%02X" % one for one in value.encode("utf-8", "surrogatepass")
    )


def structured(event: Event, *, is_verbatim: bool = False) -> dict[str, Any]:
    """Return an event as the JSON Event Format has it, ready to be encoded. Verbatim, JSON data is a msgspec.Raw that
    holds it as it was published, on one line: to decode it rounds numbers, and loses all but the last of equal keys."""
    found: dict[str, Any] = attributes_of(event)
    if not event.data:
        return found
    content_type = found.setdefault("datacontenttype", JSON)
    try:
        if is_json(content_type):
            data = msgspec.json.decode(event.data)
            found["data"] = msgspec.Raw(msgspec.json.format(event.data, indent=-1)) if is_verbatim else data
        elif content_type.lower().startswith("text/"):
            found["data"] = event.data.decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    if "data" not in found:
        found["data_base64"] = b64encode(event.data).decode()
    return found


def _to_time(time_ns: int) -> str:
    seconds, nanos = divmod(time_ns, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{nanos:09}".rstrip("0").rstrip(".") + "Z" if nanos else f"{text}Z"
