"""The ports for people and probes: health and metrics on one, the admin API on another.

    view      what the daemon lets these ports see and do
    server    starts and stops both
    problem   what is answered where something is wrong, and the seal of every answer
    hosts     who may speak to a port: Host and Origin
    health    /metrics, /livez, /readyz, /readyz/outbound
    metrics_port  the connections that these come on
    token     the bearer token of the admin port, in a file of the state directory
    late      a server of aiohttp that is imported for the first connection that needs it: the admin port's, the API's
    app       the admin port's, and all below:
    doors     what every request to it passes first: Host, Origin, token; errors as problem+json
    api       /v1/...: policy, breakers, status, reload, drain; and the next ones
    accounts  /v1/accounts: shown and ordered
    calls     /v1/calls: what was decided of each
    approvals /v1/approvals: what people are asked, and what they decide
    catalogue /v1/catalogue: what can be called, and what is in quarantine

aiohttp is imported only below this package, never at the start, and not on the hot path.
"""
