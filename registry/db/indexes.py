"""Index classes for `Meta.indexes`, and the migration that adds one to a partitioned table."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from django.contrib.postgres.operations import NotInTransactionMixin
from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import AddIndex
from django.db.migrations.state import ProjectState
from psycopg import sql

__all__ = ["AddPartitionedIndex", "NamedIndex"]

NAME_BYTES = 63  # PostgreSQL cuts longer names off

_ON_ONLY = (
    "CREATE INDEX IF NOT EXISTS %(name)s ON ONLY %(table)s%(using)s"
    " (%(columns)s)%(include)s%(extra)s%(condition)s"
)
_LEAVES = """
SELECT l.oid::regclass::text, l.relname,
       EXISTS (SELECT FROM pg_index x JOIN pg_inherits h ON h.inhrelid = x.indexrelid
                WHERE x.indrelid = l.oid AND h.inhparent = to_regclass(quote_ident(%s)))
  FROM pg_partition_tree(to_regclass(quote_ident(%s))) AS tree JOIN pg_class l ON l.oid = tree.relid
 WHERE tree.isleaf AND tree.level > 0
"""


class NamedIndex(models.Index):
    """An index whose name may use all of PostgreSQL's 63 bytes.

    Django stops at 30 for other databases' sake; the names that operators know from the
    performance guide are longer.
    """

    max_name_length = 63


class AddPartitionedIndex(NotInTransactionMixin, AddIndex):
    """AddIndexConcurrently for a partitioned table, which PostgreSQL refuses.

    An empty shell on the parent, then each partition's index concurrently, then they join it; the
    last one makes the parent's valid. May be repeated after it was cut off. A table without rows
    gets all of it at once.
    """

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,  # noqa: ARG002
        to_state: ProjectState,
    ) -> None:
        self._ensure_not_in_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        if model._default_manager.using(schema_editor.connection.alias).exists():
            self._build(model, schema_editor)
        else:
            schema_editor.add_index(model, self.index)

    def _build(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor) -> None:
        name = self.index.name
        schema_editor.execute(
            self.index.create_sql(model, schema_editor, sql=_ON_ONLY), params=None
        )
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(_LEAVES, [name, model._meta.db_table])
            leaves = cursor.fetchall()
            for table, leaf, has_joined in leaves:
                if not has_joined:
                    self._join(model, schema_editor, table, _leaf_name(leaf, name), cursor)

    def _join(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        table: str,
        name: str,
        cursor: Any,
    ) -> None:
        quoted = sql.Identifier(name)
        # What a build that was cut off left is invalid.
        cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(quoted))
        create: Any = self.index.create_sql(model, schema_editor, concurrently=True)
        create.parts |= {"name": quoted.as_string(None), "table": table}
        schema_editor.execute(create, params=None)
        attach = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}")
        cursor.execute(attach.format(sql.Identifier(self.index.name), quoted))


def _leaf_name(leaf: str, index: str) -> str:
    suffix = f"_{sha256(index.encode()).hexdigest()[:8]}_idx"
    return leaf.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
