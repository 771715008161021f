"""The agents that keep a session with this sidecar, and the calls that wait for one of them.

A call to such an agent goes to one of its sessions, in turn, that has credit for it; where none has, it waits, and
where there is no session, it is refused at once. What a session is, and how it gets here, is the API's: see `Link`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from meshd.proxy.crash import ending
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt


class Link(Protocol):
    """One session of an agent, as a connection to an upstream."""

    def can_take(self) -> bool:
        """Say whether the agent has credit for another call."""
        ...

    def open(
        self,
        attempt: Attempt,
        *,
        method: str,
        path: str,
        added: Headers,
        has_body: bool,
        content_length: int | None,
        body: bytes | None,
        upgrade: bytes = b"",
    ) -> None:
        """Begin a call; `attempt.stream` takes the rest of it."""
        ...


class Agent:
    """One agent's sessions."""

    __slots__ = ("links", "name", "pending")

    def __init__(self, name: str) -> None:
        self.name = name
        self.links: list[Link] = []
        """Those that are connected; the one whose turn it is stands first."""
        self.pending: deque[Attempt] = deque()
        """Calls that wait for credit."""

    def free(self) -> Link | None:
        """Return the next session that has credit, None where none has."""
        links = self.links
        for index, link in enumerate(links):
            if link.can_take():
                # It goes to the end, so that the next call finds another one.
                links.append(links.pop(index))
                return link
        return None

    def serve_pending(self) -> None:
        """Give waiting calls to sessions that have credit."""
        while self.pending:
            link = self.free()
            if link is None:
                return
            attempt = self.pending.popleft()
            with ending(attempt.exchange):
                attempt.connected(link)


class Agents:
    """All agents with a session, by name."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Agent] = {}

    def named(self, name: str) -> Agent | None:
        """Return the agent of this name, None where it has no session that is connected."""
        return self._by_name.get(name)

    def connected(self, name: str, link: Link) -> None:
        """A session can take calls."""
        agent = self._by_name.get(name)
        if agent is None:
            agent = self._by_name[name] = Agent(name)
        agent.links.append(link)
        agent.serve_pending()

    def parted(self, name: str, link: Link) -> None:
        """A session can take no more calls; where it was the last, those that wait are refused."""
        agent = self._by_name.get(name)
        if agent is None or link not in agent.links:
            return
        agent.links.remove(link)
        if agent.links:
            return
        del self._by_name[name]
        while agent.pending:
            exchange = agent.pending.popleft().exchange
            with ending(exchange):
                exchange.refuse(absent(name))

    def has_credit(self, name: str) -> None:
        """A session has got credit."""
        agent = self._by_name.get(name)
        if agent is not None and agent.pending:
            agent.serve_pending()


def absent(name: str) -> Refused:
    """Return the refusal of a call to an agent that is not there."""
    return Refused(
        Reason.UPSTREAM_UNREACHABLE,
        f"The agent {name} has no session with this sidecar now. Start it, or wait until it has connected.",
    )
