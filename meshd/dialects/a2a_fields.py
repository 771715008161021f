"""A2A's requests as protobuf writes them: which fields they have, of 0.3 and of 1.0.

Only what decides, and what people are shown of a message, is named; the rest is kept by its number. A test holds these
tables against the official descriptors.
"""

from __future__ import annotations

from typing import Final

from meshd.dialects.protobuf import BYTES, FLAG, NUMBER, STRUCT, VALUE, Member, Table

_ROLES: Final = ("ROLE_UNSPECIFIED", "ROLE_USER", "ROLE_AGENT")
_TIME: Final[Table] = {1: Member("seconds", NUMBER), 2: Member("nanos", NUMBER)}

# ---------------------------------------------------------------------- 1.0

_LOGIN: Final[Table] = {1: Member("scheme"), 2: Member("credentials")}
_PUSH: Final[Table] = {
    1: Member("tenant"), 2: Member("id"), 3: Member("taskId"), 4: Member("url"), 5: Member("token"),
    6: Member("authentication", _LOGIN),
}  # fmt: skip
PART: Final[Table] = {
    1: Member("text"), 2: Member("raw", BYTES), 3: Member("url"), 4: Member("data", VALUE),
    5: Member("metadata", STRUCT), 6: Member("filename"), 7: Member("mediaType"),
}  # fmt: skip
MESSAGE: Final[Table] = {
    1: Member("messageId"), 2: Member("contextId"), 3: Member("taskId"), 4: Member("role", _ROLES),
    5: Member("parts", PART, is_repeated=True), 6: Member("metadata", STRUCT),
    7: Member("extensions", is_repeated=True), 8: Member("referenceTaskIds", is_repeated=True),
}  # fmt: skip
_CONFIGURATION: Final[Table] = {
    1: Member("acceptedOutputModes", is_repeated=True), 2: Member("taskPushNotificationConfig", _PUSH),
    3: Member("historyLength", NUMBER), 4: Member("returnImmediately", FLAG),
}  # fmt: skip
_SEND: Final[Table] = {
    1: Member("tenant"), 2: Member("message", MESSAGE), 3: Member("configuration", _CONFIGURATION),
    4: Member("metadata", STRUCT),
}  # fmt: skip
_TASK: Final[Table] = {1: Member("tenant"), 2: Member("id"), 3: Member("historyLength", NUMBER)}
_TASK_CONFIG: Final[Table] = {1: Member("tenant"), 2: Member("taskId"), 3: Member("id")}

NEW: Final[dict[str, Table]] = {
    "SendMessage": _SEND,
    "SendStreamingMessage": _SEND,
    "GetTask": _TASK,
    "ListTasks": {
        1: Member("tenant"), 2: Member("contextId"), 4: Member("pageSize", NUMBER), 5: Member("pageToken"),
        6: Member("historyLength", NUMBER), 7: Member("statusTimestampAfter", _TIME),
        8: Member("includeArtifacts", FLAG),
    },
    "CancelTask": {1: Member("tenant"), 2: Member("id"), 3: Member("metadata", STRUCT)},
    "SubscribeToTask": {1: Member("tenant"), 2: Member("id")},
    "CreateTaskPushNotificationConfig": _PUSH,
    "GetTaskPushNotificationConfig": _TASK_CONFIG,
    "ListTaskPushNotificationConfigs": {
        4: Member("tenant"), 1: Member("taskId"), 2: Member("pageSize", NUMBER), 3: Member("pageToken"),
    },
    "DeleteTaskPushNotificationConfig": _TASK_CONFIG,
    "GetExtendedAgentCard": {1: Member("tenant")},
}  # fmt: skip
"""Of `lf.a2a.v1.A2AService`, by its methods, which are also those of JSON-RPC."""

# ---------------------------------------------------------------------- 0.3

_OLD_LOGIN: Final[Table] = {1: Member("schemes", is_repeated=True), 2: Member("credentials")}
_OLD_PUSH: Final[Table] = {
    1: Member("id"), 2: Member("url"), 3: Member("token"), 4: Member("authentication", _OLD_LOGIN),
}  # fmt: skip
_OLD_FILE: Final[Table] = {
    1: Member("fileWithUri"), 2: Member("fileWithBytes", BYTES), 3: Member("mimeType"), 4: Member("name"),
}  # fmt: skip
_OLD_PART: Final[Table] = {
    1: Member("text"), 2: Member("file", _OLD_FILE), 3: Member("data", {1: Member("data", STRUCT)}),
    4: Member("metadata", STRUCT),
}  # fmt: skip
_OLD_MESSAGE: Final[Table] = {
    1: Member("messageId"), 2: Member("contextId"), 3: Member("taskId"), 4: Member("role", _ROLES),
    5: Member("content", _OLD_PART, is_repeated=True), 6: Member("metadata", STRUCT),
    7: Member("extensions", is_repeated=True),
}  # fmt: skip
_OLD_CONFIGURATION: Final[Table] = {
    1: Member("acceptedOutputModes", is_repeated=True), 2: Member("pushNotification", _OLD_PUSH),
    3: Member("historyLength", NUMBER), 4: Member("blocking", FLAG),
}  # fmt: skip
_OLD_SEND: Final[Table] = {
    1: Member("message", _OLD_MESSAGE), 2: Member("configuration", _OLD_CONFIGURATION), 3: Member("metadata", STRUCT),
}  # fmt: skip
_OLD_NAMED: Final[Table] = {1: Member("name")}

OLD: Final[dict[str, tuple[str, Table]]] = {
    "SendMessage": ("message/send", _OLD_SEND),
    "SendStreamingMessage": ("message/stream", _OLD_SEND),
    "GetTask": ("tasks/get", {1: Member("name"), 2: Member("historyLength", NUMBER)}),
    "CancelTask": ("tasks/cancel", _OLD_NAMED),
    "TaskSubscription": ("tasks/resubscribe", _OLD_NAMED),
    "CreateTaskPushNotificationConfig": (
        "tasks/pushNotificationConfig/set",
        {
            1: Member("parent"), 2: Member("configId"),
            3: Member("config", {1: Member("name"), 2: Member("pushNotificationConfig", _OLD_PUSH)}),
        },
    ),
    "GetTaskPushNotificationConfig": ("tasks/pushNotificationConfig/get", _OLD_NAMED),
    "ListTaskPushNotificationConfig": (
        "tasks/pushNotificationConfig/list",
        {1: Member("parent"), 2: Member("pageSize", NUMBER), 3: Member("pageToken")},
    ),
    "DeleteTaskPushNotificationConfig": ("tasks/pushNotificationConfig/delete", _OLD_NAMED),
    "GetAgentCard": ("agent/getAuthenticatedExtendedCard", {}),
}  # fmt: skip
"""Of `a2a.v1.A2AService`, by its methods: what JSON-RPC calls each, and its fields."""
