"""What access rules allow: the evaluator alone, rows in and verdict out."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.db.ids import uuid7
from security.access import AccessRule, Call, Caller, Target, decide, has_scope

MONDAY_NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ADD = Call("tools/call", "add")


def caller(**changes: Any) -> Caller:
    fields: dict[str, Any] = {
        "api_key_id": uuid4(),
        "user_id": None,
        "tenant_id": uuid4(),
        "tenant_slug": "acme",
        "tenant_status": "active",
        "tenant_settings": {},
        "scopes": ["proxy"],
        "allowed_servers": [],
        "allowed_methods": [],
        "rate_limit_per_hour": 10,
        "rate_limit_per_day": 10,
    }
    return Caller(**(fields | changes))


def target(rule: AccessRule | None = None, **changes: Any) -> Target:
    return Target(**({"id": uuid4(), "slug": "files", "is_enabled": True, "rule": rule} | changes))


def rule(**fields: Any) -> AccessRule:
    return AccessRule(id=uuid4(), **fields)


def verdict(
    who: Caller | None = None,
    what: Target | None = None,
    call: Call = ADD,
    at: datetime = MONDAY_NOON,
) -> str | None:
    refusal = decide(who or caller(), what or target(), call, slug="files", at=at)
    return refusal and refusal.reason.value


def test_without_a_rule_the_tenant_s_default_decides():
    assert verdict() is None
    assert verdict(caller(tenant_settings={"default_access": "allow"})) is None
    denying = caller(tenant_settings={"default_access": "deny"})
    assert verdict(denying) == "server_not_allowed"
    assert verdict(denying, target(rule())) is None


@pytest.mark.parametrize("status", ["suspended", "disabled"])
def test_a_tenant_out_of_service_calls_nothing(status: str):
    assert verdict(caller(tenant_status=status)) == "server_not_allowed"


def test_a_switched_off_server_is_not_found():
    assert verdict(what=target(is_enabled=False)) == "server_not_found"


@pytest.mark.parametrize(
    ("allowed", "denied", "call", "expected"),
    [
        (["tools/call"], [], ADD, None),
        (["tools/*"], [], ADD, None),
        (["tools/call:a*"], [], ADD, None),
        (["tools/call:b*"], [], ADD, "method_denied"),
        (["tools/list"], [], ADD, "method_denied"),
        ([], ["tools/call:delete_*"], ADD, None),
        ([], ["tools/call:delete_*"], Call("tools/call", "delete_all"), "method_denied"),
        (["*"], ["tools/call"], ADD, "method_denied"),
        # What keeps a connection alive needs no permission, but can be denied.
        (["tools/call"], [], Call("initialize"), None),
        (["tools/call"], [], Call("notifications/cancelled"), None),
        (["tools/call"], [], Call("tools/list"), "method_denied"),
        ([], ["initialize"], Call("initialize"), "method_denied"),
    ],
)
def test_methods(allowed: list[str], denied: list[str], call: Call, expected: str | None):
    ruled = target(rule(allowed_methods=allowed, denied_methods=denied))
    assert verdict(what=ruled, call=call) == expected
    if not denied:
        assert verdict(caller(allowed_methods=allowed), call=call) == expected


def test_a_denial_wins_over_every_permission():
    ruled = target(rule(allowed_methods=["tools/call:add"], denied_methods=["tools/call:add"]))
    assert verdict(caller(allowed_methods=["*"]), ruled) == "method_denied"


@pytest.mark.parametrize(
    ("fields", "at", "inside"),
    [
        ({"allowed_days": [0]}, MONDAY_NOON, True),
        ({"allowed_days": [1, 2]}, MONDAY_NOON, False),
        ({"allowed_hours": [12]}, MONDAY_NOON, True),
        ({"allowed_hours": [13]}, MONDAY_NOON, False),
        ({"allowed_hours": [13], "timezone": "Europe/Berlin"}, MONDAY_NOON, True),
        # Monday noon in London is Tuesday in Auckland.
        ({"allowed_days": [0], "timezone": "Pacific/Auckland"}, MONDAY_NOON, False),
        ({"access_start_time": time(12)}, MONDAY_NOON, True),
        ({"access_end_time": time(12)}, MONDAY_NOON, False),
        ({"access_start_time": time(9), "access_end_time": time(17)}, MONDAY_NOON, True),
        ({"access_start_time": time(22), "access_end_time": time(6)}, MONDAY_NOON, False),
        (
            {"access_start_time": time(22), "access_end_time": time(6)},
            MONDAY_NOON + timedelta(hours=11),
            True,
        ),
    ],
)
def test_times(fields: dict[str, Any], at: datetime, inside: bool):
    expected = None if inside else "outside_allowed_time"
    assert verdict(what=target(rule(**fields)), at=at) == expected


@given(
    start=st.times(),
    end=st.times(),
    minute=st.integers(0, 7 * 24 * 60),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/St_Johns", "Europe/Berlin"]),
)
def test_a_window_and_its_complement_share_no_moment_and_leave_none_out(
    start: time, end: time, minute: int, zone: str
):
    if start == end:
        return
    at = MONDAY_NOON + timedelta(minutes=minute)
    one = rule(access_start_time=start, access_end_time=end, timezone=zone)
    other = rule(access_start_time=end, access_end_time=start, timezone=zone)
    allowed = [verdict(what=target(r), at=at) is None for r in (one, other)]
    assert sorted(allowed) == [False, True]
    clock = at.astimezone(ZoneInfo(zone)).time()
    inside = start <= clock < end if start < end else clock >= start or clock < end
    assert allowed[0] is inside


def test_the_scope_admin_implies_the_others():
    assert has_scope(["admin"], "proxy")
    assert not has_scope(["read", "write"], "proxy")
    assert not has_scope([], "proxy")


def test_ids_are_version_7_and_ordered_by_time():
    made = [uuid7() for _ in range(1000)]
    assert {id_.version for id_ in made} == {7}
    assert {id_.variant for id_ in made} == {"specified in RFC 4122"}
    times = [id_.int >> 64 for id_ in made]
    assert times == sorted(times)
    assert len(set(made)) == 1000
