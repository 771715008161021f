"""What becomes of calls while their provider is out or full: `make outage`.

Real processes, real sockets, real time: a provider that can be told to fail, to vanish, or to take only so many calls
at once or a second; `meshd run` with a policy; callers that go on as the official SDKs do.

    provider    the provider, in a process of its own
    stage       starts and ends the provider and a sidecar
    callers     callers as the SDKs are: three tries, and the pauses between them
    traffic     what an outage adds to the traffic, and when a dead provider is out
    failover    how long a call takes that another upstream answers
    goodput     the adaptive limit beside every static one

To add a measure, write a coroutine that takes the `Stage` and returns rows, and give it its line in `__main__`.
"""
