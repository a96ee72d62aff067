"""init_db, setup_enhanced, create_api_key and run_maintenance."""

import json
import re
import sys
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.core.management.base import CommandParser
from django.utils.timezone import now

from gateway import cli
from gateway.jobs import PERIODIC
from gateway.management.commands import setup_enhanced
from monitoring.models import AuditLog, DataRetentionPolicy, PerformanceAlert, ScheduledTask
from registry.models import Tenant
from security.keys import hash_secret, parse_key
from security.models import EnhancedAPIKey
from tests.factories import (
    DataRetentionPolicyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    SessionFactory,
    TenantFactory,
)

pytestmark = pytest.mark.django_db
ALERTED = {
    "slow_statement_ms": (">", 1000),
    "index_usage_percent": ("<", 80),
    "table_growth_percent": (">", 20),
    "pool_utilisation_percent": (">", 85),
    "open_breakers": (">", 0),
    "error_rate": (">", 0.05),
    "p95_duration_ms": (">", 5000),
    "queue_depth": (">", 500),
    "dead_rows": (">", 1_000_000),
    "longest_transaction_seconds": (">", 300),
    "replication_lag_seconds": (">", 60),
    "wraparound_percent": (">", 40),
    "partition_days_ahead": ("<", 3),
    "failed_tasks": (">", 0),
    "task_late_seconds": (">", 300),
    "invalid_indexes": (">", 0),
    "rollup_lag_seconds": (">", 300),
    "spooled_log_rows": (">", 0),
    "lost_log_rows": (">", 0),
}


def test_init_db_makes_the_defaults_once_and_keeps_what_was_changed(capsys):
    call_command("init_db")
    assert (
        "1 tenant(s), 4 role group(s), 19 alert(s), 9 retention policies, 3 materialised"
        in capsys.readouterr().out
    )
    alerts = PerformanceAlert.objects.all()
    assert {a.metric_name: (a.comparison_operator, a.threshold_value) for a in alerts} == ALERTED
    assert Group.objects.get(name="admin").permissions.filter(codename="delete_mcpserver")
    readonly = Group.objects.get(name="readonly").permissions
    assert readonly.filter(codename="view_auditlog")
    assert not readonly.exclude(codename__startswith="view_").exists()

    DataRetentionPolicy.objects.filter(table_name="request_logs").update(retention_days=7)
    Group.objects.get(name="user").permissions.clear()
    call_command("init_db")
    assert (
        "0 tenant(s), 0 role group(s), 0 alert(s), 0 retention policies, 0 materialised"
        in capsys.readouterr().out
    )
    assert DataRetentionPolicy.objects.get(table_name="request_logs").retention_days == 7
    assert not Group.objects.get(name="user").permissions.exists()


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ([], ["init_db"]),
        (["--with-performance"], ["init_db", "optimize_db"]),
        (["--seed-data"], ["init_db", "seed_dev_data"]),
        (["--full"], ["init_db", "optimize_db", "seed_dev_data"]),
    ],
)
def test_setup_enhanced_runs_what_the_flags_say(flags, steps, monkeypatch):
    ran = []
    monkeypatch.setattr(setup_enhanced, "call_command", lambda name, **_: ran.append(name))
    call_command("setup_enhanced", *flags)
    assert ran == steps


def test_a_key_is_printed_once_and_works(capsys):
    TenantFactory(slug="default")
    call_command("create_api_key", "agent", "--json")
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"id", "name", "prefix", "key"}
    row = EnhancedAPIKey.objects.get(pk=document["id"])
    key = parse_key(document["key"])
    assert (row.name, row.key_prefix, row.scopes) == ("agent", key.prefix, ["proxy", "read"])
    assert bytes(row.key_hash) == hash_secret(salt=bytes(row.salt), secret=key.secret)
    assert key.secret not in str(AuditLog.objects.get(action="api_key.create").details)


def test_a_second_key_of_a_name_is_made_and_the_first_one_named(capsys):
    TenantFactory(slug="default")
    first, second = (made_key(capsys) for _ in range(2))
    assert "this name" not in first.err
    prefix = json.loads(first.out)["prefix"]
    assert f"Another key of default has this name and goes on: {prefix}." in second.err
    assert "revoke it in the admin" in second.err
    assert "this name" in made_key(capsys, " Agent ").err
    EnhancedAPIKey.objects.update(is_active=False)
    assert "this name" not in made_key(capsys).err
    EnhancedAPIKey.objects.update(is_active=True, expires_at=now() - timedelta(days=1))
    assert "this name" not in made_key(capsys).err


@pytest.mark.parametrize(
    "name",
    ["a\udcff", "a\x1b[31m", "a\nb", "a\u202eb", "\u200ba", "a\u2028b", "a\u2060", "a\u3164"],
)
def test_a_name_that_is_not_seen_as_it_is_is_refused(name, capsys):
    TenantFactory(slug="default")
    with pytest.raises(CommandError, match=r"^NAME: Leave out U\+.* cannot be seen") as caught:
        made_key(capsys, name)
    assert caught.value.returncode == 2
    assert not EnhancedAPIKey.objects.exists()
    made_key(capsys, "Größe \u0645\u06cc\u200c\u062e 👩\u200d💻")


def made_key(capsys, name="agent"):
    call_command("create_api_key", name, "--json")
    return capsys.readouterr()


def test_a_key_takes_all_its_restrictions(capsys):
    tenant = TenantFactory(slug="red")
    MCPServerFactory(tenant=tenant, slug="one")
    MCPServerFactory(tenant=None, slug="two")
    call_command(
        "create_api_key", "k", "--tenant", "red", "--scope", "proxy", "--scope", "metrics",
        "--server", "one", "--server", "two", "--ip", "10.0.0.0/8", "--expires", "30",
        "--per-hour", "10", "--per-day", "20",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert parse_key(captured.out.strip())
    assert "only time" in captured.err
    row = EnhancedAPIKey.objects.get()
    assert (row.tenant, row.scopes) == (tenant, ["proxy", "metrics"])
    assert (row.allowed_servers, row.ip_whitelist) == (["one", "two"], ["10.0.0.0/8"])
    assert timedelta(days=29) < row.expires_at - now() <= timedelta(days=30)
    assert (row.rate_limit_per_hour, row.rate_limit_per_day) == (10, 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tenant", "blue"], "no tenant 'blue'; there are: default"),
        (["--scope", "all"], "no scope 'all'; there are: read, write, admin"),
        (["--server", "theirs"], "no server 'theirs'; there are: mine"),
        (["--ip", "10.0.0.300"], "^--ip: '10.0.0.300' is no IP address or network"),
        (
            ["--ip", "10.0.0.1/8"],
            "^--ip: '10.0.0.1/8' is an .* write 10.0.0.0/8 for the network, or 10.0.0.1 for",
        ),
        (["--ip", "2001:db8::1/32"], "write 2001:db8::/32 for the network"),
        (["--expires", "0"], "1 to 36500"),
        (["--per-day", "0"], "--per-hour and --per-day take 1 and more"),
        (["--per-hour", "9999999999"], "^--per-hour: "),
    ],
)
def test_a_wrong_argument_says_what_there_is(arguments, words):
    MCPServerFactory(tenant=TenantFactory(slug="default"), slug="mine")
    Tenant.objects.exclude(slug="default").delete()
    with pytest.raises(CommandError, match=words) as caught:
        call_command("create_api_key", "k", *arguments)
    assert caught.value.returncode == 2
    assert not EnhancedAPIKey.objects.exists()


def test_a_name_that_is_too_long_is_said_to_be_the_names():
    TenantFactory(slug="default")
    with pytest.raises(CommandError, match=r"^NAME: .* at most 255 characters") as caught:
        call_command("create_api_key", "k" * 256)
    assert caught.value.returncode == 2


def test_archives_are_not_listed_before_there_is_a_folder(settings):
    settings.GATEWAY_ARCHIVE_DIR = None
    with pytest.raises(CommandError, match=r"^GATEWAY_ARCHIVE_DIR is not set: give it the abs"):
        call_command("restore_archive")


def test_an_unknown_command_is_wrong_usage_and_says_what_is_near(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mcp-gateway", "optimise-db"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "optimize_db" in capsys.readouterr().err


def test_wrong_usage_is_one_sentence(monkeypatch, capsys):
    # The parser is Django's own, and other tests call commands without the command line.
    monkeypatch.setattr(CommandParser, "error", CommandParser.error)
    monkeypatch.setattr(sys, "argv", ["mcp-gateway", "up", "--port", "soon"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("Error: argument --port: ")
    assert said.count("\n") == 1


def test_maintenance_runs_what_is_due_and_a_dry_run_only_says_it(capsys):
    old = SessionFactory(expires_at=now() - timedelta(days=8))
    SessionFactory(user=old.user)
    DataRetentionPolicyFactory(
        name="logins", table_name="sessions", date_column="expires_at", retention_days=7
    )
    call_command("run_maintenance", "--task", "retention_run", "--dry-run")
    out = capsys.readouterr().out
    assert "retention_run: 1 row due." in out
    assert re.search(r"\n  logins: 1 row \(about .*\) of sessions, where expires_at is before", out)
    assert type(old).objects.count() == 2
    call_command("run_maintenance", "--task", "retention_run")
    assert capsys.readouterr().out == "retention_run: 1 row done.\n"
    assert type(old).objects.count() == 1


def test_maintenance_runs_every_task(capsys):
    call_command("run_maintenance")
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines()] == list(PERIODIC)


def test_maintenance_keeps_the_record_that_the_worker_keeps():
    call_command("run_maintenance", "--task", "api_keys_expire")
    row = ScheduledTask.objects.get(name="api_keys_expire")
    assert (row.state, row.runs, row.last_count) == ("ok", 1, 0)
    assert row.next_run > now()


def test_maintenance_leaves_a_task_alone_that_somebody_runs(capsys):
    call_command("run_maintenance", "--task", "api_keys_expire")
    at = now()
    ScheduledTask.objects.filter(name="api_keys_expire").update(
        claim_id=uuid4(), claimed_by="host:1", running_since=at, lease_until=at + timedelta(hours=1)
    )
    with pytest.raises(CommandError, match=r"running since \S+ UTC \(host:1\)") as caught:
        call_command("run_maintenance", "--task", "api_keys_expire")
    assert caught.value.returncode == 1
    call_command("run_maintenance")
    out, err = capsys.readouterr()
    assert "Left out: api_keys_expire is running since" in err
    assert "gauges_remove: 0 rows done." in out
    assert ScheduledTask.objects.get(name="api_keys_expire").claimed_by == "host:1"


def test_an_unknown_task_is_wrong_usage():
    with pytest.raises(CommandError, match="choose one of: servers_health_check") as caught:
        call_command("run_maintenance", "--task", "nonsense")
    assert caught.value.returncode == 2


def test_a_failing_task_does_not_hide_the_others(monkeypatch, capsys):
    def fail(**_):
        raise RuntimeError("broken")

    broken = PERIODIC["retention_run"]
    monkeypatch.setitem(PERIODIC, broken.name, type(broken)(
        name=broken.name, cron=broken.cron, unit="", does="", due=None, run=fail
    ))  # fmt: skip
    with pytest.raises(CommandError, match="1 task failed: retention_run"):
        call_command("run_maintenance")
    assert "gauges_remove: 0 rows done." in capsys.readouterr().out


def test_keys_are_switched_off_a_month_after_their_end():
    long_over = EnhancedAPIKeyFactory(expires_at=now() - timedelta(days=31))
    just_over = EnhancedAPIKeyFactory(expires_at=now() - timedelta(days=1))
    assert PERIODIC["api_keys_expire"].run(at=now()) == 1
    long_over.refresh_from_db()
    just_over.refresh_from_db()
    assert (long_over.is_active, just_over.is_active) == (False, True)
    assert AuditLog.objects.get(action="api_key.expire").resource_id == str(long_over.pk)
