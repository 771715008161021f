"""What a session remembers of its subscriptions, and of events that it was handed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from meshd.api.handing import Handed
    from meshd.engines.bus_port import Subscription
    from meshd_sdk.v1 import events_pb2

PATIENCE_S: Final = 1.0
"""How long an event waits for credit that others took before it; half of its handling time where that is less."""


class HandedOver:
    """An event that the agent has not settled."""

    __slots__ = ("handed", "subscribed", "token")

    def __init__(self, subscribed: Subscribed, handed: Handed, token: str) -> None:
        self.subscribed = subscribed
        self.handed = handed
        self.token = token


class Subscribed:
    """One subscription: what the bus has for it goes to the agent as its credit allows."""

    __slots__ = ("id", "is_over", "patience_s", "request", "subscription", "task", "topic")

    def __init__(self, id: int, request: events_pb2.SubscribeRequest) -> None:
        self.id = id
        self.request = request
        self.topic = request.topic
        self.subscription: Subscription | None = None
        self.task: asyncio.Task[None] | None = None
        self.patience_s = PATIENCE_S
        self.is_over = False
