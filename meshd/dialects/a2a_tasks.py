"""A2A's tasks in AUTH_REQUIRED, for a message that waits for a person. Both 0.3 and 1.0 are written.

Whoever sends a message may be answered with a task. While a person is waited for its state is AUTH_REQUIRED, which the
protocol lets every answer to a message be. Once the agent has answered, the task says what the agent says, under the
id that the caller knows.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.dialects.held_task import APPROVAL_KEY, HeldTask, Stage, moment, renamed

GETS: Final = frozenset({"GetTask", "tasks/get"})
CANCELS: Final = frozenset({"CancelTask", "tasks/cancel"})
SUBSCRIBES: Final = frozenset({"SubscribeToTask", "tasks/resubscribe"})
METHODS: Final = GETS | CANCELS | SUBSCRIBES
SENDS: Final = frozenset({"SendMessage", "SendStreamingMessage", "message/send", "message/stream"})
STREAMED: Final = frozenset({"SendStreamingMessage", "message/stream"}) | SUBSCRIBES
_WRAPPING: Final = frozenset({"SendMessage", "SendStreamingMessage", "SubscribeToTask"})
"""Methods of 1.0 whose answers may be a task or something else, and say which."""
NOT_CANCELABLE: Final = -32002

_STATES: Final = {
    Stage.WAITING: "AUTH_REQUIRED",
    Stage.RUNNING: "WORKING",
    Stage.DENIED: "REJECTED",
    Stage.CANCELLED: "CANCELED",
    Stage.FAILED: "FAILED",
    Stage.ENDED: "COMPLETED",
}
_INTERRUPTED: Final = frozenset({"input-required", "input_required", "auth-required", "auth_required"})
_OVER: Final = frozenset({"completed", "failed", "canceled", "rejected"})


def is_old(method: str) -> bool:
    """Say whether a method is of 0.3, whose names have a slash."""
    return "/" in method


def answered(method: str, task: HeldTask) -> dict[str, Any]:
    """Return the result that answers a message with the task that there is now, or a request that names one."""
    shown = task_of(task, is_old=is_old(method))
    return {"task": shown} if method in _WRAPPING else shown


def outcome_of(messages: list[dict[str, Any]]) -> tuple[bytes, str]:
    """Return what an agent answered, as `HeldTask.answer` has it, and the id of its task where that is not over."""
    if not messages:
        return _failure("The agent's answer is no message of A2A"), ""
    found: dict[str, Any] = {}
    for message in messages:
        if "error" in message:
            error = message["error"] if isinstance(message["error"], dict) else {}
            return msgspec.json.encode({"error": error}), ""
        if isinstance(message.get("result"), dict):
            found = folded(found, message["result"])
    return outcome_in(found)


def outcome_in(found: dict[str, Any]) -> tuple[bytes, str]:
    """Return the same of a message or task that was said whole."""
    answer = msgspec.json.encode({"result": found})
    if _is_message(found) or _state_of(found) in _OVER:
        return answer, ""
    id = found.get("id")
    if not isinstance(id, str) or not id or not isinstance(found.get("status"), dict):
        return _failure("The agent's answer is neither a message nor a task"), ""
    return answer, id


def _failure(words: str) -> bytes:
    return msgspec.json.encode({"error": {"code": -32603, "message": words}})


def task_of(task: HeldTask, *, is_old: bool) -> dict[str, Any]:
    """Return a task as `GetTask` answers it."""
    if task.stage is not Stage.ENDED:
        return _shown(task, _text(task, task.words, is_old=is_old), is_old=is_old)
    answer = msgspec.json.decode(task.answer)
    result = answer.get("result")
    if result is None:
        words = str(answer["error"].get("message") or "The agent answered with an error")
        failed = task._replace(stage=Stage.FAILED)
        shown = _shown(failed, _text(task, words, is_old=is_old), is_old=is_old)
        shown["metadata"]["meshd/error"] = answer["error"]
        return shown
    if _is_message(result):
        context = result.get("contextId") or task.context_id
        said = {**result, "taskId": task.id, "contextId": context}
        shown = {**_shown(task, said, is_old=is_old), "contextId": context}
        shown["history"] = [said]
        return shown
    return under(result, task.id)


def event_of(task: HeldTask, *, is_old: bool, is_first: bool) -> dict[str, Any]:
    """Return the event of a stream that says where a task stands: the task itself as the first, then its status."""
    shown = _shown(task, _text(task, task.words, is_old=is_old), is_old=is_old)
    if is_first:
        return shown if is_old else {"task": shown}
    return _status_event(task, shown["status"], is_old=is_old)


def followed(task: HeldTask, *, is_old: bool) -> list[dict[str, Any]]:
    """Return the events that tell whoever follows a task where it stands now: its status, or what its agent said."""
    if task.stage is not Stage.ENDED:
        return [event_of(task, is_old=is_old, is_first=False)]
    result = msgspec.json.decode(task.answer).get("result")
    if result is not None:
        return events_of(task, result, is_old=is_old)
    return [_status_event(task, task_of(task, is_old=is_old)["status"], is_old=is_old)]


def events_of(task: HeldTask, result: dict[str, Any], *, is_old: bool) -> list[dict[str, Any]]:
    """Return what an agent says in its stream as events of a task that its caller has been shown: a stream has one."""
    said = _unwrapped(result)
    if _is_message(said):
        over = task._replace(stage=Stage.ENDED)
        message = {**said, "taskId": task.id, "contextId": said.get("contextId") or task.context_id}
        return [_status_event(over, _shown(over, message, is_old=is_old)["status"], is_old=is_old)]
    if "id" not in said:
        return [renamed(result, lambda _: task.id)]
    events = []
    artifacts = said.get("artifacts")
    for artifact in _listed(artifacts):
        event = {"taskId": task.id, "contextId": said.get("contextId") or task.context_id, "artifact": artifact}
        events.append({"kind": "artifact-update", **event} if is_old else {"artifactUpdate": event})
    status = renamed(said.get("status") or {}, lambda _: task.id)
    events.append(_status_event(task._replace(context_id=said.get("contextId") or ""), status, is_old=is_old))
    return events


def _status_event(task: HeldTask, status: dict[str, Any], *, is_old: bool) -> dict[str, Any]:
    event = {"taskId": task.id, "contextId": task.context_id, "status": status}
    if not is_old:
        return {"statusUpdate": event}
    state = _state_of({"status": status})
    return {"kind": "status-update", "final": state in _OVER or state in _INTERRUPTED, **event}


def under(result: dict[str, Any], id: str) -> dict[str, Any]:
    """Return an agent's task under the id that its caller knows."""
    shown: dict[str, Any] = renamed(result, lambda _: id)
    return {**shown, "id": id}


def _shown(task: HeldTask, message: dict[str, Any], *, is_old: bool) -> dict[str, Any]:
    state = _STATES[task.stage]
    status = {
        "state": state.lower().replace("_", "-") if is_old else f"TASK_STATE_{state}",
        "message": message,
        "timestamp": moment(task.changed_s),
    }
    shown = {"id": task.id, "contextId": task.context_id, "status": status}
    shown["metadata"] = {APPROVAL_KEY: task.approval}
    return {"kind": "task", **shown} if is_old else shown


def _text(task: HeldTask, words: str, *, is_old: bool) -> dict[str, Any]:
    said = {"messageId": f"{task.id}-{task.stage.value}", "taskId": task.id, "contextId": task.context_id}
    if is_old:
        return {"kind": "message", "role": "agent", "parts": [{"kind": "text", "text": words}], **said}
    return {"role": "ROLE_AGENT", "parts": [{"text": words}], **said}


def _is_message(result: dict[str, Any]) -> bool:
    return "messageId" in result


def _state_of(task: dict[str, Any]) -> str:
    status = task.get("status")
    state = status.get("state") if isinstance(status, dict) else None
    return str(state).removeprefix("TASK_STATE_").lower()


def folded(before: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Return what a stream has said so far: its message, or its task with what came to it. 1.0 wraps each event."""
    result = _unwrapped(result)
    if "messageId" in result or ("id" in result and "status" in result):
        return result
    now = dict(before)
    if isinstance(result.get("status"), dict):
        now["status"] = result["status"]
    elif isinstance(result.get("artifact"), dict):
        now["artifacts"] = _gathered(before.get("artifacts"), result)
    now.setdefault("id", result.get("taskId", ""))
    now.setdefault("contextId", result.get("contextId", ""))
    if result.get("kind"):
        now.setdefault("kind", "task")
    return now


def _unwrapped(result: dict[str, Any]) -> dict[str, Any]:
    if "kind" not in result and "id" not in result and "messageId" not in result:
        for name in ("task", "message", "statusUpdate", "artifactUpdate"):
            wrapped = result.get(name)
            if isinstance(wrapped, dict):
                return wrapped
    return result


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _gathered(before: Any, event: dict[str, Any]) -> list[Any]:
    artifacts = _listed(before)
    new = event["artifact"]
    if event.get("append"):
        for at, one in enumerate(artifacts):
            if isinstance(one, dict) and one.get("artifactId") == new.get("artifactId"):
                artifacts[at] = {**one, "parts": [*_listed(one.get("parts")), *_listed(new.get("parts"))]}
                return artifacts
    return [*artifacts, new]
