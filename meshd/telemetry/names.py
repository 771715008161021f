"""Every name that telemetry uses, in one versioned table.

The names of generative AI follow the OpenTelemetry conventions as of v1.41, which are still in development: when
they move, a new profile is a new version of this file and of nothing else. Prometheus names follow from them by the
usual translation (dots to underscores, the unit as suffix). Our own stand under `meshd.` and `meshd_`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

PROFILE: Final = "genai-1.41"


class Metric(NamedTuple):
    """One metric: its kind as Prometheus knows it, its help text, its labels."""

    name: str
    """With the `_total` suffix where it is a counter."""
    kind: str  # counter, gauge or histogram
    help: str
    labels: tuple[str, ...] = ()


DIRECTION: Final = "direction"
KIND: Final = "kind"
TARGET: Final = "target"
RESULT: Final = "result"
REASON: Final = "reason"
RULE: Final = "rule"
VERDICT: Final = "verdict"
FAULT: Final = "fault"
EVIDENCE: Final = "evidence"
GRPC_STATUS: Final = "grpc_status"
STATE: Final = "state"
SCOPE: Final = "scope"
FAMILY: Final = "family"
BOUND: Final = "bound"
ENTRY: Final = "entry"
VERSION: Final = "version"
NAMES_PROFILE: Final = "names"
LABEL_OPERATION: Final = "gen_ai_operation_name"
LABEL_PROVIDER: Final = "gen_ai_provider_name"
LABEL_MODEL: Final = "gen_ai_request_model"
LABEL_TOKEN_TYPE: Final = "gen_ai_token_type"
LABEL_ERROR: Final = "error_type"

UNKNOWN: Final = "unknown"
"""Label of a target that the policy does not name."""
OTHER: Final = "other"
"""Label of whatever came after a bounded label was full."""

_MODEL_LABELS = (LABEL_OPERATION, LABEL_PROVIDER, LABEL_MODEL)
_TARGET_LABELS = (DIRECTION, KIND, TARGET)

CALLS: Final = Metric("meshd_calls_total", "counter", "Calls that ended, by how they ended.", (*_TARGET_LABELS, RESULT))
CALLS_OPEN: Final = Metric(
    "meshd_calls_open", "gauge", "Calls in progress: HTTP/1.1 exchanges and HTTP/2 streams.", (DIRECTION,)
)
CALLS_TIED: Final = Metric(
    "meshd_calls_by_evidence_total", "counter", "Calls that ended, by how they were tied to a workflow.",
    (DIRECTION, EVIDENCE),
)  # fmt: skip
REFUSALS: Final = Metric("meshd_refusals_total", "counter", "Calls that meshd refused.", (REASON, TARGET))
SHADOWED: Final = Metric(
    "meshd_shadow_refusals_total", "counter", "Calls that a rule in shadow would have refused.", (RULE, REASON)
)
RULE_HITS: Final = Metric(
    "meshd_rule_hits_total", "counter", "Calls for which a rule of the policy set something.", (RULE,)
)
CALL_DURATION: Final = Metric(
    "meshd_call_duration_seconds", "histogram", "From a call's head to the last byte of its reply.", _TARGET_LABELS
)
GRPC_CALLS: Final = Metric(
    "meshd_grpc_calls_total",
    "counter",
    "gRPC calls that ended with a status, by its name: the upstream's, or our own.",
    (DIRECTION, TARGET, GRPC_STATUS),
)
USAGE_MALFORMED: Final = Metric(
    "meshd_usage_malformed_total", "counter", "gRPC replies whose trailers report usage that is no number."
)
FIRST_BYTE: Final = Metric(
    "meshd_call_first_byte_seconds",
    "histogram",
    "From sending an attempt to the first byte of its reply's body.",
    _TARGET_LABELS,
)
ATTEMPTS: Final = Metric(
    "meshd_attempts_total", "counter", "Sends to an upstream, by what they say of it.", (TARGET, VERDICT)
)
ATTEMPT_FAULTS: Final = Metric(
    "meshd_attempt_faults_total", "counter", "Attempts that ended without a whole reply.", (TARGET, FAULT)
)
RETRIES: Final = Metric("meshd_retries_total", "counter", "Attempts beyond the first of a call.", (TARGET,))
TOKENS_ESTIMATED: Final = Metric(
    "meshd_tokens_estimated_total",
    "counter",
    "Tokens counted by meshd where the upstream reported no usage.",
    (TARGET, LABEL_TOKEN_TYPE),
)
TOKEN_USAGE: Final = Metric(
    "gen_ai_client_token_usage", "histogram", "Tokens that an attempt used.", (*_MODEL_LABELS, LABEL_TOKEN_TYPE)
)
OPERATION_DURATION: Final = Metric(
    "gen_ai_client_operation_duration_seconds",
    "histogram",
    "Duration of a generative AI operation.",
    (*_MODEL_LABELS, LABEL_ERROR),
)
TIME_TO_FIRST_CHUNK: Final = Metric(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "histogram",
    "From sending a generation request to the first chunk of its answer.",
    _MODEL_LABELS,
)
BREAKER_STATE: Final = Metric(
    "meshd_breaker_state",
    "gauge",
    "1 for the state that the most open breaker of an upstream is in, 0 for the others.",
    (TARGET, STATE),
)
BREAKERS_NOT_CLOSED: Final = Metric(
    "meshd_breakers_not_closed", "gauge", "Breakers of an upstream that are open or half-open.", (TARGET,)
)
CONNECTIONS: Final = Metric("meshd_connections_open", "gauge", "Open connections.", (DIRECTION,))
CONNECTIONS_OPENED: Final = Metric(
    "meshd_connections_opened_total", "counter", "Connections that were opened.", (DIRECTION,)
)
BUDGET_ACCOUNTS: Final = Metric(
    "meshd_budget_accounts_open", "gauge", "Accounts in memory, by what they count together.", (SCOPE,)
)
BUDGET_LIMIT: Final = Metric(
    "meshd_budget_limit_tokens", "gauge", "Limits of the accounts in memory, added up, top-ups included.", (SCOPE,)
)
BUDGET_USED: Final = Metric(
    "meshd_budget_used_tokens", "gauge", "Tokens that the accounts in memory have spent, over all sidecars.", (SCOPE,)
)
BUDGET_RESERVED: Final = Metric(
    "meshd_budget_reserved_tokens", "gauge", "Tokens reserved for attempts in flight, over all accounts.", (SCOPE,)
)
BUDGET_LEASED: Final = Metric(
    "meshd_budget_leased_tokens",
    "gauge",
    "Tokens on lease to this sidecar: what it strands where it vanishes.",
    (SCOPE,),
)
BUDGET_LIMIT_MONEY: Final = Metric(
    "meshd_budget_limit_microdollars", "gauge", "The limits of accounts of money, likewise.", (SCOPE,)
)
BUDGET_USED_MONEY: Final = Metric(
    "meshd_budget_used_microdollars", "gauge", "What accounts of money have spent, likewise.", (SCOPE,)
)
BUDGET_RESERVED_MONEY: Final = Metric(
    "meshd_budget_reserved_microdollars", "gauge", "Micro-dollars reserved for attempts in flight.", (SCOPE,)
)
BUDGET_LEASED_MONEY: Final = Metric(
    "meshd_budget_leased_microdollars", "gauge", "Micro-dollars on lease to this sidecar.", (SCOPE,)
)
BUDGET_STRANDED: Final = Metric(
    "meshd_budget_stranded_tokens",
    "gauge",
    "Tokens of the run before that were counted as spent at this start, since nobody could say that they were not.",
)
BOUND_TOKENS: Final = Metric(
    "meshd_bound_tokens_total", "counter", "What was reserved for attempts that were charged, each once.", (TARGET,)
)
CHARGED_TOKENS: Final = Metric(
    "meshd_charged_tokens_total", "counter", "What those attempts were charged, each once.", (TARGET,)
)
BUDGET_SPENT: Final = Metric(
    "meshd_budget_spent_tokens_total", "counter", "Tokens charged to accounts since the start of this process."
)
BUDGET_SPENT_MONEY: Final = Metric(
    "meshd_budget_spent_microdollars_total",
    "counter",
    "Micro-dollars charged to accounts since the start of this process; twice where two budgets count a call.",
)
BUDGET_REFUSED: Final = Metric("meshd_budget_refused_total", "counter", "Attempts that no account could cover.")
BUDGET_WARNED: Final = Metric(
    "meshd_budget_warned_total", "counter", "Attempts with which a budget was past its `warn_at`, by its rule.", (RULE,)
)
BUDGET_DEGRADED: Final = Metric(
    "meshd_budget_degraded_total", "counter", "Attempts for which a budget chose a cheaper model, by its rule.", (RULE,)
)
BUDGET_UNPRICED: Final = Metric(
    "meshd_budget_unpriced_total",
    "counter",
    "Attempts on a dollar budget with a model whose price is not known, by the budget's rule.",
    (RULE,),
)
COST: Final = Metric(
    "meshd_cost_microdollars_total",
    "counter",
    "What attempts cost that a dollar budget counts, each once, by upstream.",
    (TARGET,),
)
MODEL_COST: Final = Metric(
    "meshd_model_cost_microdollars_total", "counter", "The same by model, as it was sent.", _MODEL_LABELS
)
BOUND_VIOLATIONS: Final = Metric(
    "meshd_budget_bound_violations_total",
    "counter",
    "Attempts whose reported usage passed the bound that was reserved for them.",
)
BOUND_COUNTS: Final = Metric(
    "meshd_bound_counts_total",
    "counter",
    "Requests whose tokens were counted because an account could not cover their bound, by what that did to it.",
    (RESULT,),
)
BOUNDS_RAISED: Final = Metric(
    "meshd_bounds_raised_models", "gauge", "Models whose bounds are multiplied because they passed one."
)
INPUT_BOUND: Final = Metric(
    "meshd_input_bound_tokens_total",
    "counter",
    "Input tokens that were reserved for attempts whose usage was reported.",
    (FAMILY, BOUND),
)
INPUT_USED: Final = Metric(
    "meshd_input_used_tokens_total", "counter", "Input tokens that those attempts used.", (FAMILY, BOUND)
)
BOUND_RATIO: Final = Metric(
    "meshd_input_bound_ratio",
    "histogram",
    "How many times the input that was used its bound was; below 1 the bound was none.",
    (FAMILY, BOUND),
)
POLICY_RELOADS: Final = Metric(
    "meshd_policy_reloads_total", "counter", "Policy reloads, by whether the document was taken.", (RESULT,)
)
POLICY_RELOADED_AT: Final = Metric(
    "meshd_policy_last_reload_success_timestamp_seconds", "gauge", "When the current document was taken."
)
POLICY_STALE: Final = Metric(
    "meshd_policy_stale", "gauge", "1 while the newest document could not be taken and an older one is in force."
)
TRACE_ENTRIES: Final = Metric(
    "meshd_trace_entries_total", "counter", "What agents recorded of themselves, by what it is.", (ENTRY,)
)
STORE_UP: Final = Metric("meshd_store_up", "gauge", "1 while the store answers.")
SPANS_EXPORTED: Final = Metric("meshd_spans_exported_total", "counter", "Spans that the collector took.")
SPANS_DROPPED: Final = Metric("meshd_spans_dropped_total", "counter", "Spans that were lost, by where.", (REASON,))
LOG_LINES_SUPPRESSED: Final = Metric(
    "meshd_log_lines_suppressed_total", "counter", "Log lines summed up instead of written, in a flood."
)
BUILD: Final = Metric("meshd_build_info", "gauge", "1; the labels name this build.", (VERSION, NAMES_PROFILE))
STARTED_AT: Final = Metric("meshd_start_timestamp_seconds", "gauge", "When this process began to serve.")

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of the above, in order."""

PROCESS_METRICS: Final = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""From prometheus_client's own collector, where the platform has them."""

RESULTS: Final = ("ok", "rejected", "backpressure", "failed", "refused", "answered", "cancelled", "cut")
"""Values of `result`: the upstream's answer, its 4xx, its 429, its failure; our refusal, our own reply; the caller
hung up; we ended it (a budget, a deadline, a shutdown)."""
OK, REJECTED, BACKPRESSURE, FAILED, REFUSED, ANSWERED, CANCELLED, CUT = range(len(RESULTS))

BREAKER_STATES: Final = ("closed", "half_open", "open")
"""From the mildest to the worst."""

SECONDS_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
RATIO_BUCKETS: Final = (
    0.999, 1.01, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 64.0, 1024.0,
)  # fmt: skip
"""The first holds what was no bound."""
GEN_AI_SECONDS_BUCKETS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
"""As the conventions advise."""
TOKEN_BUCKETS: Final = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
"""As the conventions advise."""

# Span attributes.
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_METHOD: Final = "http.request.method"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.grpc.status_code"
MESHD_CALL: Final = "meshd.call"
MESHD_AGENT: Final = "meshd.agent"
MESHD_TARGET: Final = "meshd.target"
MESHD_KIND: Final = "meshd.kind"
MESHD_DIRECTION: Final = "meshd.direction"
MESHD_WORKFLOW: Final = "meshd.workflow"
MESHD_HOPS: Final = "meshd.hops"
MESHD_EVIDENCE: Final = "meshd.evidence"
MESHD_INFERRED: Final = "meshd.evidence.is_inferred"
MESHD_ATTEMPTS: Final = "meshd.attempts"
MESHD_REASON: Final = "meshd.reason"
MESHD_RULE: Final = "meshd.rule"
MESHD_SHADOW: Final = "meshd.shadow"
MESHD_VERDICT: Final = "meshd.verdict"
MESHD_USAGE_ESTIMATED: Final = "meshd.usage.is_estimated"
MESHD_CAP_GRANTED: Final = "meshd.output_cap_granted"
MESHD_MODEL_ASKED: Final = "meshd.model_asked"
MESHD_DEGRADED_BY: Final = "meshd.model_degraded_by"
MESHD_COST: Final = "meshd.cost_microdollars"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
MESHD_ENTRY: Final = "meshd.entry.id"
MESHD_ERROR: Final = "meshd.entry.error"
MESHD_STEP: Final = "meshd.step.name"
MESHD_STEP_SUMMARY: Final = "meshd.step.summary"
MESHD_TOOL_ARGUMENTS: Final = "meshd.tool.arguments_digest"
MESHD_TOOL_RESULT: Final = "meshd.tool.result_digest"
MESHD_DECISION_QUESTION: Final = "meshd.decision.question"
MESHD_DECISION_CHOICE: Final = "meshd.decision.choice"
MESHD_DECISION_OPTIONS: Final = "meshd.decision.options"
MESHD_DECISION_RATIONALE: Final = "meshd.decision.rationale"
MESHD_NOTE: Final = "meshd.note.text"
MESHD_ATTRIBUTE: Final = "meshd.entry.attribute."
"""Before the name of an attribute that the agent itself chose."""

ATTRIBUTES: Final[frozenset[str]] = frozenset(
    {
        OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, REQUEST_MAX_TOKENS, REQUEST_STREAM, RESPONSE_MODEL, RESPONSE_ID,
        RESPONSE_FINISH_REASONS, USAGE_INPUT_TOKENS, USAGE_OUTPUT_TOKENS, USAGE_CACHE_READ, USAGE_REASONING,
        FIRST_CHUNK, AGENT_NAME, TOOL_NAME, ERROR_TYPE, SERVER_ADDRESS, SERVER_PORT, HTTP_METHOD, HTTP_STATUS,
        URL_PATH, RPC_SYSTEM, RPC_SERVICE, RPC_METHOD, RPC_STATUS,
        MESHD_CALL, MESHD_AGENT, MESHD_TARGET, MESHD_KIND, MESHD_DIRECTION, MESHD_WORKFLOW, MESHD_HOPS,
        MESHD_EVIDENCE, MESHD_INFERRED, MESHD_ATTEMPTS, MESHD_REASON, MESHD_RULE, MESHD_SHADOW, MESHD_VERDICT,
        MESHD_USAGE_ESTIMATED, MESHD_CAP_GRANTED, MESHD_MODEL_ASKED, MESHD_DEGRADED_BY, MESHD_COST, TOOL_CALL_ID,
        MESHD_ENTRY, MESHD_ERROR, MESHD_STEP, MESHD_STEP_SUMMARY, MESHD_TOOL_ARGUMENTS, MESHD_TOOL_RESULT,
        MESHD_DECISION_QUESTION, MESHD_DECISION_CHOICE, MESHD_DECISION_OPTIONS, MESHD_DECISION_RATIONALE, MESHD_NOTE,
    }
)  # fmt: skip
"""Every attribute that a span of ours may carry."""

CHAT: Final = "chat"
INVOKE_AGENT: Final = "invoke_agent"
EXECUTE_TOOL: Final = "execute_tool"
STEP: Final = "meshd.step"
DECISION: Final = "meshd.decision"
NOTE: Final = "meshd.note"
"""Names of spans of what agents record of themselves; a step's own name follows."""

ENTRIES: Final = ("step", "tool_call", "decision", "note")
"""Values of `entry`."""
REPORTED: Final = "reported"
"""Provider of usage that an agent reports: no upstream of ours served it."""

_PROVIDER_HOSTS: Final = (
    ("api.openai.com", "openai"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("openai.azure.com", "azure.ai.openai"),
    ("amazonaws.com", "aws.bedrock"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.deepseek.com", "deepseek"),
    ("api.groq.com", "groq"),
    ("api.x.ai", "x_ai"),
    ("api.perplexity.ai", "perplexity"),
    ("api.cohere.com", "cohere"),
)
_PROVIDER_DIALECTS: Final = {"gemini": "gcp.gemini", "bedrock": "aws.bedrock"}


@lru_cache(maxsize=1024)
def provider(host: str, dialect: str) -> str:
    """Return `gen_ai.provider.name`: by the upstream's host where it is well known, else by its dialect."""
    for suffix, name in _PROVIDER_HOSTS:
        if host == suffix or host.endswith(("." + suffix, "-" + suffix)):
            return name
    return _PROVIDER_DIALECTS.get(dialect, dialect)
