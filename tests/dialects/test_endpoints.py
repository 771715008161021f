"""Every published endpoint, and what becomes of its tokens: read and so bounded, free, or unread.

As the providers' references list them, 2026-11. What is unread is refused where a budget or a list of
models applies: nobody knows its cost or its model.
"""

from __future__ import annotations

import pytest

from meshd.dialects.table import DIALECTS, RPC, dialect_at

READ, FREE, UNREAD = "read", "free", "unread"
M = "/v1beta/models/gemini-x"
VX = "/v1/projects/p/locations/l/publishers"
BR = "/model/anthropic.claude-x-v1:0"

ENDPOINTS = [
    # Gemini: what generates or embeds is read, what counts, lists or clears away is free.
    ("gemini", "POST", f"{M}:generateContent", READ, "the body bounds it"),
    ("gemini", "POST", f"{M}:generateContent?key=k", READ, "the key is the caller's"),
    ("gemini", "POST", f"{M}:streamGenerateContent?alt=sse", READ, "the same, as events"),
    ("gemini", "POST", f"{M}:streamGenerateContent", READ, "the same, as a growing array"),
    ("gemini", "POST", f"{M}:embedContent", READ, "input only"),
    ("gemini", "POST", f"{M}:batchEmbedContents", READ, "input only"),
    ("gemini", "POST", "/v1beta/tunedModels/t:generateContent", READ, "a tuned model"),
    ("gemini", "POST", f"{VX}/google/models/g:generateContent", READ, "Vertex AI"),
    ("gemini", "POST", "/v1/publishers/google/models/g:streamGenerateContent", READ, "Vertex AI with an API key"),
    ("gemini", "POST", "/v1/projects/p/locations/l/endpoints/1:generateContent", READ, "a tuned model of Vertex AI"),
    ("gemini", "POST", f"{M}:countTokens", FREE, "counts, and bills nothing"),
    ("gemini", "POST", f"{VX}/google/models/g:computeTokens", FREE, "counts, and bills nothing"),
    ("gemini", "GET", "/v1beta/models", FREE, "lists"),
    ("gemini", "GET", M, FREE, "reads about one"),
    ("gemini", "GET", "/v1beta/files/f", FREE, "reads"),
    ("gemini", "POST", "/upload/v1beta/files", FREE, "storage is no tokens"),
    ("gemini", "GET", "/v1beta/files/f:download?alt=media", FREE, "reads"),
    ("gemini", "POST", "/v1beta/batches/b:cancel", FREE, "ends spending"),
    ("gemini", "DELETE", "/v1beta/files/f", FREE, "clears away"),
    ("gemini", "GET", "/v1beta/cachedContents", FREE, "lists"),
    ("gemini", "DELETE", "/v1beta/cachedContents/c", FREE, "clears away"),
    ("gemini", "GET", "/v1beta/batches/b", FREE, "reads"),
    ("gemini", "GET", f"{M}:generateContent", UNREAD, "a header may override the method"),
    ("gemini", "POST", "/v1beta/cachedContents", UNREAD, "making a cache bills its tokens"),
    ("gemini", "PATCH", "/v1beta/cachedContents/c", UNREAD, "keeping a cache longer costs"),
    ("gemini", "POST", f"{M}:batchGenerateContent", UNREAD, "spends later, where nobody counts"),
    ("gemini", "POST", f"{M}:asyncBatchEmbedContent", UNREAD, "spends later, where nobody counts"),
    ("gemini", "POST", f"{M}:predict", UNREAD, "pictures are no tokens"),
    ("gemini", "POST", f"{M}:predictLongRunning", UNREAD, "videos are no tokens"),
    ("gemini", "POST", f"{M}:generateAnswer", UNREAD, "a language of its own"),
    ("gemini", "POST", f"{M}:generateText", UNREAD, "a language of before"),
    ("gemini", "POST", "/v1beta/interactions", UNREAD, "a language of its own, with memory at the provider"),
    ("gemini", "POST", "/v1beta/tunedModels", UNREAD, "tuning bills tokens"),
    ("gemini", "POST", "/v1beta/fileSearchStores/s:uploadToFileSearchStore", UNREAD, "indexing bills embeddings"),
    ("gemini", "POST", "/v1alpha/auth_tokens", UNREAD, "a token to spend elsewhere"),
    ("gemini", "GET", "/ws/google.ai.generativelanguage.v1beta.Service.BidiGenerateContent", UNREAD, "a tunnel"),
    ("gemini", "POST", f"{VX}/mistralai/models/m:rawPredict", UNREAD, "a language of another vendor"),
    ("gemini", "POST", "/v1beta/openai/chat/completions", UNREAD, "OpenAI's dialect: an upstream of its own"),
    # Vertex AI serves Claude beside Gemini.
    ("gemini", "POST", f"{VX}/anthropic/models/claude-x:rawPredict", READ, "Anthropic's body"),
    ("anthropic", "POST", f"{VX}/anthropic/models/claude-x@20260101:streamRawPredict", READ, "Anthropic's body"),
    ("anthropic", "POST", f"{VX}/anthropic/models/count-tokens:rawPredict", FREE, "counts, and bills nothing"),
    ("anthropic", "GET", f"{VX}/anthropic/models/claude-x:rawPredict", UNREAD, "a header may override the method"),
    # Anthropic.
    ("anthropic", "POST", "/v1/messages", READ, "the body bounds it"),
    ("anthropic", "POST", "/v1/messages?beta=true", READ, "the same"),
    ("anthropic", "POST", "/v1/messages/count_tokens", FREE, "counts, and bills nothing"),
    ("anthropic", "GET", "/v1/models", FREE, "lists"),
    ("anthropic", "GET", "/v1/messages/batches", FREE, "lists"),
    ("anthropic", "GET", "/v1/messages/batches/b/results", FREE, "what it cost was spent before"),
    ("anthropic", "POST", "/v1/messages/batches/b/cancel", FREE, "ends spending"),
    ("anthropic", "DELETE", "/v1/messages/batches/b", FREE, "clears away"),
    ("anthropic", "POST", "/v1/files", FREE, "storage is no tokens"),
    ("anthropic", "GET", "/v1/files/f/content", FREE, "reads"),
    ("anthropic", "DELETE", "/v1/files/f", FREE, "clears away"),
    ("anthropic", "POST", "/v1/skills", FREE, "storage is no tokens"),
    ("anthropic", "POST", "/v1/messages/batches", UNREAD, "spends later, where nobody counts"),
    ("anthropic", "POST", "/v1/complete", UNREAD, "a language of before"),
    ("anthropic", "POST", "/v1/sessions", UNREAD, "an agent that runs at the provider"),
    ("anthropic", "POST", "/v1/organizations/invites", UNREAD, "not known to cost nothing"),
    # Ollama: what runs a model is read.
    ("ollama", "POST", "/api/chat", READ, "the body bounds it"),
    ("ollama", "POST", "/api/generate", READ, "the body bounds it"),
    ("ollama", "POST", "/api/embed", READ, "input only"),
    ("ollama", "POST", "/api/embeddings", READ, "input only"),
    ("ollama", "GET", "/api/tags", FREE, "lists"),
    ("ollama", "GET", "/api/ps", FREE, "lists"),
    ("ollama", "GET", "/api/version", FREE, "reads"),
    ("ollama", "HEAD", "/", FREE, "asks whether it is there"),
    ("ollama", "POST", "/api/show", FREE, "reads about one"),
    ("ollama", "POST", "/api/pull", FREE, "disk is no tokens; `deny` names it"),
    ("ollama", "POST", "/api/push", FREE, "no tokens; `deny` names it"),
    ("ollama", "POST", "/api/create", FREE, "no tokens; `deny` names it"),
    ("ollama", "POST", "/api/copy", FREE, "no tokens"),
    ("ollama", "DELETE", "/api/delete", FREE, "no tokens; `deny` names it"),
    ("ollama", "POST", "/api/blobs/sha256:0", FREE, "no tokens"),
    ("ollama", "POST", "/v1/chat/completions", READ, "OpenAI's body"),
    ("ollama", "POST", "/v1/embeddings", READ, "OpenAI's body"),
    ("ollama", "POST", "/v1/messages", READ, "Anthropic's body"),
    ("ollama", "GET", "/v1/models", FREE, "lists"),
    ("ollama", "POST", "/api/web_search", UNREAD, "a service of the provider's cloud"),
    ("ollama", "GET", "/api/chat", UNREAD, "not what it is"),
    # Bedrock: only where the address alone differs.
    ("bedrock", "POST", f"{BR}/invoke", READ, "Anthropic's body"),
    ("bedrock", "POST", f"{BR}/invoke-with-response-stream", READ, "the same, in frames"),
    ("bedrock", "POST", "/model/eu.anthropic.claude-x-v1%3A0/invoke", READ, "an inference profile of a region"),
    ("bedrock", "POST", f"{BR}/count-tokens", FREE, "counts, and bills nothing"),
    ("bedrock", "POST", f"{BR}/converse", UNREAD, "a language of its own"),
    ("bedrock", "POST", f"{BR}/converse-stream", UNREAD, "a language of its own"),
    ("bedrock", "POST", f"{BR}/invoke-with-bidirectional-stream", UNREAD, "a language of its own"),
    ("bedrock", "POST", "/model/amazon.titan-text-express-v1/invoke", UNREAD, "a body of another vendor"),
    ("bedrock", "POST", "/model/arn:aws:bedrock:eu-west-1:1:x/invoke", UNREAD, "an ARN names no vendor"),
    ("bedrock", "POST", "/async-invoke", UNREAD, "spends later, where nobody counts"),
    ("bedrock", "GET", f"{BR}/invoke", UNREAD, "not what it is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "path", "becomes", "why"), ENDPOINTS)
def test_what_becomes_of_it(name: str, method: str, path: str, becomes: str, why: str) -> None:
    dialect = dialect_at(name, path)
    assert (dialect.recognise(method, path) is not None) is (becomes == READ), why
    assert dialect.is_free(method, path) is (becomes == FREE), why


def test_every_dialect_of_an_llm_is_in_the_table() -> None:
    assert {name for name, *_ in ENDPOINTS} >= set(DIALECTS) - RPC - {"openai", "plain"}
