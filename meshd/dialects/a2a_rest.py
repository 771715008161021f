"""A2A's REST binding: which operation a method and a path are, and what stands in the path. Both 0.3 and 1.0.

The operation has the name that JSON-RPC gives it, so that a rule holds whichever way the agent is called.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from meshd.call import Headers

VERSION_FIELD: Final = b"a2a-version"
_VERSION_NAME: Final = VERSION_FIELD.decode()
"""In the query, which 1.0 allows too (section 3.6)."""
_OVERRIDES: Final = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""Fields that make a request another than its method says, for some servers."""

_PLACE: Final = re.compile(
    r"(?P<v1>/v1)?/(?:message:(?P<send>send|stream)"
    r"|tasks(?:/(?P<task>[^/]+?)(?P<deed>:cancel|:subscribe|/pushNotificationConfigs(?:/(?P<config>[^/]+))?)?)?"
    r"|(?P<card>extendedAgentCard|card))/?\Z"
)
_SLASHES: Final = re.compile(r"//+")

_SENDS: Final = {"send": ("SendMessage", "message/send"), "stream": ("SendStreamingMessage", "message/stream")}
_OF_TASK: Final[dict[tuple[str, str], tuple[str, str]]] = {
    ("GET", ""): ("GetTask", "tasks/get"),
    ("POST", ":cancel"): ("CancelTask", "tasks/cancel"),
    ("GET", ":subscribe"): ("SubscribeToTask", "tasks/resubscribe"),
    ("POST", ":subscribe"): ("SubscribeToTask", "tasks/resubscribe"),
}
_OF_CONFIG: Final[dict[tuple[str, bool], tuple[str, str]]] = {
    ("POST", False): ("CreateTaskPushNotificationConfig", "tasks/pushNotificationConfig/set"),
    ("GET", False): ("ListTaskPushNotificationConfigs", "tasks/pushNotificationConfig/list"),
    ("GET", True): ("GetTaskPushNotificationConfig", "tasks/pushNotificationConfig/get"),
    ("DELETE", True): ("DeleteTaskPushNotificationConfig", "tasks/pushNotificationConfig/delete"),
}


class Place(NamedTuple):
    """What a method and a path name."""

    new: str
    """The method of JSON-RPC in 1.0, and, next, in 0.3."""
    old: str
    is_below_v1: bool
    """The path has the `/v1` that 0.3 puts before its own; an agent of 1.0 may stand below such a path too."""
    task: str = ""
    config: str = ""

    def methods(self, headers: Headers, path: str) -> tuple[str, ...]:
        """Return the operation's name, by the version that the caller says, or else by the path; and its other name,
        where what is said of the version is not all of one: agents differ in what of it they believe."""
        said = [value.strip() for name, value in headers if name == VERSION_FIELD]
        said += [value.strip().encode() for name, value in query_of(path) if name.lower() == _VERSION_NAME]
        found = [self.old if value.startswith(b"0.") else self.new for value in said if value]
        return tuple(dict.fromkeys([*found, self.old if self.is_below_v1 else self.new]))


def place_of(method: str, path: str) -> Place | None:
    """Return what a request is for; None where it is none of the binding's.

    Escapes in the path are read as servers read them, so that another spelling is no other operation.
    """
    found = _PLACE.search(read_path(path))
    if found is None:
        return None
    is_below, task, deed = found["v1"] is not None, found["task"] or "", found["deed"] or ""
    names: tuple[str, str] | None
    if found["send"]:
        names = _SENDS[found["send"]] if method == "POST" else None
    elif found["card"]:
        names = ("GetExtendedAgentCard", "agent/getAuthenticatedExtendedCard") if method == "GET" else None
    elif not task:
        names = ("ListTasks", "tasks/list") if method == "GET" else None
    elif deed.startswith("/"):
        names = _OF_CONFIG.get((method, found["config"] is not None))
    else:
        names = _OF_TASK.get((method, deed))
    return None if names is None else Place(*names, is_below, task, found["config"] or "")


def read_path(path: str) -> str:
    """Return a path as servers read it: without its query, its escapes and doubled slashes."""
    bare = path.partition("?")[0]
    if "%" in bare:
        bare = unquote(bare, errors="replace")
    return _SLASHES.sub("/", bare) if "//" in bare else bare


def query_of(path: str) -> list[tuple[str, str]]:
    """Return what stands in a path's query, in its order."""
    return parse_qsl(path.partition("?")[2], keep_blank_values=True)


def is_overridden(headers: Headers) -> bool:
    """Say whether a field may make the request another than its method says."""
    return any(name in _OVERRIDES for name, _ in headers)
