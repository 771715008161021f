"""An upstream as the policy names it, and the program that serves it where meshd starts one: nothing left to parse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshd.call import Kind

DialectName = Literal["openai", "anthropic", "gemini", "ollama", "bedrock", "plain", "mcp", "a2a"]
Protocol = Literal["auto", "http/1.1", "h2"]
SandboxName = Literal["auto", "bwrap", "runsc", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A program to start, with everything that starting it needs."""

    command: tuple[str, ...]
    cwd: str | None
    env: tuple[tuple[str, str], ...]
    env_from: tuple[str, ...]
    sandbox: SandboxName
    read: tuple[str, ...]
    write: tuple[str, ...]
    has_network: bool
    memory_bytes: int
    processes_max: int
    files_max: int
    cpu_s: float | None
    children_max: int
    start_timeout_s: float
    idle_timeout_s: float
    is_restarted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An address that serves a target, with everything that sending to it needs."""

    name: str
    kind: Kind
    url: str
    """As the document has it, without a trailing slash."""
    scheme: Literal["http", "https"]
    host: str
    """Host name in lower case, or an address; an IPv6 address stands without its brackets."""
    port: int
    base_path: str
    """What precedes the call's own path: empty, or begins with a slash and does not end with one."""
    authority: bytes
    """For the Host field: with the port where it is not the scheme's own."""
    dialect: DialectName
    protocol: Protocol = "auto"
    is_unmetered: bool = False
    """Calls to an LLM that no dialect reads may pass, and tunnels too: nobody counts their tokens."""
    is_dialect_told: bool = True
    """The document says which dialect it speaks; else a call's own fields may say that it is MCP or A2A."""
    is_session: bool = False
    """An agent that is reached by the session which it keeps with this sidecar: it has no address."""
    process: Process | None = None
    """An MCP server that is started and spoken to over its standard input and output: it has no address."""
    is_sse: bool = False
    """An MCP server of 2024-11-05: the address is that of its event stream."""
    is_peer: bool = False
    """The address is another sidecar's inbound port, which verifies the context token and mints its own."""
    sends_trace: bool = False
    """`traceparent` and `baggage` leave to this upstream."""
    ca_file: str | None = None
    """PEM bundle that replaces the system's; None for the system's."""
    key_header: bytes | None = None
    """Header field, in lower case, in which meshd sends the provider's key; None where the agent sends its own."""
    key_prefix: bytes = b""
    """What stands before the key in that field: `Bearer ` for authorization."""
    key_env: str | None = None
    key_file: str | None = None
    card_keys: tuple[str, ...] = ()
    """Files with the keys that may sign its card; empty where nobody verifies that."""
    is_card_signed: bool = False
    """A card that is not signed is refused."""
    card_origins: tuple[tuple[str, int], ...] = ()
    """Host and port of each other address by which its card names it."""
    takes_extension: bool | None = None
    """It is told of the workflow by meshd's A2A extension; None: where its card declares that."""
    charges_usage: bool | None = None
    """Charge what the metadata of its A2A answers reports; None: see `meshd.filters.hearsay`."""
    connections_max: int = 1024
    pending_max: int = 1024
    """Calls that wait for a connection."""
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 60.0
    first_byte_timeout_s: float = 600.0
    first_token_timeout_s: float | None = None
    """Longest from sending to a model's first output in a stream; None for no such limit."""
    gap_timeout_s: float = 300.0
    """Longest silence between two pieces of a reply."""
    prefix: str = ""
    """Of an MCP server behind the gateway: what its tools are called by, the separator included."""
    endpoint: str = ""
    """The path at which the gateway sends messages to it, with the base path."""
    result_tokens_max: int | None = None
    """Of a result that comes through the gateway; None for what that says of all."""
    is_gateway: bool = False
    """It has no address: calls to it go to one of the MCP servers, or are answered for all of them."""

    @property
    def is_bridged(self) -> bool:
        """Whether its clients speak streamable HTTP and it speaks something else: see `meshd.bridge`."""
        return self.process is not None or self.is_sse
