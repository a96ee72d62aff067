"""The due table: what is due, what a run leaves there, and what becomes of those that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils.timezone import now

from monitoring import schedule
from monitoring.models import AuditLog, ScheduledTask, TaskOutcome
from monitoring.schedule import (
    LEASE,
    QUEUED,
    TaskBusy,
    task_run_now,
    task_start,
    tasks_claim,
    tasks_reap,
    tasks_sync,
)
from registry.periodic import PeriodicTask
from tests.api import client_of
from tests.factories import ScheduledTaskFactory

pytestmark = pytest.mark.django_db

AT = datetime(2026, 6, 15, 12, 0, 30, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def task(name: str = "count", cron: str = "* * * * *", **fields: Any) -> PeriodicTask:
    told = {"unit": "things", "does": "Count.", "due": None, "run": lambda at, stop: 3}
    return PeriodicTask(name=name, cron=cron, **{**told, **fields})


def broken(**fields: Any) -> PeriodicTask:
    def fail(*, at: datetime, stop: Callable[[], bool]) -> int:
        raise RuntimeError("the disk is full")

    return task(run=fail, **fields)


def row(name: str = "count") -> ScheduledTask:
    return ScheduledTask.objects.get(name=name)


def run_due(*tasks: PeriodicTask, at: datetime) -> list[str]:
    """What one worker does: claims and runs; the names of what ran."""
    tasks_reap(tasks, at=at)
    by_name = {each.name: each for each in tasks}
    claims = tasks_claim(tasks, at=at, by="here")
    for claim in claims:
        try:
            task_start(by_name[claim.name], claim, at=at)
        except RuntimeError:
            continue
    return [claim.name for claim in claims]


def test_rows_follow_the_code() -> None:
    tasks_sync([task("often"), task("nightly", "40 1 * * *"), task("gone")], at=AT)
    assert row("often").next_run == AT, "what is new and runs often is due at once"
    assert row("nightly").next_run == datetime(2026, 6, 16, 1, 40, tzinfo=UTC)
    ScheduledTask.objects.filter(name="often").update(runs=7, next_run=AT + MINUTE)
    changed = [task("often", does="Count anew."), task("nightly", "10 0 * * *")]
    tasks_sync(changed, at=AT)
    assert ScheduledTask.objects.count() == 3, "another version's worker may need it"
    tasks_sync(changed, at=AT, remove=True)
    often, nightly = row("often"), row("nightly")
    assert (often.runs, often.next_run, often.description) == (7, AT + MINUTE, "Count anew.")
    assert (nightly.schedule, nightly.next_run.hour) == ("10 0 * * *", 0)
    assert ScheduledTask.objects.count() == 2


def test_a_run_leaves_what_an_operator_asks_for() -> None:
    tasks_sync([task()], at=AT)
    (claim,) = tasks_claim([task()], at=AT, by="host:1")
    assert (row().state, row().claimed_by) == ("queued", "host:1")
    assert task_start(task(), claim, at=AT) == 3
    found = row()
    assert (found.state, found.last_count, found.runs, found.last_error) == ("ok", 3, 1, "")
    assert found.last_started == AT <= found.last_finished < AT + MINUTE
    assert found.last_duration_ms >= 0
    assert found.next_run == AT.replace(minute=1, second=0)
    assert (found.claim_id, found.lease_until, found.claimed_by) == (None, None, "")


def test_a_pause_is_made_up_for_by_one_run() -> None:
    tasks_sync([task()], at=AT)
    runs = [run_due(task(), at=at) for at in (AT, AT + 3 * DAY, AT + 3 * DAY + MINUTE / 6)]
    assert runs == [["count"], ["count"], []]


def test_a_failing_task_is_seen_and_tried_less_and_less_often_but_never_lost() -> None:
    failing = broken(cron="40 1 * * *", longest_back_off=timedelta(minutes=5))
    tasks_sync([failing], at=AT)
    at, waits = row().next_run, []
    for _ in range(6):
        assert run_due(failing, at=at) == ["count"]
        found = row()
        assert (found.state, found.last_error) == ("failed", "the disk is full")
        waits.append(round((found.next_run - at).total_seconds()))
        assert run_due(failing, at=found.next_run - MINUTE / 60) == []
        at = found.next_run
    assert waits == [30, 60, 120, 240, 300, 300]
    assert (found.failures, found.failures_in_a_row) == (6, 6)
    well = task(cron="40 1 * * *")
    assert run_due(well, at=at) == ["count"]
    assert (row().state, row().failures, row().failures_in_a_row) == ("ok", 6, 0)
    assert row().next_run == datetime(2026, 6, 17, 1, 40, tzinfo=UTC)


def test_what_runs_often_is_not_slowed_down_by_one_failure() -> None:
    failing = broken(cron="* * * * * */10")
    tasks_sync([failing], at=AT)
    run_due(failing, at=AT)
    assert (row().next_run - AT).total_seconds() == pytest.approx(10, abs=1)


def test_a_run_that_is_cut_off_is_done_again() -> None:
    nightly = task(cron="40 1 * * *")
    tasks_sync([nightly], at=AT)
    at = row().next_run
    (claim,) = tasks_claim([nightly], at=at, by="killed")
    killed = schedule._held(claim)
    killed.update(**schedule._begun(nightly, at))
    assert run_due(nightly, at=at + LEASE / 2) == [], "it may be at work"
    assert row().state == "running"
    assert run_due(nightly, at=at + LEASE) == ["count"]
    assert (row().state, row().failures, row().runs) == ("ok", 1, 2)
    # And the one that was thought dead changes nothing when it wakes up.
    schedule._note(nightly, claim, at=at + DAY, milliseconds=1.0, error=RuntimeError("late"))
    assert row().last_error == ""


def test_what_kills_its_worker_again_and_again_waits_longer_each_time() -> None:
    tasks_sync([task()], at=AT)
    waits, at = [], AT
    for _ in range(4):
        (claim,) = tasks_claim([task()], at=at, by="killed")
        schedule._held(claim).update(**schedule._begun(task(), at))
        assert tasks_reap([task()], at=at + LEASE) == 1
        assert (row().state, row().claimed_by) == ("cut off", "")
        waits.append((row().next_run - at - LEASE).total_seconds())
        at = row().next_run
    assert waits == [0, 60, 120, 240]


def test_a_job_that_never_began_takes_no_run_with_it() -> None:
    nightly = task(cron="40 1 * * *")
    tasks_sync([nightly], at=AT)
    at = row().next_run
    (first,) = tasks_claim([nightly], at=at, by="here")
    assert tasks_claim([nightly], at=at + QUEUED / 2, by="there") == []
    (second,) = tasks_claim([nightly], at=at + QUEUED, by="there")
    assert task_start(nightly, first, at=at + QUEUED) is None, "the job that was late after all"
    assert task_start(nightly, second, at=at + QUEUED) == 3
    assert row().runs == 1


def test_a_paused_task_is_left_alone_and_runs_once_when_it_is_resumed() -> None:
    tasks_sync([task()], at=AT)
    ScheduledTask.objects.update(is_paused=True)
    assert run_due(task(), at=AT + DAY) == []
    assert row().state == "paused"
    assert task_run_now(task(), at=AT + DAY, by="somebody") == 3
    ScheduledTask.objects.update(is_paused=False)
    assert run_due(task(), at=AT + 2 * DAY) == ["count"]


def test_whoever_runs_a_task_by_hand_is_told_who_else_does() -> None:
    tasks_sync([task()], at=AT)
    (claim,) = tasks_claim([task()], at=AT, by="host:1")
    schedule._held(claim).update(**schedule._begun(task(), AT))
    with pytest.raises(TaskBusy, match=r"count is running since 12:00:30 UTC \(host:1\)"):
        task_run_now(task(), at=AT + MINUTE / 2, by="me")
    assert task_run_now(task(), at=AT + LEASE, by="me") == 3, "nobody is there any more"


def test_a_run_by_hand_takes_the_place_of_one_that_waits() -> None:
    tasks_sync([task()], at=AT)
    (claim,) = tasks_claim([task()], at=AT, by="here")
    assert task_run_now(task(), at=AT, by="me") == 3
    assert task_start(task(), claim, at=AT) is None


# --------------------------------------------------------------------------- API and admin

LIST = "/api/v1/tasks"


def test_an_operator_has_a_task_run_pauses_and_resumes_it() -> None:
    found = ScheduledTaskFactory(name="nightly", next_run=AT + 10_000 * DAY)
    client = client_of(None)
    shown = client.get(f"{LIST}/{found.pk}").json()
    assert (shown["name"], shown["state"]) == ("nightly", "not run yet")
    assert client.post(f"{LIST}/{found.pk}/run").status_code == 202
    assert row("nightly").next_run < AT + 9_000 * DAY
    paused = client.patch(f"{LIST}/{found.pk}", {"is_paused": True}, format="json").json()
    assert (paused["state"], paused["is_paused"]) == ("paused", True)
    refused = client.post(f"{LIST}/{found.pk}/run")
    assert (refused.status_code, "Resume it" in refused.json()["detail"]) == (409, True)
    client.patch(f"{LIST}/{found.pk}", {"is_paused": False}, format="json")
    actions = list(AuditLog.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["periodic_task.run", "periodic_task.update", "periodic_task.update"]


def test_who_asks_the_api_is_told_what_is_late() -> None:
    ScheduledTaskFactory(name="due", next_run=now() - timedelta(seconds=50))
    ScheduledTaskFactory(name="late", next_run=now() - timedelta(seconds=70))
    failed = {"next_run": now() - timedelta(hours=1), "last_outcome": TaskOutcome.FAILED}
    ScheduledTaskFactory(name="failed", **failed)
    found = client_of(None).get(LIST).json()["results"]
    assert {each["name"]: (each["state"], each["is_late"]) for each in found} == {
        "due": ("not run yet", False),
        "late": ("late", True),
        "failed": ("failed", True),
    }


def test_nothing_but_the_pause_can_be_changed() -> None:
    found = ScheduledTaskFactory()
    client_of(None).patch(f"{LIST}/{found.pk}", {"schedule": "x", "runs": 9}, format="json")
    found.refresh_from_db()
    assert (found.schedule, found.runs) == ("* * * * *", 0)


def test_who_may_read_may_not_run() -> None:
    found = ScheduledTaskFactory()
    client = client_of(None, scopes=["metrics"])
    assert client.get(LIST).status_code == 200
    assert client.post(f"{LIST}/{found.pk}/run").status_code == 403


def test_the_admin_shows_tasks_and_has_them_run(admin_client) -> None:
    failed = ScheduledTaskFactory(
        last_outcome="failed", last_error="the disk is full", next_run=AT + 10_000 * DAY
    )
    page = reverse("admin:monitoring_scheduledtask_changelist")
    assert "failed" in admin_client.get(page).text
    change = reverse("admin:monitoring_scheduledtask_change", args=[failed.pk])
    assert "the disk is full" in admin_client.get(change).text
    assert admin_client.post(change, {"name": "x"}).status_code == 403
    for action, words in {
        "run_soon": "1 task(s) wait for a worker.",
        "pause": "1 task(s) paused.",
        "resume": "1 task(s) resumed.",
    }.items():
        chosen = {"action": action, "_selected_action": [failed.pk]}
        assert words in admin_client.post(page, chosen, follow=True).text
    failed.refresh_from_db()
    assert failed.next_run < AT + 9_000 * DAY
