"""`/metrics`: who may read it, what stands there, and that it stands there without PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from gateway.models import CircuitBreaker
from gateway.proxy import readings
from gateway.proxy.contact import Contact
from gateway.proxy.figures import FIGURES, Board
from gateway.proxy.metrics import _help
from gateway.proxy.plane import DataPlane
from gateway.proxy.readings import SLOW, SLOW_TOO_OLD_SECONDS, Readings
from monitoring.alerts.metrics import METRICS
from monitoring.queries import performance_metrics
from registry.db.tenancy import operator_transaction
from tests.factories import (
    EnhancedAPIKeyFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    TenantFactory,
)
from tests.integration.gateway.conftest import Scene, running_gateway, told, wait_until
from tests.relay import Relay, relayed

Reader = Callable[[], Awaitable[Any]]
Samples = dict[str, list[tuple[dict[str, str], float]]]
COLD = "mcpgw_0123456789ab_" + "0" * 64


def scrape(url: str, key: str = "", method: str = "GET", **headers: str) -> httpx2.Response:
    if key:
        headers["authorization"] = f"Bearer {key}"
    return httpx2.request(method, f"{url}/metrics", headers=headers, trust_env=False)


def samples(answer: httpx2.Response) -> Samples:
    assert answer.status_code == 200, answer.text
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.fixture
def operator_key(transactional_db: None) -> str:
    return EnhancedAPIKeyFactory(tenant=None, scopes=["metrics"]).text


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.proxy.plane.FIGURES_SECONDS", 0.1)


# ---------------------------------------------------------------- who may read


MAY: list[tuple[Any, list[str], bool]] = [
    (None, ["metrics"], True),
    (None, ["admin"], True),
    (None, ["read", "proxy", "health"], False),
    ({}, ["metrics", "admin"], False),
    ({"settings": {"runs_gateway": True}}, ["metrics"], True),
    ({"settings": {"runs_gateway": True}, "status": "suspended"}, ["metrics"], False),
]


def test_keys_of_operators_with_the_scope_may_read(gateway_url: str, settings: Any):
    for tenant, scopes, may in MAY:
        owner = None if tenant is None else TenantFactory(**tenant)
        answer = scrape(gateway_url, EnhancedAPIKeyFactory(tenant=owner, scopes=scopes).text)
        assert answer.status_code == (200 if may else 403), (tenant, scopes)
        assert may or answer.json()["reason"] == "scope_missing"
        assert may or "scope 'metrics'" in answer.json()["detail"]
    settings.GATEWAY_METRICS_OPEN = True
    empty = scrape(gateway_url, method="HEAD")
    assert (empty.status_code, empty.text) == (200, "")


@pytest.mark.parametrize("page", ["README.md", "docs/metrics.md"])
def test_the_command_that_is_written_down_makes_a_key_that_may_read(
    page: str, gateway_url: str, capsys: pytest.CaptureFixture[str]
):
    call_command("init_db")
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    found = re.search(r"create_api_key (prometheus [-a-z ]*[a-z])", text)
    assert found
    capsys.readouterr()
    call_command("create_api_key", *found[1].split())
    assert scrape(gateway_url, capsys.readouterr().out.strip()).status_code == 200


def test_others_are_told_what_is_missing(gateway_url: str, operator_key: str):
    nobody = scrape(gateway_url)
    assert (nobody.status_code, nobody.json()["reason"]) == (401, "missing_credentials")
    assert nobody.headers["www-authenticate"].startswith("Bearer")
    assert nobody.json()["request_id"] == nobody.headers["x-request-id"]
    for wrong in (COLD, operator_key[:-4] + "zzzz", "nonsense"):
        assert scrape(gateway_url, wrong).json()["reason"] == "invalid_credentials"
    elsewhere = EnhancedAPIKeyFactory(
        tenant=None, scopes=["metrics"], ip_whitelist=["192.0.2.0/24"]
    )
    assert scrape(gateway_url, elsewhere.text).json()["reason"] == "ip_not_allowed"
    changed = scrape(gateway_url, operator_key, method="POST")
    assert (changed.status_code, changed.headers["allow"]) == (405, "GET, HEAD")
    assert scrape(gateway_url, operator_key).status_code == 200
    with connection.cursor() as cursor:
        cursor.execute("UPDATE enhanced_api_keys SET is_active = false")
    wait_until(lambda: scrape(gateway_url, operator_key).status_code == 401)


# ---------------------------------------------------------------- what stands there


def test_every_row_of_the_view_is_a_gauge(scene: Scene, operator_key: str):
    CircuitBreaker.objects.filter(server=scene.server).update(state="open")
    PerformanceAlertFactory(severity="critical", is_triggered=True)
    rows = [row for row in performance_metrics() if row["value"] is not None]
    assert len(rows) > 8
    found = samples(scrape(scene.url, operator_key))
    for row in rows:
        shown = {labels["subject"] for labels, _ in found[f"mcp_gateway_{row['metric']}"]}
        assert (row["subject"] or "") in shown
    subject = f"{scene.tenant.slug}/{scene.server.slug}"
    assert ({"subject": subject}, 1.0) in found["mcp_gateway_open_breakers"]
    assert ({"state": "open"}, 1.0) in found["mcp_gateway_breakers"]
    assert ({"severity": "critical"}, 1.0) in found["mcp_gateway_alerts_firing"]
    ahead = {labels["table"]: days for labels, days in found["mcp_gateway_partitions_ahead_days"]}
    assert ahead.keys() == {"audit_logs", "request_logs", "server_metrics"}
    assert all(days > 13 for days in ahead.values())
    assert found["mcp_gateway_database_up"] == [({}, 1.0)]
    _both_formats(scene.url, operator_key)


def test_every_family_says_what_it_is(scene: Scene, operator_key: str):
    CircuitBreaker.objects.filter(server=scene.server).update(state="open")
    scene.row(scene.call())
    families = list(text_string_to_metric_families(scrape(scene.url, operator_key).text))
    said = {family.name: family.documentation for family in families}
    assert len(said) > 45
    for name, text in said.items():
        assert text.endswith("."), name
        assert len(text) > 10, name
        assert text.strip(".") not in {name, name.removeprefix("mcp_gateway_")}
    assert len(set(said.values())) == len(said)
    units = {row["metric"]: row["unit"] for row in performance_metrics()}
    for name, metric in METRICS.items():
        if (text := said.get(f"mcp_gateway_{name}", "")) and name in units:
            assert text.casefold() == f"{metric.about}. unit: {units[name]}.".casefold()
            del units[name]
    without_value = [row["metric"] for row in performance_metrics() if row["value"] is None]
    assert units.keys() <= set(without_value)


def test_a_metric_that_only_the_view_knows_is_told_with_its_unit():
    assert _help("novelty", "s") == "Novelty of performance_monitoring. Unit: s."
    assert _help("novelty", "") == "Novelty of performance_monitoring. Unit: none."


def _both_formats(url: str, key: str) -> None:
    text = scrape(url, key, accept="text/plain;version=0.0.4")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    modern = scrape(url, key, accept="application/openmetrics-text;version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics_families(modern.text)}
    assert names == {family.name for family in text_string_to_metric_families(text.text)}
    odd = scrape(url, key, accept="application/openmetrics-text;version=x.y")
    assert odd.headers["content-type"].startswith("text/plain")


def test_calls_are_counted_and_timed(scene: Scene, operator_key: str):
    answers = [scene.call() for _ in range(3)] + [scene.send(slug="nowhere")]
    for answer in answers:
        scene.row(answer)
    found = samples(scrape(scene.url, operator_key))
    assert found["mcp_gateway_requests_total"] == [({}, 4.0)]
    assert found["mcp_gateway_request_errors_total"] == [({}, 1.0)]
    assert found["mcp_gateway_request_duration_seconds_count"] == [({}, 4.0)]
    buckets = found["mcp_gateway_request_duration_seconds_bucket"]
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1] == ({"le": "+Inf"}, 4.0)
    assert 0 < found["mcp_gateway_request_duration_seconds_sum"][0][1] < 60


def test_processes_show_each_other_s_figures(scene: Scene, operator_key: str):
    scene.call()
    first = told[scene.url].plane
    with running_gateway() as url:
        second = told[url].plane
        both = {first.gauges.name, second.gauges.name}

        def shown() -> Samples | None:
            found = samples(scrape(url, operator_key))
            ended = {of["process"]: n for of, n in found["mcp_gateway_calls_ended_total"]}
            return found if ended == {first.gauges.name: 1, second.gauges.name: 0} else None

        found = wait_until(shown)
        for name, figure in FIGURES.items():
            rows = found[f"mcp_gateway_{name}"]
            assert {labels["process"] for labels, _ in rows} == both, name
            assert all(labels.keys() == {"process", *figure.labels} for labels, _ in rows)
        hits = found["mcp_gateway_memory_reads_total"]
        assert ({"process": first.gauges.name, "memory": "routes"}, 1.0) in hits
    gone = samples(scrape(scene.url, operator_key))["mcp_gateway_log_rows_waiting"]
    assert [labels["process"] for labels, _ in gone] == [first.gauges.name]


def test_a_process_that_has_died_is_left_out(tmp_path: Any):
    alive, dead = Board(tmp_path, name="here:1:a"), Board(tmp_path, name="here:2:b")
    alive._group = dead._group = f"{os.getppid()}@here:"
    dead.write([("log_rows_waiting", (), 3.0), ("unknown", (), 1.0)])
    assert alive.others() == {"here:2:b": [("log_rows_waiting", (), 3.0)]}
    (file,) = tmp_path.glob("*.json")
    os.utime(file, (time.time() - 20,) * 2)
    assert alive.others() == {}
    assert file.exists()
    os.utime(file, (time.time() - 1000,) * 2)
    assert alive.others() == {}
    assert not file.exists()
    file.write_text("[")
    assert alive.others() == {}


def test_a_folder_that_cannot_be_used_hides_the_others_only(tmp_path: Any):
    (tmp_path / "file").write_text("")
    board = Board(tmp_path / "file", name="x")
    board.write([])
    board.leave()
    assert board.others() == {}


# ---------------------------------------------------------------- the database's part


class Clocked:
    """A gateway's `/metrics` by a clock of its own, and how often PostgreSQL was read for it."""

    def __init__(self, scene: Scene, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.quick, self.slow = 1000.0, 0, 0
        self._address = (scene.url, key)
        plane = told[scene.url].plane
        read = Readings(plane.pool, plane.contact, clock=lambda: self.now)
        quick, slow = read._quick._read, read._slow._read

        async def quickly() -> Any:
            self.quick += 1
            return await quick()

        async def slowly() -> Any:
            self.slow += 1
            return await slow()

        read._quick._read, read._slow._read = quickly, slowly
        self._slow = read._slow
        monkeypatch.setattr(plane.metrics, "_readings", read)

    def scrape(self) -> Samples:
        return samples(scrape(*self._address))

    def plays(self, fault: Exception) -> Reader:
        """Slow figures fail from now on; returns what read them."""

        async def broken() -> Any:
            self.slow += 1
            raise fault

        return self.reads_slowly(broken)

    def reads_slowly(self, read: Reader) -> Reader:
        before, self._slow._read = self._slow._read, read
        return before

    def settled(self) -> None:
        """The reading that the last scrape has begun is over."""
        wait_until(lambda: self._slow._task is not None and self._slow._task.done())

    @property
    def readings(self) -> tuple[int, int]:
        return self.quick, self.slow


@pytest.fixture
def clocked(scene: Scene, operator_key: str, monkeypatch: pytest.MonkeyPatch) -> Clocked:
    return Clocked(scene, operator_key, monkeypatch)


def test_all_who_ask_within_seconds_cost_one_reading(clocked: Clocked):
    for _ in range(5):
        clocked.scrape()
    assert clocked.readings == (1, 1)
    clocked.now += 5
    clocked.scrape()
    assert clocked.readings == (2, 1)


LOGS = ("audit_logs", "request_logs", "server_metrics")


def _read_by(statement: str) -> tuple[set[str], set[str]]:
    """Tables and views in a statement's plan, and those that it scanned, in functions too."""
    with operator_transaction(), connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}")
        planned = re.findall(r"'Relation Name': '(\w+)'", str(cursor.fetchone()))
        cursor.execute(statement)
        cursor.execute(
            "SELECT relname FROM pg_stat_xact_user_tables"
            " WHERE seq_scan + coalesce(idx_scan, 0) > 0"
        )
        return set(planned), {name for (name,) in cursor.fetchall()}


def _of_logs(tables: set[str]) -> set[str]:
    return {table for table in tables if table.startswith(LOGS)}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("statement", ["_QUICK", "_SLOW", "_ALERTS", "_BREAKERS"])
def test_no_figure_reads_a_log(statement: str):
    RequestLogFactory()
    planned, scanned = _read_by(getattr(readings, statement))
    assert planned
    assert (_of_logs(planned), _of_logs(scanned)) == (set(), set())
    planned, scanned = _read_by("SELECT count(*) FROM request_logs")
    assert _of_logs(planned)
    assert _of_logs(scanned)


def test_what_is_read_slowly_are_metrics():
    assert set(SLOW) < METRICS.keys()


@pytest.fixture
def ballast(transactional_db: None) -> Iterator[Callable[[], None]]:
    """Makes the database larger."""

    def execute(statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    execute("CREATE TABLE ballast (text text)")
    rows = "SELECT repeat('x', 1000) FROM generate_series(1, 900)"
    yield lambda: execute(f"INSERT INTO ballast {rows}")
    execute("DROP TABLE ballast")


def test_slow_figures_are_read_anew_while_the_last_ones_are_shown(
    clocked: Clocked, ballast: Callable[[], None]
):
    def size() -> float:
        return clocked.scrape()["mcp_gateway_database_size_bytes"][0][1]

    first = size()
    ballast()
    clocked.now += 60
    assert size() == first
    wait_until(lambda: size() > first)
    assert clocked.slow == 2
    second = size()
    ballast()
    clocked.now += 120  # nobody has asked for so long that the answer waits for them
    assert size() > second
    assert clocked.slow == 3


def test_a_reading_that_fails_leaves_the_rest(clocked: Clocked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.proxy.readings._QUICK", "SELECT * FROM no_such_view")
    found = clocked.scrape()
    assert found["mcp_gateway_database_up"] == [({}, 0.0)]
    assert "mcp_gateway_requests_total" not in found
    assert "mcp_gateway_log_rows_waiting" in found


def test_slow_figures_that_fail_leave_the_quick_ones_and_are_tried_again_soon(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr("gateway.proxy.readings._SLOW", "SELECT * FROM no_such_view")
        found = clocked.scrape()
    assert found["mcp_gateway_database_up"] == [({}, 1.0)]
    assert found["mcp_gateway_slow_figures_up"] == [({}, 0.0)]
    assert "mcp_gateway_slow_figures_age_seconds" not in found
    assert "mcp_gateway_database_size_bytes" not in found
    clocked.now += 5
    assert "mcp_gateway_database_size_bytes" in clocked.scrape()


@pytest.mark.parametrize(
    "fault", [RuntimeError("ours"), psycopg.OperationalError("theirs\nwith more")]
)
def test_slow_figures_that_cannot_be_read_anew_are_those_of_before_until_too_old(
    clocked: Clocked, fault: Exception, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "gateway.proxy.readings")
    size = clocked.scrape()["mcp_gateway_database_size_bytes"]
    slowly = clocked.plays(fault)
    for age in range(60, int(SLOW_TOO_OLD_SECONDS), 15):
        clocked.now = 1000.0 + age
        found = clocked.scrape()
        assert found["mcp_gateway_database_size_bytes"] == size, age
        assert found["mcp_gateway_slow_figures_age_seconds"] == [({}, float(age))]
        assert found["mcp_gateway_database_up"] == [({}, 1.0)]
        clocked.settled()
    assert clocked.slow > 30  # tried at each scrape
    assert found["mcp_gateway_slow_figures_up"] == [({}, 0.0)]

    clocked.now = 1000.0 + SLOW_TOO_OLD_SECONDS
    found = clocked.scrape()
    assert found["mcp_gateway_database_up"] == [({}, 1.0)]
    assert "mcp_gateway_requests_total" in found
    assert "mcp_gateway_database_size_bytes" not in found
    assert "mcp_gateway_slow_figures_age_seconds" not in found

    clocked.reads_slowly(slowly)
    clocked.now += 5
    found = clocked.scrape()
    assert found["mcp_gateway_slow_figures_up"] == [({}, 1.0)]
    assert found["mcp_gateway_slow_figures_age_seconds"] == [({}, 0.0)]
    said = [one.getMessage() for one in caplog.records if one.name == "gateway.proxy.readings"]
    first = str(fault).partition("\n")[0]
    assert said == [
        f"/metrics: the slow figures cannot be read: {first}",
        "/metrics: the slow figures are read again",
    ]


def test_a_fault_of_another_kind_is_told_too(clocked: Clocked, caplog: pytest.LogCaptureFixture):
    for fault in (ValueError("one"), ValueError("two"), KeyError("three")):
        clocked.plays(fault)
        clocked.scrape()
        clocked.now += 5
    said = [one for one in caplog.records if one.name == "gateway.proxy.readings"]
    assert [one.exc_info[0] for one in said if one.exc_info] == [ValueError, KeyError]


@pytest.mark.django_db(transaction=True)
def test_readings_that_are_under_way_end_with_the_plane(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("gateway.proxy.readings.PATIENCE_SECONDS", 0.2)
    lasting = "SELECT 'x', '', 1.0, '' FROM pg_sleep(60)"
    monkeypatch.setattr("gateway.proxy.readings._SLOW", lasting)
    monkeypatch.setattr("gateway.proxy.readings._LIMIT", "SELECT %s")  # no statement_timeout

    async def life() -> None:
        plane = DataPlane()
        await plane.start()
        figures = plane.metrics._readings
        found = await figures.get()
        task = figures._slow._task
        assert found is not None
        assert task is not None
        assert not task.done()
        await plane.stop()
        assert task.cancelled()
        await figures.get()  # of a scrape that comes in too late
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(life())
    gc.collect()
    assert [one.getMessage() for one in caplog.records if one.name == "asyncio"] == []
    with connection.cursor() as cursor:
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND state = 'active'"
        cursor.execute(running, ["%pg_sleep(60)"])
        assert cursor.fetchone() == (0,)


def test_without_a_database_the_processes_figures_are_still_there(
    transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch, operator_key: str
):
    monkeypatch.setattr("gateway.proxy.watch.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("gateway.proxy.readings.PATIENCE_SECONDS", 0.3)
    clock = [1000.0]
    with relayed(monkeypatch) as relay:
        plane = DataPlane(Contact(clock=lambda: clock[0]))
        with running_gateway(plane) as url:
            wait_until(lambda: plane.contact.era is not None)
            assert scrape(url, operator_key).status_code == 200
            _frozen(relay, plane, url, operator_key)
            relay.cut()
            wait_until(lambda: plane.contact.is_away)
            clock[0] += 1000  # past GATEWAY_STALE_SECONDS
            found = samples(scrape(url, operator_key))
            assert found["mcp_gateway_database_up"] == [({}, 0.0)]
            assert found["mcp_gateway_listening"][0][1] == 0
            assert "mcp_gateway_requests_total" not in found
            cold = scrape(url, COLD)
            assert (cold.status_code, cold.json()["reason"]) == (503, "database_unavailable")
            settings.GATEWAY_METRICS_OPEN = True
            assert scrape(url).status_code == 200
            settings.GATEWAY_METRICS_OPEN = False
            relay.mend()
            wait_until(lambda: plane.contact.era is not None, seconds=20)
            _outdated(plane)
            assert samples(scrape(url, operator_key))["mcp_gateway_database_up"] == [({}, 1.0)]


def _frozen(relay: Relay, plane: DataPlane, url: str, key: str) -> None:
    """A server that says nothing holds no scrape up for long."""
    relay.freeze()
    _outdated(plane)
    began = time.monotonic()
    assert samples(scrape(url, key))["mcp_gateway_database_up"] == [({}, 0.0)]
    assert time.monotonic() - began < 3


def _outdated(plane: DataPlane) -> None:
    for kept in (plane.metrics._readings._quick, plane.metrics._readings._slow):
        kept._last, kept._until = None, -1000.0
