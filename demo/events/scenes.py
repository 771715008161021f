"""Scenes of choreography: who hears what, orders that come twice, and a view that is out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.checks import Checks
    from demo.events.world import World
    from demo.screen import Screen

TICK = {"symbol": "ACME", "price": 97, "mean": 100, "quantity": 100}
_CHAIN = [("market-analysis", "market.tick", 1), ("risk-assessment", "market.signal", 2)]
_CHAIN.append(("trade-execution", "risk.assessed", 3))


async def show_choreography(world: World, screen: Screen, checks: Checks) -> None:
    """A tick becomes a signal, an assessment and a trade; each agent knows topics alone."""
    screen.title("1  A tick becomes a signal, an assessment and a trade: nobody calls anybody")
    workflow = world.workflow("choreography")
    order = f"order-1-{world.run_id}"
    async with world.desk.workflow(workflow) as ctx:
        await ctx.publish("market.tick", {**TICK, "order": order}, key="ACME")
    executed = await world.until_result("trade.executed", workflow)
    heard = [(one["agent"], one["topic"], one["hops"]) for one in world.all_said("heard", workflow)]
    for agent, topic, hops in heard:
        screen.step(f"hop {hops}: {agent} hears {topic}")
    screen.step(f"the desk hears trade.executed: {executed['quantity']} {executed['symbol']} at {executed['price']}")
    checks.claim(heard == _CHAIN, "market.tick -> market.signal -> risk.assessed, in one workflow, one hop each", heard)
    placed = await world.books(order)
    checks.claim([one["quantity"] for one in placed] == [100], "the exchange's books: the order, once", placed)
    calls = await world.metric("meshd_calls_total", kind="agent")
    checks.claim(calls == 0, "meshd counts 0 calls from agent to agent", calls)


async def show_duplicates(world: World, screen: Screen, checks: Checks) -> None:
    """An order that comes again, as the same event or as another one, is carried out once."""
    screen.title("2  A trade order that comes three times is carried out once")
    workflow = world.workflow("duplicates")
    order = {"order": f"order-2-{world.run_id}", "symbol": "ACME", "quantity": 10}
    async with world.desk.workflow(workflow) as ctx:
        first = await ctx.publish("trade.ordered", order, id=f"a-{world.run_id}")
        again = await ctx.publish("trade.ordered", order, id=f"a-{world.run_id}")
        await world.until_result("trade.executed", workflow)
        await ctx.publish("trade.ordered", order, id=f"b-{world.run_id}")
        await world.until_result("trade.executed", workflow, 2)
        is_known = not first.is_duplicate and again.is_duplicate and again.sequence == first.sequence
        checks.claim(is_known, "the same event again: the bus has it already, and hands it out once", (first, again))
        executions = [one["execution"] for one in world.all_said("executed", workflow)]
        screen.step(f"the agent was told twice: {', '.join(executions)}")
        is_replayed = len(executions) == 2 and len(set(executions)) == 1
        checks.claim(is_replayed, "the same order in another event: the exchange's first answer again", executions)
        placed = await world.books(order["order"])
        checks.claim(len(placed) == 1, f"the exchange's books: {len(placed)} order", placed)
        await ctx.publish("trade.ordered", {**order, "quantity": 5000}, id=f"c-{world.run_id}")
        await world.until_result("trade.rejected", workflow)
    reasons = [one["reason"] for one in world.all_said("rejected", workflow)]
    placed = await world.books(order["order"])
    is_refused = reasons == ["key_reused"] and len(placed) == 1
    checks.claim(is_refused, "another quantity under the same order's number: refused, key_reused", (reasons, placed))


async def show_stale_view(world: World, screen: Screen, checks: Checks) -> None:
    """A trade that was decided by an old view of the risk is decided anew before anything is bought."""
    screen.title("3  The view of the risk changes while a trade is prepared: the old one is refused")
    workflow = world.workflow("stale")
    order = f"order-3-{world.run_id}"
    await world.trading("halt")
    try:
        async with world.desk.workflow(workflow) as ctx:
            await ctx.publish("market.tick", {**TICK, "order": order}, key="ACME")
            await world.until_said("pricing", workflow)
            screen.step("trading is halted: trade-execution waits for a price, and holds version 1 of the view")
            await ctx.publish("market.moved", {"symbol": "ACME"}, key="ACME")
            revised = await world.until_said("revised", workflow)
            screen.step(f"the market moves: risk-assessment writes version {revised['version']}, which allows 40")
    finally:
        await world.trading("resume")
    executed = await world.until_result("trade.executed", workflow)
    stale = world.all_said("stale", workflow)
    screen.step("trading resumes; trade-execution would enter its 100 into the view, and is told:")
    for one in stale:
        screen.quote(one["message"])
    seen = [(one["had"], one["newest"], one["writer"], one["wanted"]) for one in stale]
    text = "StateConflict: made from version 1, version 2 is there, by risk-assessment"
    checks.claim(seen == [(1, 2, "risk-assessment", 100)], text, seen)
    # What one sidecar's agents write it knows of; of another one's write it hears by reading it.
    orders = {"before", "concurrent"} if world.options.is_shared else {"equal", "after"}
    found = [one["order"] for one in stale]
    text = f"and how the clocks relate: {', '.join(found)}"
    checks.claim(set(found) <= orders and bool(found), text, found)
    placed = await world.books(order)
    is_cut = executed["quantity"] == 40 and [one["quantity"] for one in placed] == [40]
    checks.claim(is_cut, "it reads version 2 and goes on: 40 were bought, not 100", placed)
