"""meshd: the sidecar of an AI agent.

Every call that an agent makes or takes passes through here, and a policy document says what becomes of it. The way of
a call is a straight line; this is the map of it.

    bytes -> proxy/listener -> wire/* -> dialects/* -> chain -> filters in order -> proxy/attempt -> the upstream
    bytes <- proxy/http*_server <- proxy/answer (meter, watchers) <- tickets settled in reverse <- proxy/attempt

The words, in the order in which to read them:

    call        what is intercepted, and what answers it                   Call, Ask, Reply
    clocks      what was known where a thing happened: what came first     Clock, Order
    outcome     how one attempt of it ended                                Outcome, Verdict, Fault
    refusal     why meshd says no, and how that looks on the wire          Reason, Refused, TABLE
    filters/    one rule a file; filters/contract says what they owe       Filter, Ticket, Settings
    chain       the order of the filters, with the reason for each line    FILTERS, Chain, settle
    wire/       bytes to messages and back, without I/O                    RequestReader, ReplyReader, Splitter
    dialects/   what a body means: read, rewrite, meter, refuse            Dialect, Meter
    proxy/      the hot path's only I/O                                    Exchange, Attempt, Pool, Listener
    policy/     a document becomes one frozen object, or every problem     load, Policy
    tokens/     exact counts where a bound does not fit, in a thread       Counter
    ledger/     accounts, leases, reservations: nothing is overspent       Ledger, Owner, Holder
    turns/      when agents go in circles                                  Workflow, Turn
    claims/     calls that are made again are not carried out again        Book, Claim, Retries
    prompts/    texts by name and version, put where requests name them    Registry, Reference
    approvals/  calls that wait until a person allows them                 Desk, Question
    supervisor/ who is asked about a workflow before it is stopped         Asker, Way
    discovery/  what can be called: agents, tools, skills, found by words  Catalogue, Entry, Finder
    sources/    servers are asked what they offer, pinned and screened     Tending, Admitting
    embedding/  vectors of texts by a model beside the daemon, an extra    Embedder, Local
    intent/     calls that say what they want, and name nobody             Resolver, decide
    gateway/    one address for all MCP servers                            Gateway, Passage
    bridge/     MCP servers that are started here, or speak the old way    Session, Child
    state/      versioned objects that agents share, and who may           Objects, Keeping
    engines/    state and events, each behind a port that fits on a screen Store, Bus
    telemetry/  metrics, spans, logs, provenance; all names in one table   Telemetry
    admin/      health, metrics and the admin API                          AdminView
    api/        what agents may ask: sessions, budgets, events, traces     Mesh, Door, Session
    daemon      builds all of this once, swaps the policy, drains          Daemon
    cli/        run, exec, budget, events, prompts, state, check, explain, tools, route, tokens, schema

Imports go one way, as the layers in pyproject.toml have it, and a test keeps it so. There is no task and no await on
the way of a call, unless a filter returns Wait.
"""
