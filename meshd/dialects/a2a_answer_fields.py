"""A2A's answers of 1.0 as protobuf writes them: tasks, messages and the events of a stream.

A test holds these tables against the official descriptors.
"""

from __future__ import annotations

from typing import Final

from meshd.dialects.a2a_fields import MESSAGE, PART
from meshd.dialects.protobuf import FLAG, STRUCT, TIME, Member, Table

STATES: Final = (
    "TASK_STATE_UNSPECIFIED", "TASK_STATE_SUBMITTED", "TASK_STATE_WORKING", "TASK_STATE_COMPLETED",
    "TASK_STATE_FAILED", "TASK_STATE_CANCELED", "TASK_STATE_INPUT_REQUIRED", "TASK_STATE_REJECTED",
    "TASK_STATE_AUTH_REQUIRED",
)  # fmt: skip
_STATUS: Final[Table] = {1: Member("state", STATES), 2: Member("message", MESSAGE), 3: Member("timestamp", TIME)}
_ARTIFACT: Final[Table] = {
    1: Member("artifactId"), 2: Member("name"), 3: Member("description"), 4: Member("parts", PART, is_repeated=True),
    5: Member("metadata", STRUCT), 6: Member("extensions", is_repeated=True),
}  # fmt: skip
TASK: Final[Table] = {
    1: Member("id"), 2: Member("contextId"), 3: Member("status", _STATUS),
    4: Member("artifacts", _ARTIFACT, is_repeated=True), 5: Member("history", MESSAGE, is_repeated=True),
    6: Member("metadata", STRUCT),
}  # fmt: skip
_SENT: Final[Table] = {1: Member("task", TASK), 2: Member("message", MESSAGE)}
_STREAMED: Final[Table] = {
    **_SENT,
    3: Member(
        "statusUpdate",
        {1: Member("taskId"), 2: Member("contextId"), 3: Member("status", _STATUS), 4: Member("metadata", STRUCT)},
    ),
    4: Member(
        "artifactUpdate",
        {
            1: Member("taskId"), 2: Member("contextId"), 3: Member("artifact", _ARTIFACT), 4: Member("append", FLAG),
            5: Member("lastChunk", FLAG), 6: Member("metadata", STRUCT),
        },
    ),
}  # fmt: skip

ANSWERS: Final[dict[str, Table]] = {
    "SendMessage": _SENT,
    "SendStreamingMessage": _STREAMED,
    "SubscribeToTask": _STREAMED,
    "GetTask": TASK,
    "CancelTask": TASK,
}
"""What each method of `lf.a2a.v1.A2AService` answers, or says in its stream."""
