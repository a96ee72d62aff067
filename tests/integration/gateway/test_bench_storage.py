"""What the figures on statistics and storage come from; the figures are no test's business."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.utils.timezone import now

from gateway.bench.asking import Walls
from gateway.bench.estimates import KINDS, Candidate, trials
from gateway.bench.storage import CANDIDATES, measure
from registry.db.storage import storages
from tests.factories import (
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)
KEYS = 3


def parameters() -> dict[str, set[str]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL")
        return {name: set(found) for name, found in cursor.fetchall()}


def own_connection() -> psycopg.Connection[Any]:
    return psycopg.connect(**connections["default"].get_connection_params(), autocommit=True)


def test_each_arm_does_the_same_work_and_the_tables_stay_as_declared() -> None:
    server = ServerToolFactory().server
    EnhancedAPIKeyFactory.create_batch(KEYS, tenant=server.tenant)
    ServerAccessControlFactory(server=server, tenant=server.tenant)
    declared = parameters()
    with own_connection() as own, closing(measure(own, minutes=1, at=now())) as arms:
        for expected in ("all", "full pages"):
            arm, figures = next(arms)
            assert arm == expected
            fillfactors = [text for text in parameters()["mcp_servers"] if "fillfactor" in text]
            assert bool(fillfactors) == (arm == "all")
            assert figures.keys() == CANDIDATES.keys()
            assert figures["enhanced_api_keys"].updates == 6 * KEYS
            assert figures["mcp_servers"].updates == 2
            assert figures["request_usage"].heap_bytes > 0
    assert parameters() == declared


def test_what_is_declared_was_measured() -> None:
    for storage in storages():
        assert storage.parameters.items() <= CANDIDATES[storage.table].items()
        assert storage.reason


def test_each_kind_of_statistics_is_tried_by_itself_and_none_is_left() -> None:
    MCPServerFactory.create_batch(2)
    columns, queries = ("endpoint_url", "transport_type"), ("address_registered",)
    candidate = Candidate("mcp_servers", columns, queries)
    walls = Walls(standing=False)
    there = "SELECT count(*) FROM pg_statistic_ext"
    with own_connection() as own:
        before = own.execute(there).fetchone()
        found = list(trials(own, candidate, at=now(), walls=walls, parameters=2))
        assert own.execute(there).fetchone() == before
    assert [(trial.place, trial.kind) for trial in found] == [("table", kind) for kind in KINDS]
    assert all(len(trial.before) == len(trial.after) == 2 for trial in found)
    assert "address_registered" in found[0].line
