"""The bounded priority queue, on an event loop without any network."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.gate import Gate, GateLimits, QueueFull, QueueTimeout


def limits(slots: int = 1, waiting: int = 10, wait: float = 5.0, levels: int = 3) -> GateLimits:
    return GateLimits(slots=slots, waiting=waiting, wait_seconds=wait, priority_levels=levels)


async def hold(gate: Gate, release: asyncio.Event, *, priority: int = 1) -> None:
    async with gate.slot(priority=priority):
        await release.wait()


async def settled(gate: Gate, *, active: int, waiting: int) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    assert (gate.active, gate.waiting) == (active, waiting)


def test_full_means_full_and_a_freed_slot_is_handed_over():
    async def scenario() -> None:
        gate, release = Gate(limits(slots=1, waiting=1)), asyncio.Event()
        tasks = [asyncio.create_task(hold(gate, release)) for _ in range(2)]
        await settled(gate, active=1, waiting=1)
        with pytest.raises(QueueFull) as full:
            await hold(gate, release)
        assert 1 <= full.value.retry_after <= 60
        release.set()
        await asyncio.gather(*tasks)
        assert (gate.active, gate.waiting, gate.processed) == (0, 0, 2)

    asyncio.run(scenario())


def test_waiting_ends_at_the_time_out():
    async def scenario() -> None:
        gate, release = Gate(limits(wait=0.01)), asyncio.Event()
        holder = asyncio.create_task(hold(gate, release))
        await settled(gate, active=1, waiting=0)
        with pytest.raises(QueueTimeout):
            await hold(gate, release)
        assert (gate.waiting, gate.timeouts) == (0, 1)
        release.set()
        await holder

    asyncio.run(scenario())


def test_more_slots_let_waiting_calls_in_at_once():
    async def scenario() -> None:
        gate, release = Gate(limits(slots=1)), asyncio.Event()
        tasks = [asyncio.create_task(hold(gate, release)) for _ in range(3)]
        await settled(gate, active=1, waiting=2)
        gate.resize(limits(slots=3))
        await settled(gate, active=3, waiting=0)
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 4),
    bound=st.integers(0, 6),
    plan=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["finish", "cancel"])), max_size=25),
    seed=st.integers(0, 10_000),
)
def test_no_slot_is_lost_or_used_twice(
    slots: int, bound: int, plan: list[tuple[int, str]], seed: int
):
    """Whatever the order of arrivals, ends and cancellations."""

    async def scenario() -> None:
        gate, chance = Gate(limits(slots=slots, waiting=bound)), random.Random(seed)
        running: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for priority, how in plan:
            release = asyncio.Event()
            task = asyncio.create_task(hold(gate, release, priority=priority))
            running.append((task, release))
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            victim, event = chance.choice(running)
            if how == "cancel":
                victim.cancel()
            else:
                event.set()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            assert 0 <= gate.active <= slots
            assert 0 <= gate.waiting <= max(bound, 0)
        for _, event in running:
            event.set()
        await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
        assert (gate.active, gate.waiting) == (0, 0)
        async with gate.slot(priority=0) as waited:
            assert waited < 1000

    asyncio.run(scenario())
