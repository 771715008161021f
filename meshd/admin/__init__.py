"""The ports for people and probes: health and metrics on one, the admin API on another.

    view      what the daemon lets these ports see and do
    token     the bearer token of the admin port, in a file of the state directory
    doors     what every request passes first: Host, Origin, token; errors as problem+json
    health    /metrics, /livez, /readyz, /readyz/outbound
    api       /v1/...: policy, breakers, status, reload, drain; and the next two
    accounts  /v1/accounts: shown and ordered
    calls     /v1/calls: what was decided of each
    approvals /v1/approvals: what people are asked, and what they decide
    catalogue /v1/catalogue: what can be called, and what is in quarantine
    server    starts and stops both

aiohttp is imported only below this package, and not on the hot path.
"""
