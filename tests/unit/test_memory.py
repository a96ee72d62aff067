"""What calls are decided by, remembered: never older than the notices, bounded, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.contact import Contact, DatabaseAway
from gateway.proxy.memory import DATABASE_ERRORS, REREAD_SECONDS, Memory


@dataclass
class World:
    """A database of versions, one a key, and a memory of it; label and key are the same."""

    size: int = 100
    time: float = 1000.0
    rows: dict[str, int] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    works: bool = True
    during: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.contact = Contact(clock=lambda: self.time)
        self.memory: Memory[str, tuple[str, int]] = Memory(
            self.contact, size=self.size, labels=lambda value: frozenset({f"rows.key={value[0]}"})
        )

    async def get(self, key: str, **options: Any) -> tuple[str, int] | None:
        async def read() -> tuple[str, int] | None:
            self.reads.append(key)
            if not self.works:
                raise psycopg.OperationalError("no answer")
            found = (key, self.rows[key]) if key in self.rows else None
            await asyncio.sleep(0)
            self.during()
            return found

        return await self.memory.get(key, read, **options)

    def write(self, key: str) -> None:
        self.rows[key] = self.rows.get(key, 0) + 1

    def notice(self, key: str) -> None:
        self.memory.forget(f"rows.key={key}")


def run(story: Callable[[World], Any], **options: Any) -> World:
    world = World(**options)
    world.rows.update(a=1, b=1, c=1)
    asyncio.run(story(world))
    return world


def test_in_touch_a_value_is_read_once_until_a_notice_names_it() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        for _ in range(3):
            assert await world.get("a") == ("a", 1)
        world.write("a")
        world.notice("b")
        assert await world.get("a") == ("a", 1)
        world.notice("a")
        assert await world.get("a") == ("a", 2)

    assert run(story).reads == ["a", "a"]


def test_without_notices_every_call_reads() -> None:
    async def story(world: World) -> None:
        world.contact.reachable()
        await world.get("a")
        world.write("a")
        assert await world.get("a") == ("a", 2)

    run(story)


def test_many_callers_share_one_read_and_one_that_leaves_does_not_end_it() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        calls = [asyncio.ensure_future(world.get("a")) for _ in range(50)]
        await asyncio.sleep(0)
        calls[0].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [("a", 1)] * 49

    assert run(story).reads == ["a"]


def test_what_a_notice_names_while_it_is_read_is_read_again() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()

        def change_once() -> None:
            if world.rows["a"] == 1:
                world.write("a")
                world.notice("a")

        world.during = change_once
        assert await world.get("a") == ("a", 2)

    assert run(story).reads == ["a", "a"]


def test_a_table_s_name_drops_everything() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        await world.get("a")
        await world.get("b")
        world.memory.forget("rows")
        assert len(world.memory) == 0

    run(story)


def test_what_does_not_exist_or_is_not_wanted_pushes_nothing_out() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        await world.get("a")
        for number in range(10):
            assert await world.get(f"unknown {number}") is None
            assert await world.get("b", keep=lambda _: False) == ("b", 1)
        assert len(world.memory) == 1
        await world.get("a")

    assert run(story, size=2).reads.count("a") == 1


def test_the_least_recently_used_goes_first() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        for key in ("a", "b", "a", "c", "a"):
            await world.get(key)
        assert len(world.memory) == 2

    assert run(story, size=2).reads == ["a", "b", "c"]


def test_an_entry_in_use_is_read_again_now_and_then_without_a_wait() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        await world.get("a")
        world.write("a")  # with triggers switched off
        world.time += REREAD_SECONDS
        assert await world.get("a") == ("a", 1)
        while len(world.reads) < 2 or world.memory._readings:
            await asyncio.sleep(0)
        assert await world.get("a") == ("a", 2)

    assert run(story).reads == ["a", "a"]


def test_away_the_memory_answers_for_so_long_and_unknown_keys_do_not(settings: Any) -> None:
    settings.GATEWAY_STALE_SECONDS = 300

    async def story(world: World) -> None:
        world.contact.in_touch()
        await world.get("a")
        world.time += 1000
        world.contact.reachable()  # a sign of life: what is remembered is still true
        world.works = False
        world.contact.away()
        world.time += 300
        assert await world.get("a") == ("a", 1)
        with pytest.raises(DatabaseAway):
            await world.get("b")
        world.time += 1
        with pytest.raises(DatabaseAway):
            await world.get("a")

    run(story)


def test_zero_seconds_refuse_at_once(settings: Any) -> None:
    settings.GATEWAY_STALE_SECONDS = 0

    async def story(world: World) -> None:
        world.contact.in_touch()
        assert await world.get("a") == await world.get("a")
        world.works = False
        world.contact.lost()
        with pytest.raises(psycopg.OperationalError):
            await world.get("a")

    assert run(story).reads == ["a", "a"]


def test_a_read_that_fails_leaves_what_is_remembered_and_no_more_than_that() -> None:
    async def story(world: World) -> None:
        world.contact.reachable()
        await world.get("a")
        world.works = False
        assert await world.get("a") == ("a", 1)
        world.notice("a")  # it has changed for certain
        with pytest.raises(psycopg.OperationalError):
            await world.get("a")

    run(story)


def test_changes_while_nobody_listened_count_afterwards() -> None:
    async def story(world: World) -> None:
        world.contact.in_touch()
        await world.get("a")
        world.contact.away()
        world.write("a")
        assert await world.get("a") == ("a", 1)
        world.contact.in_touch()
        assert await world.get("a") == ("a", 2)

    run(story)


def write_and_tell(world: World, key: str) -> None:
    world.write(key)
    if world.contact.era is not None:
        world.notice(key)


def wait(world: World, _key: str) -> None:
    world.time += 25


STEPS: dict[str, Callable[[World, str], None]] = {
    "get": lambda *_: None,
    "write": write_and_tell,
    "lose": lambda world, _: world.contact.lost(),
    "fail": lambda world, _: world.contact.away(),
    "listen": lambda world, _: world.contact.in_touch(),
    "wait": wait,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from("abc")), max_size=60))
def test_in_touch_nothing_old_is_ever_given(steps: list[tuple[str, str]]) -> None:
    """Whatever happens before: while notices come and the database answers, truth is told."""

    async def story(world: World) -> None:
        for step, key in [("listen", ""), *steps]:
            STEPS[step](world, key)
            try:
                found = await world.get(key or "a")
            except DATABASE_ERRORS:
                assert world.contact.is_away
                continue
            if world.contact.era is not None:
                assert found == (key or "a", world.rows[key or "a"])

    run(story, size=2)
