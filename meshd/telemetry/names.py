"""Every name that telemetry uses, in one versioned table.

The names of generative AI follow the OpenTelemetry conventions as of v1.41, which are still in development: when
they move, a new profile is a new version of this file and of nothing else. Prometheus names follow from them by the
usual translation (dots to underscores, the unit as suffix). Our own stand under `meshd.` and `meshd_`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

PROFILE: Final = "genai-1.41"


RESULTS: Final = ("ok", "rejected", "backpressure", "failed", "refused", "answered", "cancelled", "cut")
"""Values of `result`: the upstream's answer, its 4xx, its 429, its failure; our refusal, our own reply; the caller
hung up; we ended it (a budget, a deadline, a shutdown)."""
OK: Final = 0
REJECTED: Final = 1
BACKPRESSURE: Final = 2
FAILED: Final = 3
REFUSED: Final = 4
ANSWERED: Final = 5
CANCELLED: Final = 6
CUT: Final = 7
"""Places in `RESULTS`."""

BREAKER_STATES: Final = ("closed", "half_open", "open")
"""From the mildest to the worst."""

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
MESHD_EVENT: Final = "meshd.event"
MESHD_AGENT: Final = "meshd.agent"
MESHD_TARGET: Final = "meshd.target"
MESHD_KIND: Final = "meshd.kind"
MESHD_DIRECTION: Final = "meshd.direction"
MESHD_WORKFLOW: Final = "meshd.workflow"
MESHD_HOPS: Final = "meshd.hops"
MESHD_EVIDENCE: Final = "meshd.evidence"
MESHD_INFERRED: Final = "meshd.evidence.is_inferred"
MESHD_SERVED_BY: Final = "meshd.served_by"
MESHD_ATTEMPTS: Final = "meshd.attempts"
MESHD_REASON: Final = "meshd.reason"
MESHD_RULE: Final = "meshd.rule"
MESHD_SHADOW: Final = "meshd.shadow"
MESHD_VERDICT: Final = "meshd.verdict"
MESHD_LOOP: Final = "meshd.loop"
MESHD_USAGE_ESTIMATED: Final = "meshd.usage.is_estimated"
MESHD_CAP_GRANTED: Final = "meshd.output_cap_granted"
MESHD_MODEL_ASKED: Final = "meshd.model_asked"
MESHD_DEGRADED_BY: Final = "meshd.model_degraded_by"
MESHD_COST: Final = "meshd.cost_microdollars"
MESHD_APPROVAL: Final = "meshd.approval.id"
MESHD_APPROVAL_STATE: Final = "meshd.approval.state"
MESHD_APPROVAL_BY: Final = "meshd.approval.decided_by"
MESHD_APPROVAL_HELD: Final = "meshd.approval.held_seconds"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
MESHD_INTENT_TARGET: Final = "meshd.intent.target"
MESHD_INTENT_SCORE: Final = "meshd.intent.score"
MESHD_INTENT_CHOICE: Final = "meshd.intent.choice"
MESHD_PROMPTS: Final = "meshd.prompts"
MESHD_ENTRY: Final = "meshd.entry.id"
MESHD_ERROR: Final = "meshd.entry.error"
MESHD_STEP: Final = "meshd.step.name"
MESHD_STEP_SUMMARY: Final = "meshd.step.summary"
MESHD_TOOL_ARGUMENTS: Final = "meshd.tool.arguments_digest"
MESHD_TOOL_RESULT: Final = "meshd.tool.result_digest"
MESHD_RESULT_BYTES: Final = "meshd.tool.result_bytes"
MESHD_RESULT_TOKENS: Final = "meshd.tool.result_tokens"
MESHD_RESULT_LEFT_OUT: Final = "meshd.tool.result_tokens_left_out"
MESHD_DECISION_QUESTION: Final = "meshd.decision.question"
MESHD_DECISION_CHOICE: Final = "meshd.decision.choice"
MESHD_DECISION_OPTIONS: Final = "meshd.decision.options"
MESHD_DECISION_RATIONALE: Final = "meshd.decision.rationale"
MESHD_NOTE: Final = "meshd.note.text"
MESHD_STATE_KEY: Final = "meshd.state.key"
MESHD_STATE_VERSION: Final = "meshd.state.version"
MESHD_STATE_RESULT: Final = "meshd.state.result"
MESHD_ATTRIBUTE: Final = "meshd.entry.attribute."
"""Before the name of an attribute that the agent itself chose."""

ATTRIBUTES: Final[frozenset[str]] = frozenset(
    {
        OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, REQUEST_MAX_TOKENS, REQUEST_STREAM, RESPONSE_MODEL, RESPONSE_ID,
        RESPONSE_FINISH_REASONS, USAGE_INPUT_TOKENS, USAGE_OUTPUT_TOKENS, USAGE_CACHE_READ, USAGE_REASONING,
        FIRST_CHUNK, AGENT_NAME, TOOL_NAME, ERROR_TYPE, SERVER_ADDRESS, SERVER_PORT, HTTP_METHOD, HTTP_STATUS,
        URL_PATH, RPC_SYSTEM, RPC_SERVICE, RPC_METHOD, RPC_STATUS,
        MESHD_CALL, MESHD_EVENT, MESHD_AGENT, MESHD_TARGET, MESHD_KIND, MESHD_DIRECTION, MESHD_WORKFLOW, MESHD_HOPS,
        MESHD_EVIDENCE, MESHD_INFERRED, MESHD_ATTEMPTS, MESHD_SERVED_BY, MESHD_REASON, MESHD_RULE,
        MESHD_SHADOW, MESHD_VERDICT, MESHD_LOOP, MESHD_USAGE_ESTIMATED, MESHD_CAP_GRANTED, MESHD_MODEL_ASKED,
        MESHD_DEGRADED_BY, MESHD_COST, TOOL_CALL_ID, MESHD_APPROVAL, MESHD_APPROVAL_STATE, MESHD_APPROVAL_BY,
        MESHD_APPROVAL_HELD, MESHD_INTENT_TARGET, MESHD_INTENT_SCORE, MESHD_INTENT_CHOICE,
        MESHD_PROMPTS, MESHD_ENTRY, MESHD_ERROR, MESHD_STEP, MESHD_STEP_SUMMARY, MESHD_TOOL_ARGUMENTS,
        MESHD_TOOL_RESULT, MESHD_RESULT_BYTES, MESHD_RESULT_TOKENS, MESHD_RESULT_LEFT_OUT,
        MESHD_DECISION_QUESTION, MESHD_DECISION_CHOICE, MESHD_DECISION_OPTIONS, MESHD_DECISION_RATIONALE, MESHD_NOTE,
        MESHD_STATE_KEY, MESHD_STATE_VERSION, MESHD_STATE_RESULT,
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
STATE: Final = "meshd.state"
"""Name of spans of shared state; what is done with it follows."""

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
