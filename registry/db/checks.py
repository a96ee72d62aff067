"""What `manage.py check` says about keys and indexes of our models.

Every function here is pure: models (or migrations) in, messages out, no database. Our models are
those of the apps that keep a catalogue of indexes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db.migrations import AddIndex, Migration
from django.db.migrations.loader import MigrationLoader
from django.db.models import (
    CharField,
    CompositePrimaryKey,
    F,
    ForeignKey,
    Index,
    Model,
    OneToOneField,
    Q,
    TextField,
    UniqueConstraint,
)
from django.db.models.fields import AutoFieldMixin
from django.utils.module_loading import module_has_submodule
from psqlextra.backend.migrations.operations import PostgresCreateMaterializedViewModel
from psqlextra.models import PostgresMaterializedViewModel

from registry.db.catalogue import IndexEntry, catalogue, volatile_columns
from registry.db.partitions import PartitionedModel

__all__ = [
    "automatic_keys_of_logs",
    "constrained_foreign_keys_of_logs",
    "covered_foreign_keys",
    "indexes_check",
    "like_twins",
    "primary_keys_of_logs",
    "views_indexed_at_birth",
    "volatile_indexes",
]

Models = Iterable[type[Model]]


def indexes_check(app_configs: Sequence[Any] | None, **_: Any) -> list[CheckMessage]:
    """All of them, over our managed models."""
    models = [model for model in _ours() if model._meta.managed]
    if app_configs is not None:
        models = [model for model in models if model._meta.app_config in app_configs]
    return [
        *like_twins(models),
        *covered_foreign_keys(models),
        *volatile_indexes(models, volatile=volatile_columns(), entries=list(catalogue())),
        *constrained_foreign_keys_of_logs(models),
        *automatic_keys_of_logs(models),
        *primary_keys_of_logs(models),
        *views_indexed_at_birth(_migrations_of_views(models)),
    ]


def _ours() -> Iterator[type[Model]]:
    for app in apps.get_app_configs():
        if module_has_submodule(app.module, "indexes"):
            yield from app.get_models()


def _fields(model: type[Model]) -> list[Any]:
    """Fields with the attributes of their kind, of which the type stubs know few."""
    return list(model._meta.local_fields)


# --------------------------------------------------------------------------- indexes


def like_twins(models: Models) -> Iterator[CheckMessage]:
    """`unique` and `db_index` on text make a second index, for LIKE, that nothing uses."""
    for model in models:
        for field in _fields(model):
            is_text = isinstance(field, CharField | TextField)
            if is_text and (field.unique or field.db_index):
                yield Error(
                    f"{field.name} gets a second index, for LIKE, beside its own.",
                    hint="Take unique, db_index or primary_key from the field and declare a "
                    "UniqueConstraint or an index in Meta.",
                    obj=model,
                    id="gateway.E001",
                )


def covered_foreign_keys(models: Models) -> Iterator[CheckMessage]:
    """A foreign key whose automatic index is the beginning of a declared one."""
    for model in models:
        beginnings = dict(_beginnings(model))
        for field in _fields(model):
            is_key = isinstance(field, ForeignKey) and not isinstance(field, OneToOneField)
            if is_key and field.db_index and field.name in beginnings:
                yield Error(
                    f"The automatic index of {field.name} repeats the beginning of "
                    f"{beginnings[field.name]}.",
                    hint="Set db_index=False on the foreign key.",
                    obj=model,
                    id="gateway.E002",
                )


def _beginnings(model: type[Model]) -> Iterator[tuple[str, str]]:
    """First field and name of each index that holds every row."""
    for index in model._meta.indexes:
        if index.fields_orders and index.condition is None:
            yield _field(model, index.fields_orders[0][0]), index.name
    for constraint in model._meta.constraints:
        if not isinstance(constraint, UniqueConstraint) or constraint.condition is not None:
            continue
        if constraint.fields:
            yield _field(model, constraint.fields[0]), constraint.name
    if isinstance(model._meta.pk, CompositePrimaryKey):
        yield _field(model, model._meta.pk.field_names[0]), "the primary key"


def volatile_indexes(
    models: Models,
    *,
    volatile: Mapping[type[Model], Collection[str]],
    entries: Collection[IndexEntry],
) -> Iterator[CheckMessage]:
    """An index on what changes all the time: each change then writes every index of the row.

    An entry of the catalogue that says why (`accepted`), or that the index loses, silences it.
    """
    explained = {entry.index for entry in entries if entry.accepted or entry.loses}
    for model in models:
        changing = set(volatile.get(model, ()))
        for index in model._meta.indexes:
            held = sorted(changing & {_field(model, name) for name in _columns(index)})
            if held and index.name not in explained:
                yield checks.Warning(
                    f"{index.name} holds {', '.join(held)}, which changes all the time: no update "
                    "of it stays on its page (HOT).",
                    hint="Take the column out of the index and its condition, or say in the "
                    "index's catalogue entry why that is accepted.",
                    obj=model,
                    id="gateway.W001",
                )


def _columns(index: Index) -> Iterator[str]:
    """Keys, included columns, and what expressions and the condition look at."""
    yield from (name for name, _ in index.fields_orders)
    yield from index.include
    expressions: Iterable[Any] = index.expressions
    for expression in expressions:
        yield from (node.name for node in expression.flatten() if _is_column(node))
    if index.condition is not None:
        yield from _conditions(index.condition)


def _is_column(node: Any) -> bool:
    return isinstance(node, F)


def _conditions(condition: Q) -> Iterator[str]:
    for child in condition.children:
        if isinstance(child, Q):
            yield from _conditions(child)
        elif isinstance(child, tuple):
            yield child[0].partition("__")[0]


def _field(model: type[Model], name: str) -> str:
    """`tenant_id` and `tenant` are one."""
    return model._meta.get_field(name).name


# --------------------------------------------------------------------------- logs


def _logs(models: Models) -> Iterator[type[Model]]:
    return (model for model in models if issubclass(model, PartitionedModel))


def constrained_foreign_keys_of_logs(models: Models) -> Iterator[CheckMessage]:
    """A constraint lets every new and every dropped partition lock the table that it names."""
    for model in _logs(models):
        for field in _fields(model):
            is_key = isinstance(field, ForeignKey)
            if is_key and field.db_constraint:
                yield Error(
                    f"{field.name} is a foreign key of a partitioned table: making and dropping "
                    "partitions locks the table that it names.",
                    hint="Set db_constraint=False, or keep the plain id: a log outlives what it "
                    "names.",
                    obj=model,
                    id="gateway.E003",
                )


def automatic_keys_of_logs(models: Models) -> Iterator[CheckMessage]:
    """An automatic id gives a partitioned table two primary keys, which no database takes."""
    for model in _logs(models):
        for field in _fields(model):
            counts_by_itself = isinstance(field, AutoFieldMixin)
            if counts_by_itself:
                yield Error(
                    f"{field.name} counts by itself, so that the partitioned table has two primary "
                    "keys.",
                    hint="Declare id = UUIDField(default=uuid7, editable=False) and "
                    'pk = CompositePrimaryKey("id", …).',
                    obj=model,
                    id="gateway.E004",
                )


def primary_keys_of_logs(models: Models) -> Iterator[CheckMessage]:
    """PostgreSQL wants the time in the primary key, and a look-up by id wants it last.

    The key that psqlextra makes by itself has its columns in the order of the alphabet.
    """
    for model in _logs(models):
        key = model._meta.pk
        names = list(key.field_names) if isinstance(key, CompositePrimaryKey) else []
        by: list[str] = list(model._partitioning_meta.key)  # type: ignore[attr-defined]
        if not names or names[0] in by or not set(by) <= set(names):
            yield Error(
                "The primary key of a partitioned table has to be declared: its id first, then "
                f"{', '.join(by) or 'what it is partitioned by'}.",
                hint=f'Declare pk = CompositePrimaryKey("id", {_quoted(by)}).',
                obj=model,
                id="gateway.E005",
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# --------------------------------------------------------------------------- views


def views_indexed_at_birth(migrations: Iterable[Migration]) -> Iterator[CheckMessage]:
    """A materialised view that is indexed in its own migration becomes a table, without a word.

    Django's optimiser folds AddIndex into a bare CreateModel, so what is looked for is either.
    (Ours are frozen SQL files, which hold view and indexes; this is for a model of psqlextra's.)
    """
    for migration in migrations:
        operations: list[Any] = list(migration.operations)
        views = {
            operation.name_lower: operation
            for operation in operations
            if isinstance(operation, PostgresCreateMaterializedViewModel)
            or PostgresMaterializedViewModel in getattr(operation, "bases", ())
        }
        indexed = {
            operation.model_name_lower
            for operation in operations
            if isinstance(operation, AddIndex)
        }
        for name, operation in views.items():
            if name in indexed or operation.options.get("indexes"):
                yield Error(
                    f"{migration} makes the materialised view {operation.name} and its index: it "
                    "becomes a table.",
                    hint="Add the index in a migration of its own.",
                    id="gateway.E006",
                )


def _migrations_of_views(models: Models) -> list[Migration]:
    """Of the apps that have such a model; no migration is read otherwise."""
    views = [model for model in models if issubclass(model, PostgresMaterializedViewModel)]
    labels = {model._meta.app_label for model in views}
    if not labels:
        return []
    known = MigrationLoader(None).disk_migrations
    return [migration for (label, _), migration in known.items() if label in labels]
