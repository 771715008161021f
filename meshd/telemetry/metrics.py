"""Every metric, in one versioned table: see `meshd.telemetry.names` for where the names come from."""

from __future__ import annotations

from typing import Final, NamedTuple


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
ENCODING: Final = "encoding"
SUBSTITUTE: Final = "substitute"
SCOPE: Final = "scope"
FAMILY: Final = "family"
BOUND: Final = "bound"
ENTRY: Final = "entry"
DECISION: Final = "decision"
DETECTOR: Final = "detector"
VERSION: Final = "version"
WAY: Final = "way"
SORT: Final = "sort"
FLAW: Final = "flaw"
CHOICE: Final = "choice"
TOPIC: Final = "topic"
GROUP: Final = "group"
OPERATION: Final = "operation"
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
    "meshd_grpc_calls_total", "counter",
    "gRPC calls that ended with a status, by its name: the upstream's, or our own.", (DIRECTION, TARGET, GRPC_STATUS),
)  # fmt: skip
USAGE_MALFORMED: Final = Metric(
    "meshd_usage_malformed_total", "counter", "Replies of agents and tools that report usage which is no number."
)
REPLIES_UNREAD: Final = Metric(
    "meshd_replies_unread_total", "counter",
    "Replies of models in an encoding that meshd cannot read, though it had asked for plain ones.",
    (TARGET, ENCODING),
)  # fmt: skip
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
FALLBACKS: Final = Metric(
    "meshd_fallbacks_total",
    "counter",
    "Calls that their first target did not serve, by that target and by what did.",
    (TARGET, SUBSTITUTE),
)
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
BREAKER_TURNS: Final = Metric(
    "meshd_breaker_transitions_total", "counter", "Breakers that came into a state.", (TARGET, STATE)
)
CONCURRENCY_LIMIT: Final = Metric(
    "meshd_concurrency_limit",
    "gauge",
    "Attempts that may be under way at once: of an upstream's models and credentials, the one that may have fewest.",
    (TARGET,),
)
ATTEMPTS_IN_FLIGHT: Final = Metric("meshd_attempts_in_flight", "gauge", "Attempts under way to an upstream.", (TARGET,))
ATTEMPTS_QUEUED: Final = Metric(
    "meshd_attempts_queued", "gauge", "Attempts that wait for their turn at an upstream.", (TARGET,)
)
ATTEMPTS_SHED: Final = Metric(
    "meshd_attempts_shed_total",
    "counter",
    "Attempts that were refused because there was no room, by why.",
    (TARGET, REASON),
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
CLAIMS: Final = Metric(
    "meshd_claims_total", "counter", "Calls that can be known again, by what came of that.", (RESULT,)
)
MCP_SESSIONS: Final = Metric("meshd_mcp_sessions", "gauge", "Clients that have a session with the MCP gateway.")
MCP_TOKENS_SAVED: Final = Metric(
    "meshd_mcp_definition_tokens_saved_total", "counter",
    "Tokens of tools' definitions that clients were not shown, about four bytes each, counted at each list.",
)  # fmt: skip
BOUND_VIOLATIONS: Final = Metric(
    "meshd_budget_bound_violations_total",
    "counter",
    "Attempts whose reported usage passed the bound that was reserved for them.",
)
RESULT_TOKENS: Final = Metric(
    "meshd_mcp_result_tokens",
    "histogram",
    "About how many tokens a tool's result has, as its server gave it, at four bytes each.",
    (TARGET,),
)
RESULT_BYTES: Final = Metric("meshd_mcp_result_bytes_total", "counter", "Bytes of these results.", (TARGET,))
RESULTS_CLIPPED: Final = Metric(
    "meshd_mcp_results_clipped_total", "counter", "Results that were longer than the policy lets through.", (TARGET,)
)
RESULT_LEFT_OUT: Final = Metric(
    "meshd_mcp_result_tokens_left_out_total", "counter", "About how many tokens of them were left out.", (TARGET,)
)
RESULTS_KEPT: Final = Metric("meshd_mcp_results_kept", "gauge", "Whole results that can still be read.")
RESULTS_KEPT_BYTES: Final = Metric("meshd_mcp_results_kept_bytes", "gauge", "Their bytes, in memory.")
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
TURNS: Final = Metric(
    "meshd_turns_total",
    "counter",
    "Calls and events at which a workflow was found to go in circles or to poll too fast, by what was done.",
    (DECISION,),
)
LOOPS: Final = Metric(
    "meshd_loops_total", "counter", "The same without those that only waited, by what found it.", (DETECTOR,)
)
TRACE_ENTRIES: Final = Metric(
    "meshd_trace_entries_total", "counter", "What agents recorded of themselves, by what it is.", (ENTRY,)
)
SUPERVISOR_ASKED: Final = Metric(
    "meshd_supervisor_asked_total",
    "counter",
    "Questions to whom `on_exceeded` names, by how it is reached and what became of it.",
    (WAY, RESULT),
)
APPROVALS_PENDING: Final = Metric(
    "meshd_approvals_pending", "gauge", "Approvals that wait for people, as far as this sidecar knows."
)
CALLS_HELD: Final = Metric("meshd_approval_calls_held", "gauge", "Calls that are held until people decide.")
APPROVALS: Final = Metric(
    "meshd_approvals_total", "counter", "Approvals that were decided, used, cancelled or have expired here.", (RESULT,)
)
APPROVAL_HELD: Final = Metric(
    "meshd_approval_held_seconds", "histogram", "For how long a call was held for people, whatever came of it."
)
APPROVAL_KEYS_REFUSED: Final = Metric(
    "meshd_approval_keys_refused_total", "counter", "Decisions that came with a wrong key, or after too many of these."
)
APPROVAL_NOTICES: Final = Metric(
    "meshd_approval_notices_total",
    "counter",
    "Tries to tell people of approvals, by how they ended.",
    (RESULT,),
)
CATALOGUE_ENTRIES: Final = Metric(
    "meshd_catalogue_entries", "gauge", "What this sidecar has in its catalogue, by what it is.", (SORT,)
)
CATALOGUE_SOURCES: Final = Metric(
    "meshd_catalogue_sources", "gauge", "Servers that are asked what they offer, by how they stand.", (STATE,)
)
CATALOGUE_LOOKS: Final = Metric(
    "meshd_catalogue_looks_total", "counter", "How asking a server what it offers has ended.", (RESULT,)
)
CATALOGUE_FLAWS: Final = Metric(
    "meshd_catalogue_flaws_total", "counter", "Flaws that were found in what servers say of what they offer.", (FLAW,)
)
CATALOGUE_QUARANTINED: Final = Metric(
    "meshd_catalogue_quarantined", "gauge", "Definitions that a person must look at before they are offered."
)
CATALOGUE_SHARED: Final = Metric("meshd_catalogue_shared_entries", "gauge", "What other sidecars have, as known here.")
CATALOGUE_SIDECARS: Final = Metric("meshd_catalogue_sidecars", "gauge", "Other sidecars that share their catalogue.")
CATALOGUE_BYTES: Final = Metric(
    "meshd_catalogue_shared_bytes", "gauge", "What other sidecars say of what they have, as it is written."
)
INTENTS: Final = Metric(
    "meshd_intents_total", "counter", "Calls that said what they want and named nobody, by what was decided.", (CHOICE,)
)
EVENTS_PUBLISHED: Final = Metric("meshd_events_published_total", "counter", "Events that the bus has.", (TOPIC, RESULT))
EVENTS_HANDED: Final = Metric("meshd_events_handed_total", "counter", "Events that were handed out.", (TOPIC,))
EVENTS_SETTLED: Final = Metric("meshd_events_settled_total", "counter", "How they ended.", (TOPIC, RESULT))
EVENTS_REFUSED: Final = Metric("meshd_events_refused_total", "counter", "What was kept back.", (OPERATION, REASON))
EVENTS_LED: Final = Metric("meshd_events_led_total", "counter", "Events that say what they want, by choice.", (CHOICE,))
EVENTS_DEAD: Final = Metric("meshd_events_dead", "gauge", "Dead letters of a group.", (GROUP, TOPIC))
EVENTS_LAG: Final = Metric("meshd_events_lag", "gauge", "Events that a group has yet to settle.", (GROUP, TOPIC))
STATE_OPERATIONS: Final = Metric("meshd_state_operations_total", "counter", "Uses of state.", (OPERATION, RESULT))
STORE_UP: Final = Metric("meshd_store_up", "gauge", "1 while the store answers.")
TRACE_EVENTS: Final = Metric("meshd_trace_events_total", "counter", "Events written into the trace.")
TRACE_BYTES: Final = Metric("meshd_trace_bytes_total", "counter", "Bytes written into the trace.")
TRACE_MISSED: Final = Metric("meshd_trace_missed_total", "counter", "Events of the trace that could not be written.")
TRACE_KEPT: Final = Metric("meshd_trace_kept_bytes", "gauge", "What the trace takes on disk.")
SPANS_EXPORTED: Final = Metric("meshd_spans_exported_total", "counter", "Spans that the collector took.")
SPANS_DROPPED: Final = Metric("meshd_spans_dropped_total", "counter", "Spans that were lost, by where.", (REASON,))
LOG_LINES_SUPPRESSED: Final = Metric(
    "meshd_log_lines_suppressed_total", "counter", "Log lines summed up instead of written, in a flood."
)
BUILD: Final = Metric("meshd_build_info", "gauge", "1; the labels name this build.", (VERSION, NAMES_PROFILE))
STARTED_AT: Final = Metric("meshd_start_timestamp_seconds", "gauge", "When this process began to serve.")

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

PROCESS_METRICS: Final = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""From prometheus_client's own collector, where the platform has them."""

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
"""As the conventions advise, as are the next."""
TOKEN_BUCKETS: Final = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
