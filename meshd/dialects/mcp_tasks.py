"""MCP's tasks extension (io.modelcontextprotocol/tasks, 2026-07-28), for a tool call that waits for a person.

A client that declares the extension with its call may be answered with a task in the result's place; it asks for that
task with `tasks/get` until the result is there. The extension has no `tasks/result` and no `tasks/list`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.dialects.held_task import APPROVAL_KEY, POLL_MS, HeldTask, Stage, messages_in, moment, rpc_answer

GET: Final = "tasks/get"
UPDATE: Final = "tasks/update"
CANCEL: Final = "tasks/cancel"
METHODS: Final = frozenset({GET, UPDATE, CANCEL})
EXTENSION: Final = "io.modelcontextprotocol/tasks"
CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
"""In `_meta` of every request since 2026-07-28."""
_INTERNAL: Final = -32603


def declares_tasks(capabilities: Any) -> bool:
    """Say whether a client takes a task for an answer, by what it declares."""
    extensions = capabilities.get("extensions") if isinstance(capabilities, dict) else None
    return isinstance(extensions, dict) and isinstance(extensions.get(EXTENSION), dict)


def created(id: bytes, task: HeldTask) -> bytes:
    """Return the answer to the call itself: that there is a task now."""
    return rpc_answer(id, {"resultType": "task", **_shown(task)})


def answered(id: bytes, method: str, task: HeldTask) -> bytes:
    """Return the answer to a request that names a task."""
    if method != GET:
        return rpc_answer(id, {"resultType": "complete"})
    return rpc_answer(id, {"resultType": "complete", **_detailed(task)})


def outcome_of(body: bytes, *, is_stream: bool) -> tuple[bytes, str]:
    """Return what a server answered, as `HeldTask.answer` has it, and the id of the task that it made of the call."""
    message = next(iter(messages_in(body, is_stream=is_stream)[-1:]), None)
    if message is None:
        return _failure("The server's answer is no JSON-RPC message"), ""
    result = message.get("result")
    if "error" in message or not isinstance(result, dict):
        error = message.get("error")
        return msgspec.json.encode({"error": error if isinstance(error, dict) else {}}), ""
    kind = result.get("resultType")
    if kind == "task" and isinstance(result.get("taskId"), str):
        return b"", result["taskId"]
    if kind == "input_required":
        # What it asks for can only come with another leg of the call, which is another call to a person who decides.
        return _failure("The tool asks for more before it can run, and a call that was held as a task cannot ask"), ""
    return msgspec.json.encode({"result": result}), ""


def _failure(words: str) -> bytes:
    return msgspec.json.encode({"error": {"code": _INTERNAL, "message": words}})


def _shown(task: HeldTask, status: str = "working") -> dict[str, Any]:
    return {
        "taskId": task.id,
        "status": status,
        "statusMessage": task.words,
        "createdAt": moment(task.asked_s),
        "lastUpdatedAt": moment(task.changed_s),
        "ttlMs": int(task.ttl_s * 1000),
        "pollIntervalMs": POLL_MS,
        "_meta": {APPROVAL_KEY: task.approval},
    }


def _detailed(task: HeldTask) -> dict[str, Any]:
    stage = task.stage
    if stage in (Stage.WAITING, Stage.RUNNING):
        return _shown(task)
    if stage is Stage.CANCELLED:
        return _shown(task, "cancelled")
    if stage is Stage.ENDED:
        answer = msgspec.json.decode(task.answer)
        if "result" in answer:
            return {**_shown(task, "completed"), "result": answer["result"]}
        return {**_shown(task, "failed"), "error": answer["error"]}
    if stage is Stage.FAILED:
        return {**_shown(task, "failed"), "error": {"code": _INTERNAL, "message": task.words}}
    # `failed` is for errors of the protocol alone; what a person says is for the model.
    result = {"resultType": "complete", "content": [{"type": "text", "text": task.words}], "isError": True}
    return {**_shown(task, "completed"), "result": result}
