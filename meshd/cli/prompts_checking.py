"""What `meshd prompts test` checks.

prompt: summarise@^1.2            # or summarise, or summarise@production
cases:
  - name: short
    variables: {topic: bees}
    text:                         # what is sent
      contains: [bees]
      lacks: ["{{"]
      matches: ["^Summarise"]
      equals: Summarise bees.
      max_tokens: 50
    answer:                       # what a model says to it, through the sidecar
      upstream: openai
      model: gpt-4o-mini
      contains: [honey]
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import click
import msgspec

from meshd.prompts.document import DocumentError, read_yaml
from meshd.prompts.reference import SCHEME, BadReference, read_reference

if TYPE_CHECKING:
    from pathlib import Path

    from meshd.running import Door, Running

SUITE_BYTES_MAX: Final = 1 << 20
ANSWER_TIMEOUT_S: Final = 120.0
ANSWER_BYTES_MAX: Final = 8 << 20
SHOWN_MAX: Final = 200
CAP_DEFAULT: Final = 512
COUNTED_LIKE: Final = "gpt-4o"
FITTING_S: Final = 5.0
"""How long an expression may take to find whether it fits: one that repeats what repeats itself may take years."""
_FITS: Final = """
import json, re, signal, sys
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
sys.exit(3 if re.search(*json.load(sys.stdin)) else 4)
"""


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a text must be like. Each that is set must hold."""

    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()
    """Regular expressions, one of which must fit somewhere, for each."""
    equals: str | None = None
    max_tokens: int | None = None


class Asked(Expected, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same of a model's answer, and which model is asked."""

    upstream: str
    model: str
    max_output_tokens: int = CAP_DEFAULT
    key_env: str = ""
    """Environment variable with the key, where the sidecar attaches none."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way of filling a prompt in."""

    name: str
    variables: dict[str, str | int | float | bool] = {}
    text: Expected | None = None
    answer: Asked | None = None


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file."""

    prompt: str
    cases: tuple[Case, ...]


class Result(NamedTuple):
    """What came of a case."""

    case: str
    version: str
    failures: list[str]


def read_suite(raw: bytes) -> Suite:
    """Return what a file says. Raises DocumentError."""
    if len(raw) > SUITE_BYTES_MAX:
        raise DocumentError(f"it has over {SUITE_BYTES_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8: {error.reason}", raw[: error.start].count(b"\n") + 1) from None
    suite = read_yaml(text, Suite)
    if not suite.cases:
        raise DocumentError("it has no cases")
    try:
        if read_reference(SCHEME + suite.prompt) is None or "?" in suite.prompt:
            raise BadReference(f"{suite.prompt[:64]!r} is no prompt such as summarise@^1.2")
    except BadReference as error:
        raise DocumentError(f"prompt: {error}") from None
    for case in suite.cases:
        for expected in filter(None, (case.text, case.answer)):
            for pattern in expected.matches:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise DocumentError(f"{case.name}: {pattern!r} is no regular expression: {error}") from None
        if case.text == Expected() or (case.text is None and case.answer is None):
            raise DocumentError(f"{case.name}: it checks nothing: it needs text or answer, and what that must be like")
    return suite


def run_suite(suite: Suite, home: Path | None, folder: Path | None, *, is_text_only: bool) -> list[Result]:
    """Check all cases. Raises AdminProblem, ConfigError, ClickException where that cannot be done."""
    results = []
    for case in suite.cases:
        variables = {name: _written(value) for name, value in case.variables.items()}
        try:
            version, text = _rendered(suite.prompt, variables, home, folder)
        except _Failed as error:
            results.append(Result(case.name, suite.prompt, [str(error)]))
            continue
        failures = failures_of("the text", text, case.text) if case.text is not None else []
        if case.answer is not None and not is_text_only:
            # With a folder the text itself is sent: the daemon may not have it.
            sent = text if folder is not None else reference_of(version, variables)
            try:
                failures += failures_of("the answer", _answer(sent, case.answer, home), case.answer)
            except _Failed as error:
                failures.append(str(error))
        results.append(Result(case.name, version, failures))
    return results


def failures_of(what: str, text: str, expected: Expected) -> list[str]:
    """Return what of a text is not as it must be."""
    shown = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
    found = [f"{what} lacks {one!r}: {shown!r}" for one in expected.contains if one not in text]
    found += [f"{what} contains {one!r}" for one in expected.lacks if one in text]
    found += [f"{what} {why} {one!r}: {shown!r}" for one in expected.matches if (why := _unfit(one, text))]
    if expected.equals is not None and text != expected.equals:
        found.append(f"{what} is {shown!r}, not {expected.equals!r}")
    if expected.max_tokens is not None:
        model = expected.model if isinstance(expected, Asked) else COUNTED_LIKE
        if (count := tokens_in(text, model)) > expected.max_tokens:
            found.append(f"{what} has {count} tokens, over {expected.max_tokens}")
    return found


def _unfit(pattern: str, text: str) -> str:
    """Return in a few words why a text is not taken as matched; nothing where it is."""
    # In a process of its own: a search that is under way looks at no clock, and hears no signal. An alarm ends it, also
    # where nobody waits for it any more.
    command, asked = [sys.executable, "-I", "-S", "-c", _FITS, str(FITTING_S)], json.dumps([pattern, text]).encode()
    done = subprocess.run(  # noqa: S603 - our own interpreter and program
        command, input=asked, check=False, capture_output=True
    )
    if done.returncode == -signal.SIGALRM:
        return f"cannot be checked: over {FITTING_S:g} s are not enough for"
    if done.returncode in (3, 4):
        return "is not matched by" if done.returncode == 4 else ""
    return f"cannot be checked: {done.stderr.decode('utf-8', 'replace').strip().rpartition(chr(10))[2]}, by"


def tokens_in(text: str, model: str) -> int:
    """Return how many tokens a text has: as the model counts, or, where that is not published, as gpt-4o does."""
    from meshd.tokens.counter import Counter
    from meshd.tokens.encodings import encoding_of

    counter = Counter()
    try:
        for one in (model, COUNTED_LIKE):
            encoding = encoding_of(one)
            counted = counter.count_here(encoding, [text]) if encoding else None
            if counted is not None:
                return counted[0]
    finally:
        counter.close()
    return len(text.encode())


def reference_of(version: str, variables: dict[str, str]) -> str:
    """Return the reference of an exact version with its variables."""
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in variables.items())
    return f"{SCHEME}{version}{'?' + query if query else ''}"


class _Failed(Exception):
    pass


def _written(value: str | float | bool) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rendered(prompt: str, variables: dict[str, str], home: Path | None, folder: Path | None) -> tuple[str, str]:
    if folder is not None:
        return _rendered_here(prompt, variables, folder)
    from meshd.cli.admin_client import AdminProblem
    from meshd.cli.approvals import _client

    body: dict[str, object] = {"reference": SCHEME + prompt, "variables": dict(variables)}
    try:
        found = _client(home).post("/v1/prompts/render", body)
    except AdminProblem as problem:
        if problem.status not in (404, 422):
            raise
        raise _Failed(str(problem)) from None
    return f"{found['name']}@{found['version']}", str(found["text"])


def _rendered_here(prompt: str, variables: dict[str, str], folder: Path) -> tuple[str, str]:
    from meshd.prompts.choosing import Unresolved, choose
    from meshd.prompts.folder import read_folder
    from meshd.prompts.template import VariableError, listed, parse

    reference = read_reference(SCHEME + prompt)
    assert reference is not None
    found = read_folder(str(folder))
    head = found.heads.get(reference.name)
    if found.problems:
        raise click.ClickException("\n".join(found.problems))
    if head is None:
        raise _Failed(f"{folder} has no prompt {reference.name}")
    try:
        version = choose(head, reference.selector, "")
        template = parse(found.prompts[reference.name, version].text)
        foreign = [name for name in variables if name not in template.variables]
        if foreign:
            raise VariableError(f"it has no variable {listed(foreign)}; it has: {listed(template.variables)}")
        return f"{reference.name}@{version}", template.render(variables)
    except (Unresolved, VariableError) as error:
        raise _Failed(str(error)) from None


# ---------------------------------------------------------------------- what a model says


def _answer(text: str, asked: Asked, home: Path | None) -> str:
    running = _running(home)
    door = next((one for one in running.doors if one.name == asked.upstream), None)
    if door is None or door.kind != "llm":
        known = ", ".join(one.name for one in running.doors if one.kind == "llm")
        raise click.ClickException(f"the daemon has no LLM {asked.upstream!r}; it has: {known or 'none'}")
    path, body, key = _request(door, text, asked)
    fields = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    if asked.key_env:
        secret = os.environ.get(asked.key_env, "")
        if not secret:
            raise click.ClickException(f"{asked.key_env} is not set")
        fields[key] = f"Bearer {secret}" if key == "authorization" else secret
    url = f"http://{running.listen}/{door.name}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), fields)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_S) as reply:
            return text_in(door.dialect, json.loads(reply.read(ANSWER_BYTES_MAX)))
    except urllib.error.HTTPError as error:
        raise _Failed(f"{asked.upstream} answers {error.code}: {error.read(2000).decode('utf-8', 'replace')}") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise _Failed(f"{asked.upstream} gives no answer that can be read: {error}") from None


def _request(door: Door, text: str, asked: Asked) -> tuple[str, dict[str, Any], str]:
    """Return path, body, and the field of the key."""
    messages = [{"role": "user", "content": text}]
    cap = asked.max_output_tokens
    root = "" if door.base_path else "/v1"
    match door.dialect:
        case "openai":
            body: dict[str, Any] = {"model": asked.model, "messages": messages, "max_completion_tokens": cap}
            return f"{root}/chat/completions", body, "authorization"
        case "anthropic":
            return f"{root}/messages", {"model": asked.model, "messages": messages, "max_tokens": cap}, "x-api-key"
        case "ollama":
            body = {"model": asked.model, "messages": messages, "stream": False, "options": {"num_predict": cap}}
            return "/api/chat", body, "authorization"
        case "gemini":
            body = {
                "contents": [{"role": "user", "parts": [{"text": text}]}],
                "generationConfig": {"maxOutputTokens": cap},
            }
            return f"/v1beta/models/{quote(asked.model, safe='')}:generateContent", body, "x-goog-api-key"
    raise click.ClickException(f"{door.name} speaks {door.dialect}, in which no answer can be asked for here")


def text_in(dialect: str, answer: Any) -> str:
    """Return what a model said. Raises what a dict or a list does where the answer is none."""
    match dialect:
        case "openai":
            return str(answer["choices"][0]["message"]["content"])
        case "anthropic":
            return "".join(block["text"] for block in answer["content"] if block["type"] == "text")
        case "ollama":
            return str(answer["message"]["content"])
    return "".join(part.get("text", "") for part in answer["candidates"][0]["content"]["parts"])


def _running(home: Path | None) -> Running:
    from meshd.cli.budget import daemon_of

    return daemon_of(home).running
