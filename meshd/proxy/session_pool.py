"""What stands in a pool's place where an agent is called through its session: there is nothing to connect to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.policy.addressing import APP
from meshd.proxy.agents import absent
from meshd.proxy.pool import Pool
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.proxy.attempt import Attempt


class SessionPool(Pool):
    """The sessions of one agent, for calls on one wire."""

    __slots__ = ()

    @property
    def agent(self) -> str:
        """Name of the agent: that of the upstream, but for the one beside this sidecar, which the policy names."""
        name = self.upstream.name
        return self._proxy.policy.agent if name == APP else name

    @property
    def connections_open(self) -> int:
        """Sessions that are connected; counted once, whatever wires the calls come by."""
        agent = self._proxy.agents.named(self.agent)
        return len(agent.links) if agent is not None and self._wire == "session" else 0

    def acquire(self, attempt: Attempt) -> Any:
        """Return a session with credit, or None: then the call waits for one. Raises Refused where it cannot be."""
        name = self.agent
        if self._wire != "session":
            what = "gRPC" if self._wire == "grpc" else "a tunnel"
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The agent {name} is called through its session, which takes requests with a body of JSON and not "
                f"{what}. Call it by POST to /{self.upstream.name}/<tool>, or through the SDK.",
            )
        agent = self._proxy.agents.named(name)
        if agent is None:
            raise absent(name)
        link = agent.free()
        if link is None:
            if len(agent.pending) >= self.upstream.pending_max:
                raise Refused(Reason.OVERLOADED, f"{len(agent.pending)} calls already wait for the agent {name}")
            agent.pending.append(attempt)
        return link

    def forget(self, attempt: Attempt) -> None:
        """A waiting call has gone away."""
        agent = self._proxy.agents.named(self.agent)
        if agent is not None and attempt in agent.pending:
            agent.pending.remove(attempt)

    def expire(self, now_s: float) -> None:
        """Sessions end by themselves."""

    def retire(self) -> None:
        """Calls that wait are served all the same."""

    def close(self) -> None:
        """Sessions are closed by those who hold them."""
