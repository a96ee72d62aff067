"""What one pass over the alerts costs: `python -m monitoring.bench.alerts`.

Makes a scratch database on the server of DATABASE_URL and drops it. Every metric of
`performance_monitoring` has rules, half of all rules look at single servers, and every server has
a pool in use and a queue with something in it, so that the view has all its rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import cycle
from statistics import median
from typing import Any

_METRICS = (
    "requests_per_minute", "error_rate", "p95_duration_ms", "open_breakers",
    "pool_utilisation_percent", "queue_depth", "slow_statement_ms", "index_usage_percent",
    "table_growth_percent", "database_connections", "cache_hit_ratio", "index_hit_ratio",
    "dead_rows", "longest_transaction_seconds", "replication_lag_seconds", "database_size_bytes",
    "wraparound_percent", "partition_days_ahead", "invalid_indexes", "failed_tasks",
    "rollup_lag_seconds", "spooled_log_rows", "lost_log_rows",
)  # fmt: skip
_OF_SERVERS = ("open_breakers", "pool_utilisation_percent", "queue_depth")


def main() -> None:
    options = _options()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    import django

    django.setup()
    from registry.db.scratch import migrated_database

    with migrated_database():
        _fill(options)
        _measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--calls", type=int, default=20_000, help="Of the last five minutes.")
    parser.add_argument("--passes", type=int, default=30)
    return parser.parse_args()


def _fill(options: argparse.Namespace) -> None:
    from django.db import connection
    from django.utils.timezone import now

    from monitoring.models import PerformanceAlert, RequestLog
    from registry.models import MCPServer, Tenant

    tenant = Tenant.objects.create(name="Bench", slug="bench")
    servers = MCPServer.objects.bulk_create(
        MCPServer(tenant=tenant, name=f"s{n}", slug=f"s{n}", endpoint_url=f"https://s{n}.example/")
        for n in range(options.servers)
    )
    at = now()
    RequestLog.objects.bulk_create(
        (
            RequestLog(
                request_time=at - timedelta(seconds=300 * n / options.calls),
                tenant_id=tenant.pk,
                method="POST",
                path="/mcp/s",
                status_code=200,
                duration_ms=float(n % 500),
            )
            for n in range(options.calls)
        ),
        batch_size=5000,
    )
    PerformanceAlert.objects.bulk_create(
        _rule(n, metric, servers) for n, metric in zip(range(options.rules), cycle(_METRICS))
    )
    with connection.cursor() as cursor:
        cursor.execute("UPDATE connection_pools SET active_connections = 1")
        cursor.execute("UPDATE request_queues SET current_size = 1")
        cursor.execute("UPDATE circuit_breakers SET state = 'open'")
        cursor.execute("ANALYZE")


def _rule(number: int, metric: str, servers: list[Any]) -> Any:
    from monitoring.models import PerformanceAlert

    of_one = number % 2 == 1
    return PerformanceAlert(
        name=f"rule {number}",
        metric_name=_OF_SERVERS[number % 3] if of_one else metric,
        server=servers[number % len(servers)] if of_one else None,
        threshold_value=0.0 if number % 10 == 0 else 1e12,
        duration_minutes=0,
        notification_channels=[{"type": "log"}],
    )


def _measure(options: argparse.Namespace) -> None:
    from django.db import connection
    from django.utils.timezone import now

    from monitoring.alerts.evaluate import alerts_evaluate
    from monitoring.alerts.figures import Figures
    from monitoring.models import AlertEvent
    from registry.db.circumstances import one_line
    from registry.db.scratch import connect

    at = now()
    first = _ms(lambda: alerts_evaluate(at=at))
    events = AlertEvent.objects.count()
    quiet = [
        _ms(lambda: alerts_evaluate(at=at + timedelta(seconds=30 * n)))  # noqa: B023
        for n in range(1, options.passes + 1)
    ]
    reads = [_ms(lambda: Figures.read()) for _ in range(options.passes)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM performance_monitoring")
        (rows,) = cursor.fetchone()
    with connect() as own:
        head = one_line(own)
    sys.stdout.write(
        f"{head}\n{options.servers} servers, {options.rules} rules, {options.calls} calls in five"
        f" minutes; the view has {rows} rows\n"
        f"first pass, {events} events: {first:.1f} ms\n"
        f"quiet pass: median {median(quiet):.1f} ms, fastest {min(quiet):.1f} ms,"
        f" slowest {max(quiet):.1f} ms\n"
        f"of it reading performance_monitoring: median {median(reads):.1f} ms,"
        f" fastest {min(reads):.1f} ms\n"
    )


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
