"""Documents load whole, or every mistake in them is named at its line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.call import Kind, Target
from meshd.dialects import openai_paths
from meshd.dialects.jsonrpc import MESSAGE
from meshd.dialects.table import DIALECTS
from meshd.limits import Limits
from meshd.policy.checking import OPERATIONS
from meshd.policy.compiled import Policy
from meshd.policy.document import DocumentFile, LoadError, Overrides, load, parse

SHORT_FORM = """\
governance:
  max_tokens_per_workflow: 50000
  human_in_the_loop_required: true
  allowed_tools: ["web_search", "python_interpreter", "db_query"]
"""

LONG_FORM = """\
agent: researcher
governance: {max_tokens_per_workflow: 50000}
limits: {hops: 4, deadline: 10m, request_body: 8MB, names_workflows: no}
upstreams:
  openai: {url: "https://api.openai.com", kind: llm, dialect: openai}
  writer: {url: "http://127.0.0.1:9001/a2a/", kind: agent, peer: true}
  billing: {url: "http://[::1]:9002", kind: tool}
rules:
  - name: cheap-models-only
    match: {kind: llm, agent: "intern*"}
    allow: {models: ["gpt-*-mini"], tools: ["web_search"]}
  - name: workflow-budget
    match: {kind: llm}
    budget: {tokens: 200k, per: workflow, mode: fast}
    breaker: {consecutive: 5, open: 15s}
    retry: {attempts: 2, on: [connect]}
  - name: no-deletes
    match: {target: billing, operation: "DELETE *"}
    deny: "ask the billing team"
    shadow: true
"""


def read(text: str, **given: object) -> Policy:
    return parse([DocumentFile("p.yaml", text.encode())], **given)  # type: ignore[arg-type]


def problems(text: str, **given: object) -> list[str]:
    with pytest.raises(LoadError) as caught:
        read(text, **given)
    return [str(problem).removeprefix("p.yaml:") for problem in caught.value.problems]


def test_the_short_form_loads_as_it_stands() -> None:
    policy = read(SHORT_FORM)
    plan = policy.plan(Target(Kind.LLM, "openai", "gpt-4o"), "agent", "chat")
    assert [budget.tokens for budget in plan.budgets] == [50_000]
    assert plan.budgets[0].per == "workflow"
    assert plan.allow is not None
    assert plan.allow.tools == ("web_search", "python_interpreter", "db_query")
    assert plan.approval is not None
    assert plan.approval.required
    assert plan.rules == ("governance",)
    assert any("no approvers" in warning for warning in policy.warnings)


def test_the_long_form() -> None:
    policy = read(LONG_FORM)
    assert policy.agent == "researcher"
    assert (policy.limits.hops, policy.limits.deadline_s) == (4, 600.0)
    assert policy.limits.request_body_bytes_max == 8_000_000
    assert not policy.limits.names_workflows
    writer = policy.upstreams["writer"]
    assert (writer.host, writer.port, writer.base_path, writer.authority) == (
        "127.0.0.1",
        9001,
        "/a2a",
        b"127.0.0.1:9001",
    )
    assert writer.is_peer
    assert writer.sends_trace
    assert policy.upstreams["billing"].authority == b"[::1]:9002"
    openai = policy.upstreams["openai"]
    assert (openai.port, openai.authority, openai.sends_trace) == (443, b"api.openai.com", False)
    plan = policy.plan(Target(Kind.LLM, "openai", "gpt-4o-mini"), "intern-7", "chat")
    assert plan.allow is not None
    assert plan.allow.rule == "cheap-models-only"
    assert [budget.tokens for budget in plan.budgets] == [200_000, 50_000]
    assert plan.breaker is not None
    assert (plan.breaker.open_s, plan.breaker.rule) == (15.0, "workflow-budget")
    assert plan.retry is not None
    assert plan.retry.on == ("connect",)


def test_an_empty_document_has_the_defaults() -> None:
    for text in ("", "# nothing\n", "---\n", "{}"):
        policy = read(text)
        assert policy.limits == Limits()
        assert policy.upstreams["anthropic"].dialect == "anthropic"
        assert any("no budget is set" in warning for warning in policy.warnings)
        plan = policy.plan(Target(Kind.LLM, "openai", "x"), "agent", "chat")
        assert plan.breaker is not None
        assert plan.retry is not None
        assert (plan.breaker.rule, plan.budgets, plan.allow) == ("default", (), None)


def test_the_defaults_of_the_document_are_those_of_the_compiled_limits() -> None:
    assert read("limits: {hops: 16}").limits == Limits()


UPSTREAMS = """\
upstreams:
  openai: {url: "https://api.openai.com"}
  writer: {url: "http://127.0.0.1:9001", kind: agent}
"""

# What is written, and where and how the mistake is named. Rules stand behind UPSTREAMS, from line 4.
MISTAKES = {
    "syntax": ("a: b: c", ["1:5: not YAML"]),
    "unclosed": ("rules: [", ["2:1: not YAML"]),
    "duplicate key": ("agent: a\nagent: b", ['2:1: the key "agent" is set already in line 1']),
    "unknown key": ("limit: {hops: 1}", ['1:1: unknown key "limit"; did you mean "limits"?']),
    "unknown key below": ("limits: {hop: 1}", ['1:10: unknown key "hop"; did you mean "hops"?']),
    "unknown key of a filter": (
        f"{UPSTREAMS}rules:\n  - budget: {{tokens: 1, pre: agent}}",
        ['5:25: unknown key "pre"; did you mean "per"?'],
    ),
    "wrong type": ("limits: {hops: many}", ['1:16: expected a whole number, not "many"']),
    "number in quotes": ('limits: {hops: "16"}', ['1:16: expected a whole number, not "16"']),
    "boolean for a number": ("limits: {hops: yes}", ["1:16: expected a whole number, not true"]),
    "boolean for a text": ("agent: off", ["1:8: expected a text, not false: put it in quotes"]),
    "number for a text": ("agent: 7", ["1:8: expected a text, not 7: put it in quotes"]),
    "text for a map": ("limits: none", ['1:9: expected a map, not "none"']),
    "map for a list": ("rules: {a: 1}", ["1:8: expected a list, not a map"]),
    "duration": ("limits: {deadline: 10 minutes}", ["1:20: expected a duration such as"]),
    "size": ("limits: {request_body: 8M}", ["1:24: expected a size such as"]),
    "count": ("governance: {max_tokens_per_workflow: 50 k}", ["1:39: expected a count such as"]),
    "out of range": ("limits: {hops: -1}", ["1:16: must be greater than or equal to 0"]),
    "no value": ("governance:\n  max_tokens_per_workflow:\n", ['2:3: nothing stands after "max_tokens_per_workflow"']),
    "list as a key": ("? [a]\n: 1", ["1:3: a key must be a text"]),
    "boolean as a name": (
        "upstreams:\n  no: {url: 'http://x', kind: tool}",
        ['2:3: a name must be a text: put "no" in quotes'],
    ),
    "number as a name": (
        "upstreams:\n  7: {url: 'http://x', kind: tool}",
        ['2:3: a name must be a text: put "7" in quotes'],
    ),
    "upper case name": ("upstreams:\n  A: {url: 'http://x', kind: tool}", ["2:6: expected a name of a-z"]),
    "reserved name": ("upstreams:\n  w: {url: 'http://x', kind: tool}", ['2:3: the name "w" is taken']),
    "two documents": ("agent: a\n---\nagent: b", ["2:1: a second document in one file"]),
    "anchor in itself": ("rules: &r [*r]", ["1:12: the anchor"]),
    "alias to nothing": ("rules: *r", ["1:8: no anchor"]),
    "merge key": ("limits: {<<: {hops: 1}}", ["1:10: merge keys"]),
    "tag": ("agent: !!python/name:os.system a", ["1:8: tags are not read here"]),
    "not UTF-8": (b"agent: a\n# \xff", ["2:3: the document is not UTF-8 text"]),
    "control character": ("agent: a\n# \x07", ["2:3: the character"]),
    "no map": ("- a", ["1:1: a policy is a map of keys"]),
    "no url": ("upstreams: {a: {kind: tool}}", ['1:16: the key "url" is missing']),
    "an agent with two addresses": (
        "upstreams: {a: {kind: agent, url: 'http://x', session: true}}",
        ["1:56: an agent is called either through its session or at a url"],
    ),
    "a session of a tool": ("upstreams: {a: {kind: tool, session: true}}", ["1:23: only an agent has a session"]),
    "a session with a key": (
        "upstreams: {a: {session: true, peer: true, tls: {ca: x}}}",
        ["1:38: peer says nothing of an agent", "1:49: tls says nothing of an agent"],
    ),
    "no kind": ("upstreams: {a: {url: 'http://x'}}", ["1:16: kind is missing"]),
    "no dialect": ("upstreams: {a: {url: 'http://x', kind: llm}}", ["1:16: an LLM needs dialect"]),
    "dialect of no LLM": ("upstreams: {a: {url: 'http://x', kind: tool, dialect: openai}}", ["1:55: only an LLM"]),
    "LLM as a peer": (
        "upstreams: {a: {url: 'http://x', dialect: openai, peer: true}}",
        ["1:57: an LLM is not another sidecar"],
    ),
    "key from nowhere": ("upstreams: {openai: {url: 'https://x', key: {header: x-key}}}", ["1:45: key needs either"]),
    "key in a framing field": (
        "upstreams: {openai: {url: 'https://x', key: {env: A, header: Content-Length}}}",
        ["1:62: a key cannot stand in"],
    ),
    "TLS without TLS": ("upstreams: {a: {url: 'http://x', kind: tool, tls: {ca: /a}}}", ["1:56: there is no TLS"]),
    "target that is not there": (
        f"{UPSTREAMS}rules:\n  - match: {{target: [opnai, openai]}}\n    deny: x",
        ['5:22: no upstream fits "opnai"; did you mean "openai"?'],
    ),
    "kind that is not there": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: tool}}\n    deny: x",
        ["5:19: no upstream is of kind tool"],
    ),
    "kind that is none": (f"{UPSTREAMS}rules:\n  - match: {{kind: lm}}\n    deny: x", ["5:19: expected 'llm'"]),
    "kind against target": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: llm, target: writer}}\n    deny: x",
        ["5:5: contradictory"],
    ),
    "model of an agent": (
        f"{UPSTREAMS}rules:\n  - match: {{target: writer, model: gpt}}\n    deny: x",
        ["5:36: only calls to an LLM have a model"],
    ),
    "budget of a host": (
        "upstreams:\n  h: {url: 'http://x', kind: host}\nrules:\n  - match: {target: h}\n    budget: {tokens: 1}",
        ["5:5: only calls to an LLM cost tokens"],
    ),
    "dollars of an agent": (
        f"{UPSTREAMS}rules:\n  - match: {{target: writer}}\n    budget: {{dollars: 1}}",
        ["6:5: nobody knows what an agent's or a tool's tokens cost"],
    ),
    "models of an agent": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: agent}}\n    allow: {{models: gpt}}",
        ["6:13: this rule fits no upstream of kind llm"],
    ),
    "hosts of an LLM": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: llm}}\n    allow: {{hosts: x}}",
        ["6:13: this rule fits no upstream of kind host"],
    ),
    "allowed target that is not there": (
        f"{UPSTREAMS}rules:\n  - allow: {{targets: [writer, opnai]}}",
        ["5:31: no upstream fits"],
    ),
    "empty match list": (
        f"{UPSTREAMS}rules:\n  - match: {{target: []}}\n    deny: x",
        ["5:21: an empty list fits nothing"],
    ),
    "twice in a list": (f"{UPSTREAMS}rules:\n  - match: {{agent: [a, b, a]}}\n    deny: x", ["5:27: "]),
    "method alone": (
        f"{UPSTREAMS}rules:\n  - match: {{operation: DELETE}}\n    deny: x",
        ['5:24: fits no operation; did you mean "DELETE *"?'],
    ),
    "method in lower case": (
        f"{UPSTREAMS}rules:\n  - match: {{operation: 'delete /x'}}\n    deny: x",
        ['5:24: fits no operation; did you mean "DELETE /x"?'],
    ),
    "path without its slash": (
        f"{UPSTREAMS}rules:\n  - match: {{operation: DELETE invoices}}\n    deny: x",
        ['5:24: fits no operation; did you mean "DELETE /invoices"?'],
    ),
    "operation that is none": (
        f"{UPSTREAMS}rules:\n  - match: {{operation: chats}}\n    deny: x",
        ["5:24: fits no operation; there are chat, compaction, embeddings"],
    ),
    "operation of no LLM": (
        f"{UPSTREAMS}rules:\n  - match: {{target: writer, operation: chat}}\n    deny: x",
        ["5:40: chat is an operation of an LLM"],
    ),
    "host with a port": ("hosts_allowed: ['pod:7400']", ["1:17: expected a host name"]),
    "address with a port": ("hosts_allowed: [a, 'cafe:7400']", ['1:20: "cafe:7400": a host name']),
    "sets nothing": (f"{UPSTREAMS}rules:\n  - match: {{kind: llm}}", ["5:5: this rule sets nothing"]),
    "allows nothing in particular": (f"{UPSTREAMS}rules:\n  - allow: {{}}", ["5:5: allow sets nothing"]),
    "fewer than the fewest": (
        f"{UPSTREAMS}rules:\n  - concurrency: {{max: 4, min: 8}}",
        ["5:32: min (8) is more than max (4)"],
    ),
    "fewer than the fewest by default": (
        f"{UPSTREAMS}rules:\n  - concurrency: {{min: 2000}}",
        ["5:24: min (2000) is more than max (1024)"],
    ),
    "a concurrency of none": (f"{UPSTREAMS}rules:\n  - concurrency: {{max: 0}}", ["5:24: must be greater"]),
    "a queue below none": (f"{UPSTREAMS}rules:\n  - concurrency: {{queue: -1}}", ["5:26: must be greater"]),
    "no time for a token": (
        "upstreams: {a: {url: 'http://x', kind: llm, dialect: openai, timeouts: {first_token: 0s}}}",
        ["1:"],
    ),
    "a tool's first token": (
        "upstreams: {a: {url: 'http://x', kind: tool, timeouts: {first_token: 5s}}}",
        ["1:70: only an LLM sends tokens; this is of kind tool"],
    ),
    "a session's first token": (
        "upstreams: {a: {session: true, timeouts: {first_token: 5s}}}",
        ["1:56: only an LLM sends tokens; this is an agent"],
    ),
    "routes nowhere": (f"{UPSTREAMS}rules:\n  - route: {{}}", ["5:5: route sets nothing"]),
    "allow and deny": (f"{UPSTREAMS}rules:\n  - allow: {{targets: writer}}\n    deny: x", ["6:5: a rule either"]),
    "deny within allow": (f"{UPSTREAMS}rules:\n  - allow: {{denied: x}}", ["5:13: write deny:"]),
    "route to nobody": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: llm}}\n    route: {{upstream: opnai}}",
        ['6:23: there is no upstream "opnai"; did you mean "openai"?'],
    ),
    "route to another kind": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: llm}}\n    route: {{upstream: writer}}",
        ['6:23: this rule fits "openai" (llm, openai)'],
    ),
    "name twice": (
        (
            f"{UPSTREAMS}rules:\n  - {{name: a, match: {{kind: llm}}, deny: x}}\n"
            "  - {name: a, match: {kind: agent}, deny: x}"
        ),
        ['6:12: the rule "a" is there already, as number 1'],
    ),
    "name of ours": (f"{UPSTREAMS}rules:\n  - {{name: governance, deny: x}}", ['5:12: the name "governance" is taken']),
    "same rule before": (
        (
            f"{UPSTREAMS}rules:\n  - {{match: {{kind: llm}}, deny: x}}\n"
            "  - {match: {kind: llm, agent: a}, allow: {models: b}}"
        ),
        ['6:5: can match nothing: for every call that it fits, "rule-1" before it decides'],
    ),
    "tool of an upstream whose tools are not known": (
        f"{UPSTREAMS}  t: {{url: 'http://h', kind: tool}}\nrules:\n  - match: {{tool: x}}\n    deny: x\n",
        ['6:19: no upstream of kind tool fits "x"'],
    ),
    "tool of what has none": (
        f"{UPSTREAMS}rules:\n  - match: {{kind: agent, tool: x}}\n    deny: x\n",
        ["5:32: only calls to a tool have one"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(text: str | bytes, expected: list[str]) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(LoadError) as caught:
        parse([DocumentFile("p.yaml", data)])
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == len(expected), found
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(f"p.yaml:{start}"), found


@pytest.mark.parametrize("operation", ["deploy", "billing/refund", "destroy*"])
def test_what_the_agent_asks_about_by_itself_has_names_of_its_own(tmp_path: Path, operation: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"approvers: {{ana: {{key: 'sha256:{'0' * 64}'}}}}\n"
        f"rules: [{{match: {{target: app, operation: '{operation}'}}, approval: {{expires: 60s}}}}]\n"
    )
    plan = load([path]).plan(Target(Kind.AGENT, "app"), "agent", operation.replace("*", "-all"))
    assert plan.approval is not None
    assert plan.approval.expires == 60.0


def test_the_operations_are_those_of_the_dialects() -> None:
    paths = ("/v1/messages", *(f"/v1/{path}" for path in openai_paths.OPERATIONS))
    read_by = {dialect.recognise("POST", path) for dialect in DIALECTS.values() for path in paths}
    assert read_by - {None, MESSAGE} == OPERATIONS


def test_all_mistakes_at_once_in_the_order_of_the_text() -> None:
    text = """\
agent: no
limits: {hops: x, hop: 1}
upstreams:
  openai: {url: "https://api.openai.com"}
  openai: {url: "https://api.openai.com"}
rules:
  - match: {target: opnai}
    deny: x
  - budget: {tokens: lots}
  - route: {upstream: nobody}
"""
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        "1:8",
        "2:16",
        "2:19",
        "5:3",
        "7:21",
        "9:22",
        "10:23",
    ]


def test_a_rule_with_a_mistake_brings_no_further_ones() -> None:
    assert len(problems(f"{UPSTREAMS}rules:\n  - match: {{kind: 3}}\n    deny: x\n  - deny: x")) == 1


@pytest.mark.parametrize(
    "later",
    [
        "{match: {kind: llm, model: 'gpt-4*'}, allow: {models: b}}",
        "{match: {target: openai, model: gpt-4}, retry: {attempts: 0}, allow: {models: b}}",
        "{match: {kind: llm, model: 'gpt-*', operation: chat}, breaker: {}}",
    ],
)
def test_what_an_earlier_rule_leaves_over_can_match(later: str) -> None:
    earlier = "{match: {kind: llm, model: 'gpt-*', agent: a}, allow: {models: a}, breaker: {}}"
    read(f"{UPSTREAMS}rules:\n  - {earlier}\n  - {later}")
    taken = earlier.replace(", agent: a", "")
    if "retry" in later or "target" in later:
        read(f"{UPSTREAMS}rules:\n  - {taken}\n  - {later}")
    else:
        assert "can match nothing" in problems(f"{UPSTREAMS}rules:\n  - {taken}\n  - {later}")[0]


def test_a_rule_in_shadow_takes_nothing_from_a_later_one() -> None:
    policy = read(f"{UPSTREAMS}rules:\n  - {{deny: x, shadow: true}}\n  - {{deny: y}}")
    assert any('"rule-1" is in shadow' in warning for warning in policy.warnings)


def test_what_shadow_cannot_judge_is_said() -> None:
    policy = read(f"{UPSTREAMS}rules:\n  - {{breaker: {{}}, retry: {{}}, shadow: true}}")
    assert any("in shadow its breaker and retry only adds to its hits" in warning for warning in policy.warnings)


def test_a_key_that_is_not_enforced_is_named_and_loads_when_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{UPSTREAMS}rules:\n  - {{match: {{kind: llm, model: x}}, deny: x}}"
    read(text)
    monkeypatch.setattr("meshd.policy.document.UNENFORCED", (("match", "model"), ("route", "model"), ("deny", "x")))
    with pytest.raises(LoadError) as caught:
        read(text)
    assert [str(problem).partition(":")[2] for problem in caught.value.problems] == [
        "5:25: rules.match.model is not enforced by this build: remove it, or accept that with --accept-unenforced"
    ]
    policy = read(text, accept_unenforced=True)
    assert sum("not enforced" in warning for warning in policy.warnings) == 1


def test_hosts_that_the_listener_accepts() -> None:
    assert read("hosts_allowed: [Pod, '::1', a.b]").hosts_allowed == ("pod", "::1", "a.b")


def test_aliases_are_read_and_bombs_are_not() -> None:
    text = f"{UPSTREAMS}rules:\n  - match: &llm {{kind: llm}}\n    deny: x\n  - match: *llm\n    budget: {{tokens: 1}}"
    assert len(read(text).rules) == 2
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "with aliases counted" in problems(bomb)[0]


def test_size_and_depth_are_bounded() -> None:
    assert "bytes; at most" in problems("#" * (2 * 2**20 + 1))[0]
    assert "nested deeper" in problems("[" * 5000)[0]
    assert "nested deeper" in problems("a: " + "{b: " * 40)[0]
    assert "with aliases counted" in problems("a: [" + "x," * 100_001 + "]")[0]


@pytest.mark.parametrize(
    ("given", "name", "kind", "url", "dialect"),
    [
        ("local=http://127.0.0.1:8000,dialect=openai", "local", Kind.LLM, "http://127.0.0.1:8000", "openai"),
        ("openai=http://127.0.0.1:9/x/", "openai", Kind.LLM, "http://127.0.0.1:9/x", "openai"),
        ("web=https://example.com", "web", Kind.HOST, "https://example.com", "plain"),
        ("tool=http://127.0.0.1:1,kind=tool", "tool", Kind.TOOL, "http://127.0.0.1:1", "plain"),
        ("eu=https://api.anthropic.com", "eu", Kind.LLM, "https://api.anthropic.com", "anthropic"),
    ],
)
def test_an_upstream_from_the_command_line(given: str, name: str, kind: Kind, url: str, dialect: str) -> None:
    upstream = read("", overrides=Overrides(upstreams=(given,))).upstreams[name]
    assert (upstream.kind, upstream.url, upstream.dialect) == (kind, url, dialect)


@pytest.mark.parametrize(
    "given",
    ["", "=", "a", "a=", "A=http://x", "w=http://x", "a=ftp://x", "a=http://x,dialect=latin", "a=http://x,color=red",
     "a=http://169.254.169.254", "a=http://x,kind=llm", "a=http://x,kind=tool,dialect=openai", "a=http://u:p@x"],
)  # fmt: skip
def test_nonsense_from_the_command_line_is_refused(given: str) -> None:
    with pytest.raises(LoadError) as caught:
        read("", overrides=Overrides(upstreams=(given,)))
    assert caught.value.problems[0].path == "--upstream"


def test_an_upstream_is_given_once() -> None:
    with pytest.raises(LoadError, match="a is given twice"):
        read("", overrides=Overrides(upstreams=("a=http://x", "a=http://y")))


def test_the_command_line_names_the_agent() -> None:
    assert read("agent: a", overrides=Overrides(agent="b")).agent == "b"
    assert "is no name" in problems("", overrides=Overrides(agent="No Name"))[0]


def test_a_rule_may_be_about_an_upstream_of_the_command_line() -> None:
    text = "upstreams: {}\nrules: [{match: {target: local}, budget: {tokens: 1}}]"
    assert "no upstream fits" in problems(text)[0]
    assert read(text, overrides=Overrides(upstreams=("local=http://127.0.0.1:1,dialect=openai",)))


def test_several_files_are_one_policy(tmp_path: Path) -> None:
    (tmp_path / "10.yaml").write_text(f"{UPSTREAMS}limits: {{hops: 2}}\nrules: [{{match: {{kind: llm}}, deny: x}}]")
    (tmp_path / "20.yml").write_text(
        "upstreams: {tool: {url: 'http://x', kind: tool}}\nlimits: {drain: 1s}\n"
        "rules: [{match: {target: tool}, deny: y}]"
    )
    (tmp_path / ".hidden.yaml").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    policy = load([tmp_path])
    assert sorted(policy.upstreams) == ["openai", "tool", "writer"]
    assert [rule.name for rule in policy.rules] == ["rule-1", "rule-2"]
    assert (policy.limits.hops, policy.limits.drain_s) == (2, 1.0)
    assert load([tmp_path / "10.yaml", tmp_path / "20.yml"]).digest == policy.digest


def test_a_key_of_two_files_names_both_places(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"agent: a\nlimits: {{hops: 2}}\n{UPSTREAMS}")
    b.write_text("limits: {hops: 3}\nupstreams:\n  openai: {url: 'https://x'}\n")
    with pytest.raises(LoadError) as caught:
        load([a, b])
    assert [str(problem) for problem in caught.value.problems] == [
        f'{b}:1:10: the key "hops" is set already at {a}:2:10',
        f'{b}:3:3: the key "openai" is set already at {a}:4:3',
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("a: b: c")
    for path, words in (("nowhere.yaml", "cannot be read"), ("empty", "no *.yaml file"), ("\0", "cannot be read")):
        with pytest.raises(LoadError) as caught:
            load([tmp_path / path, tmp_path / "bad.yaml"])
        assert words in str(caught.value)
        assert "not YAML" in str(caught.value)


def test_without_a_path_the_quickstart_loads() -> None:
    assert load().source.endswith("quickstart.yaml")


def test_a_budget_of_an_agent_is_said_to_hold_nothing_back() -> None:
    policy = read(f"{UPSTREAMS}rules:\n  - match: {{target: writer}}\n    budget: {{tokens: 1}}")
    assert any("only counts what they report in gRPC trailers" in warning for warning in policy.warnings)


def test_warnings_of_what_may_not_be_meant() -> None:
    text = """\
upstreams:
  host: {url: "https://api.openai.com", kind: host}
  free: {url: "http://10.0.0.1", kind: llm, unmetered: true, key: {file: /nowhere/key}}
"""
    warnings = "\n".join(read(text).warnings)
    for words in (
        "2:9: api.openai.com is the LLM API openai",
        "nobody counts",
        "leaves this machine unencrypted",
        "there is no file",
    ):
        assert words in warnings, warnings
