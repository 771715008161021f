"""The ports for people and probes: health and metrics on one, the admin API on another.

    view      what the daemon lets these ports see and do
    token     the bearer token of the admin port, in a file of the state directory
    doors     what every request passes first: Host, Origin, token; errors as problem+json
    health    /metrics, /livez, /readyz, /readyz/outbound
    api       /v1/...: policy, workflows, breakers, status, reload, drain
    server    starts and stops both

aiohttp is imported only below this package, and not on the hot path.
"""
