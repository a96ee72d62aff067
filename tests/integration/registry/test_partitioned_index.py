"""AddPartitionedIndex: the index of a log that holds rows already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.db import NotSupportedError, connection
from django.db.migrations.state import ProjectState

from registry.db.ids import uuid7
from registry.db.indexes import AddPartitionedIndex, NamedIndex
from registry.models import ServerMetric

pytestmark = pytest.mark.django_db(transaction=True)

OPERATION = AddPartitionedIndex(
    "servermetric", NamedIndex(fields=["-response_time_ms", "timestamp"], name="idx_trial")
)


@pytest.fixture(autouse=True)
def dropped() -> Iterator[None]:
    yield
    execute("DROP INDEX IF EXISTS idx_trial")


def execute(statement: str, *parameters: str) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def migrate(*, back: bool = False) -> None:
    before = ProjectState.from_apps(apps)
    after = before.clone()
    OPERATION.state_forwards("registry", after)
    with connection.schema_editor(atomic=False) as editor:
        if back:
            OPERATION.database_backwards("registry", editor, after, before)
        else:
            OPERATION.database_forwards("registry", editor, before, after)


def is_valid() -> bool:
    return execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_trial'::regclass") == [
        (True,)
    ]


def unjoined() -> int:
    """Partitions without a part of the index."""
    return execute(
        "SELECT count(*) FROM pg_partition_tree('server_metrics') WHERE isleaf AND level > 0"
        " AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_inherits h ON h.inhrelid = x.indexrelid"
        " WHERE x.indrelid = relid AND h.inhparent = 'idx_trial'::regclass)"
    )[0][0]


@pytest.mark.parametrize("rows", [0, 3])
def test_every_partition_has_its_part_and_the_way_back_drops_them(rows: int) -> None:
    for _ in range(rows):
        ServerMetric.objects.create(server_id=uuid7())
    migrate()
    assert is_valid()
    assert unjoined() == 0
    definition = "SELECT pg_get_indexdef('idx_trial'::regclass)"
    assert execute(definition)[0][0].endswith('btree (response_time_ms DESC, "timestamp")')
    migrate(back=True)
    assert execute("SELECT to_regclass('idx_trial')") == [(None,)]


def test_a_build_that_was_cut_off_goes_on() -> None:
    ServerMetric.objects.create(server_id=uuid7())
    migrate()
    parts = execute(
        "SELECT i.inhrelid::regclass::text, x.indrelid::regclass::text FROM pg_inherits i"
        " JOIN pg_index x ON x.indexrelid = i.inhrelid WHERE inhparent = 'idx_trial'::regclass"
        " ORDER BY 2"
    )
    execute("DROP INDEX idx_trial")
    # The shell, one partition that joined it, one whose index stayed invalid.
    execute("CREATE INDEX idx_trial ON ONLY server_metrics (response_time_ms DESC, timestamp)")
    (joined, first), (carcass, second), *_ = parts
    execute(f"CREATE INDEX {joined} ON {first} (response_time_ms DESC, timestamp)")
    execute(f"ALTER INDEX idx_trial ATTACH PARTITION {joined}")
    execute(f"CREATE INDEX {carcass} ON {second} (response_time_ms DESC, timestamp)")
    execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", carcass)
    assert not is_valid()
    migrate()
    assert is_valid()
    assert unjoined() == 0
    assert execute("SELECT FROM pg_index WHERE NOT indisvalid") == []


def test_it_is_refused_in_a_transaction() -> None:
    state = ProjectState.from_apps(apps)
    with (
        connection.schema_editor(atomic=True) as editor,
        pytest.raises(NotSupportedError, match="AddPartitionedIndex"),
    ):
        OPERATION.database_forwards("registry", editor, state, state)
