"""Semantic events: what is published to `mesh.intent` says what is wanted, and no topic that anybody waits for.

A sidecar whose policy has `intents.events` leads each of them, in the group `meshd-intents`: to all whose intents
it fits, by a copy of its own on `mesh.intent.<agent>`. So each agent's copy is kept, tried again and buried by
itself, and one that is away gets it later. Nobody found, and no fallback: a dead letter of `meshd-intents`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.api.keeping_events import Publication, publish_all
from meshd.call import OURS, Kind
from meshd.engines.bus_event import NAME_CHARACTERS_MAX, REASON_CHARACTERS_MAX
from meshd.engines.bus_port import EventMalformed, Verdict
from meshd.engines.port import StoreClosed, StoreError
from meshd.intent.asking import WORDS_CHARACTERS_MAX
from meshd.intent.barring import barred_by
from meshd.intent.deciding import Bar, Choice, Decision
from meshd.proxy.errand import ask
from meshd.refusal import Refused
from meshd.trace.acts import Actor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Delivery, Event, Subscription
    from meshd.intent.resolver import Resolver
    from meshd.policy.compiled import Policy
    from meshd.policy.model_intents import SemanticSection
    from meshd.trace.knowledge import Told
    from meshd.upstream import Upstream

TOPIC: Final = "mesh.intent"
GROUP: Final = "meshd-intents"
ROUTE: Final = "/route"
"""Of the POST to a router."""
ROUTER: Final = f"{OURS}router"
"""As whom meshd asks a router, and leads events."""
ROUTED: Final = "routed"
"""What a router agent has chosen."""
AGAIN_S: Final = 2.0
AT_ONCE: Final = 16
"""Events that are led at once: a router that takes its time keeps no others waiting."""
WORDS_IN: Final = ("text", "message", "intent", "words", "content")
"""Members of data that is a JSON object, of which the first text says what is wanted."""
log = logging.getLogger("meshd.events")


class _Unled(Exception):
    """Nobody is found; the message says why. It is tried again, later or at once, and then buried."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class Leading:
    """One for the process."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._task: asyncio.Task[None] | None = None
        self._pushing: Any = None
        self._subscription: Subscription | None = None
        self._busy: set[asyncio.Task[None]] = set()

    def take(self, policy: Policy) -> None:
        """Lead what is published, where a policy says so; else end."""
        if policy.semantic is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif policy.semantic is None and self._task is not None:
            self._task.cancel()
            self._task = None
        if self._pushing is None and policy.semantic is not None:
            from meshd.api.pushing import Pushing

            self._pushing = Pushing(self._mesh)
        if self._pushing is not None:
            self._pushing.take_all(_pushed(policy))

    async def end(self, grace_s: float) -> None:
        """Lead no more; let what is under way end for at most `grace_s` seconds."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=grace_s)
        for busy in self._busy:
            busy.cancel()
        if self._subscription is not None:
            try:
                await self._subscription.close()
            except StoreError as error:
                log.warning("the group %s could not be left: %s", GROUP, error)
        if self._pushing is not None:
            await self._pushing.end(grace_s)

    async def _run(self) -> None:
        while True:
            try:
                self._subscription = await self._mesh.bus.subscribe(TOPIC, GROUP, starts_at_oldest=True)
                await self._take(self._subscription)
            except StoreClosed:
                return
            except StoreError as error:
                log.warning("what is published to %s is not led now: %s", TOPIC, error)
                await asyncio.sleep(AGAIN_S)

    async def _take(self, subscription: Subscription) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(AT_ONCE)
        while True:
            await room.acquire()
            task = loop.create_task(self._led(subscription, await subscription.next()))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
            task.add_done_callback(lambda _: room.release())

    async def _led(self, subscription: Subscription, delivery: Delivery) -> None:
        try:
            try:
                await self._lead(subscription, delivery)
            except StoreError:
                raise
            except Exception:
                # Nothing that an event holds may end the leading of all others.
                log.exception("an event on %s could not be led", TOPIC)
                reason = "the sidecar failed at leading it; its log says more"
                await self._settle(subscription, delivery, Verdict.RETRY, None, reason)
        except StoreError as error:
            log.warning("an event on %s is led again once its time is over: %s", TOPIC, error)

    async def _lead(self, subscription: Subscription, delivery: Delivery) -> None:
        """Lead one event and settle it. Raises StoreError."""
        event, policy = delivery.event, self._mesh.policy
        section = policy.semantic
        if section is None:
            await subscription.settle(delivery, Verdict.RETRY, reason="the policy leads nothing any more")
            return
        try:
            words = words_of(event)
            choice, decision = await self._chosen(policy, section, event, words)
            if delivery.attempt == 1 or decision.targets:
                self._note(event, choice, decision)
            if not decision.targets:
                raise _Unled(f"{choice}: {decision.why}", is_final=True)
            await self._copy(delivery, choice, decision)
        except (_Unled, Refused, EventMalformed) as why:
            verdict, reason = Verdict.RETRY, str(why)[:REASON_CHARACTERS_MAX]
            # What an event says, and whom it fits, does not change by waiting; a router may answer then.
            is_final = why.is_final if isinstance(why, _Unled) else isinstance(why, EventMalformed)
            wait_s = 0.0 if is_final else None
            await self._settle(subscription, delivery, verdict, wait_s, reason)
            return
        await self._settle(subscription, delivery, Verdict.SUCCESS)

    async def _settle(
        self,
        subscription: Subscription,
        delivery: Delivery,
        verdict: Verdict,
        wait_s: float | None = None,
        reason: str = "",
    ) -> None:
        # Here and below: protobuf is loaded with the first event, and most sidecars lead none.
        from meshd.api.handing import Handed, settle

        handed = Handed(delivery, None, b"", *self._noted_of(delivery))
        await settle(self._mesh, subscription, handed, verdict, retry_after_s=wait_s, reason=reason)

    def _noted_of(self, delivery: Delivery) -> tuple[Actor, Told | None]:
        """Return as whom it is led, as the trace has it, and what its publisher's sidecar knew."""
        from meshd.api.handing import noted_of
        from meshd.api.session_contexts import own_context, publisher_of

        mesh = self._mesh
        context = publisher_of(mesh, delivery.token) or own_context(mesh, ROUTER)
        return noted_of(mesh, delivery, Actor(context.workflow or context.account, ROUTER, context.hops))

    async def _chosen(self, policy: Policy, section: SemanticSection, event: Event, words: str) -> tuple[str, Decision]:
        resolver: Resolver = self._mesh.proxy.intents  # type: ignore[assignment]
        publisher = event.source.partition("/")[0]
        if section.router is None:
            decision = resolver.led(policy, words, publisher, section.agents)
            return decision.choice.value, decision
        return ROUTED, await self._routed(policy, section, words, publisher)

    async def _routed(self, policy: Policy, section: SemanticSection, words: str, publisher: str) -> Decision:
        """Ask the router agent. Raises Refused and _Unled where it gives no answer that is one."""
        assert section.router is not None
        resolver: Resolver = self._mesh.proxy.intents  # type: ignore[assignment]
        bar = barred_by(policy, resolver.health, publisher, "POST", "/")
        scores = [one for one in resolver.rank(policy, words) if one.name != section.router]
        open_to = {one.name: one.score for one in scores if (why := bar(one.name)) is None or why.bar is Bar.HEALTH}
        asked = {
            "words": words,
            "at_most": section.agents,
            "agents": [{"name": name, "score": round(score, 3)} for name, score in open_to.items()],
        }
        answered = await ask(
            self._mesh.proxy,
            section.router,
            ROUTE,
            msgspec.json.encode(asked),
            errand="router",
            timeout_s=section.timeout,
        )
        try:
            told = msgspec.json.decode(answered.body, type=dict[str, Any]) if answered.status == 200 else {}
            named = told["agents"]
            if not isinstance(named, list):
                raise TypeError
            chosen = [name for name in dict.fromkeys(named) if name in open_to]
        except (msgspec.MsgspecError, KeyError, TypeError, RecursionError):
            raise _Unled(
                f'{section.router} answered with status {answered.status}, and not with {{"agents": [...]}}'
            ) from None
        if chosen:
            best = max(open_to[name] for name in chosen)
            return Decision(Choice.CHOSEN, tuple(chosen[: section.agents]), best, f"{section.router} chose so")
        fallback = policy.intents.fallback
        if fallback and fallback in open_to:
            return Decision(
                Choice.FALLBACK, (fallback,), 0.0, f"{section.router} named nobody: it goes to the fallback"
            )
        return Decision(Choice.UNCLEAR, (), 0.0, f"{section.router} named nobody that may have it")

    async def _copy(self, delivery: Delivery, choice: str, decision: Decision) -> None:
        """Publish a copy for each who is chosen. The same again is a duplicate: nobody gets two."""
        event, (actor, told) = delivery.event, self._noted_of(delivery)
        causes = () if told is None else (told.event,)
        copies = []
        for name in decision.targets:
            upstream = self._mesh.policy.upstreams.get(name)
            if upstream is None or not _takes_calls(upstream):
                # It subscribes by itself, perhaps later: its group must begin before the copy.
                await (await self._mesh.bus.subscribe(f"{TOPIC}.{name}", name)).close()
            said = {"meshintent": choice, "meshintentscore": f"{decision.score:.3f}"}
            copy = msgspec.structs.replace(
                event,
                topic=f"{TOPIC}.{name}",
                id=f"{event.id}.{name}"[-NAME_CHARACTERS_MAX:],
                causation_id=event.id,
                sequence="",
                extensions={**event.extensions, **said},
            )
            copies.append(Publication(copy, actor, causes))
        await publish_all(self._mesh, copies)

    def _note(self, event: Event, choice: str, decision: Decision) -> None:
        """Count a decision, log it, and put it into the workflow's trace. The words are content, and in none of it."""
        self._mesh.event_counts.led[choice] += 1
        fields = {
            "event": event.id,
            "workflow": event.correlation_id,
            "choice": choice,
            "targets": ", ".join(decision.targets),
            "score": round(decision.score, 3),
            "why": decision.why,
        }
        log.info("an event was led", extra={"fields": fields})
        if event.correlation_id:
            from meshd.api.leading_entries import note

            note(self._mesh, event, choice, decision)


def _takes_calls(upstream: Upstream) -> bool:
    return (
        upstream.kind is Kind.AGENT and not upstream.is_session and not upstream.is_peer and upstream.dialect == "plain"
    )


def _pushed(policy: Policy) -> Sequence[Any]:
    """Return the subscriptions of the agents that are led to, and take calls."""
    from meshd.policy.model_events import SubscriptionSection

    if policy.semantic is None:
        return ()
    return [
        SubscriptionSection(topic=f"{TOPIC}.{name}", to=name, starts_at_oldest=True)
        for name, upstream in policy.upstreams.items()
        if _takes_calls(upstream) and name != policy.semantic.router
    ]


def words_of(event: Event) -> str:
    """Return what an event wants, in words. Raises EventMalformed where it does not say."""
    text = _text_of(event).strip()
    words = " ".join("".join(one if one.isprintable() else " " for one in text).split())[:WORDS_CHARACTERS_MAX]
    if not words:
        raise EventMalformed(
            "data", f"says nothing in words: a text, a JSON text, or an object with {', '.join(WORDS_IN)}; or a subject"
        )
    return words


def _text_of(event: Event) -> str:
    content_type = event.data_content_type.partition(";")[0].strip().lower()
    if content_type.startswith("text/"):
        return event.data.decode("utf-8", "replace")
    try:
        data = msgspec.json.decode(event.data) if event.data else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return event.subject
    if isinstance(data, dict):
        data = next((data[name] for name in WORDS_IN if isinstance(data.get(name), str) and data[name].strip()), None)
    return data if isinstance(data, str) else event.subject
