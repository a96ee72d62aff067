"""The system checks, each on models that exist for one test."""

# ruff: noqa: DJ008  (nobody prints these models)
from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import models
from django.db.migrations import AddIndex, CreateModel, Migration
from django.test.utils import isolate_apps
from psqlextra.backend.migrations.operations import PostgresCreateMaterializedViewModel
from psqlextra.models import PostgresMaterializedViewModel

from registry.db import checks
from registry.db.catalogue import IndexEntry
from registry.db.partitions import PartitionedModel, RangePartitioning


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    with isolate_apps("registry"):
        yield


def ids(messages: Any) -> list[str]:
    found = list(messages)
    assert all(message.hint for message in found if message.id), "a message says what to do"
    return [message.id for message in found]


def test_our_own_models_give_no_message() -> None:
    said = io.StringIO()
    call_command("check", fail_level="WARNING", stdout=said, stderr=said)
    assert "no issues" in said.getvalue()


def test_text_that_is_unique_or_indexed_by_itself_has_a_like_twin() -> None:
    class Twin(models.Model):
        name = models.CharField(max_length=9, unique=True)
        slug = models.SlugField()
        text = models.TextField(db_index=True)
        plain = models.CharField(max_length=9)
        number = models.IntegerField(unique=True)

        class Meta:
            app_label = "registry"
            constraints = [models.UniqueConstraint(fields=["plain"], name="uq_plain")]

    found = list(checks.like_twins([Twin]))
    assert ids(found) == ["gateway.E001"] * 3
    assert [message.msg.split()[0] for message in found] == ["name", "slug", "text"]


def test_a_foreign_key_whose_index_begins_another_one_is_told() -> None:
    class Parent(models.Model):
        class Meta:
            app_label = "registry"

    def key(**options: Any) -> models.ForeignKey[Any, Any]:
        return models.ForeignKey(Parent, models.CASCADE, related_name="+", **options)

    class Child(models.Model):
        by_index, by_constraint, silent = key(), key(), key(db_index=False)
        by_part, second, alone = key(), key(), key()
        single = models.OneToOneField(Parent, models.CASCADE, related_name="+")
        at = models.DateTimeField()

        class Meta:
            app_label = "registry"
            indexes = [
                models.Index(fields=["-by_index", "at"], name="by_index"),
                models.Index(fields=["silent", "at"], name="silent"),
                models.Index(fields=["single", "at"], name="single"),
                models.Index(fields=["at", "second"], name="second"),
                models.Index(fields=["by_part"], name="part", condition=models.Q(at=None)),
            ]
            constraints = [
                models.UniqueConstraint(fields=["by_constraint", "at"], name="by_constraint")
            ]

    found = list(checks.covered_foreign_keys([Child]))
    assert ids(found) == ["gateway.E002"] * 2
    assert [message.msg.rpartition(" ")[2] for message in found] == ["by_index.", "by_constraint."]


def test_an_index_on_what_changes_all_the_time_needs_a_reason() -> None:
    class Counted(models.Model):
        name = models.CharField(max_length=9)
        calls = models.IntegerField()

        class Meta:
            app_label = "registry"
            indexes = [
                models.Index(fields=["calls"], name="as_key"),
                models.Index(fields=["name"], include=["calls"], name="as_include"),
                models.Index(
                    fields=["name"],
                    name="as_condition",
                    condition=models.Q(name="x") & ~models.Q(models.Q(calls__gt=0)),
                ),
                models.Index(models.F("calls").desc(), name="as_expression"),
                models.Index(fields=["name"], name="clean"),
            ]

    def told(*entries: IndexEntry) -> list[str]:
        found = list(
            checks.volatile_indexes([Counted], volatile={Counted: {"calls"}}, entries=entries)
        )
        assert set(ids(found)) == {"gateway.W001"}
        return [message.msg.split()[0] for message in found]

    def entry(index: str, **why: str) -> IndexEntry:
        return IndexEntry(
            index=index, query=Counted._default_manager.all, caller="x", rate="x", **why
        )

    everywhere = ["as_key", "as_include", "as_condition", "as_expression"]
    assert told() == told(entry("as_key")) == everywhere
    explained = told(entry("as_key", accepted="rare"), entry("as_include", loses="the guide's"))
    assert explained == ["as_condition", "as_expression"]


def test_logs_name_others_by_plain_ids_and_have_a_key_that_was_declared() -> None:
    class Named(models.Model):
        class Meta:
            app_label = "registry"

    class Right(PartitionedModel):  # type: ignore[misc]
        pk = models.CompositePrimaryKey("id", "at")
        id = models.UUIDField()
        at = models.DateTimeField()
        named = models.ForeignKey(Named, models.DO_NOTHING, db_constraint=False, related_name="+")

        class PartitioningMeta(RangePartitioning):
            key = ["at"]

        class Meta:
            app_label = "registry"

    class Wrong(PartitionedModel):  # type: ignore[misc]
        at = models.DateTimeField()
        named = models.ForeignKey(Named, models.DO_NOTHING, related_name="+")

        class PartitioningMeta(RangePartitioning):
            key = ["at"]

        class Meta:
            app_label = "registry"

    both = [Right, Wrong, Named]
    for check, wanted in (
        (checks.constrained_foreign_keys_of_logs, "gateway.E003"),
        (checks.automatic_keys_of_logs, "gateway.E004"),
        (checks.primary_keys_of_logs, "gateway.E005"),
    ):
        found = list(check(both))
        assert ids(found) == [wanted]
        assert found[0].obj is Wrong


def test_a_materialised_view_is_not_indexed_where_it_is_made() -> None:
    index = AddIndex("sums", models.Index(fields=["day"], name="by_day"))

    def migration(*operations: Any) -> Migration:
        made = Migration("0001_sums", "registry")
        made.operations = list(operations)
        return made

    def view(**options: Any) -> PostgresCreateMaterializedViewModel:
        return PostgresCreateMaterializedViewModel(
            name="Sums", fields=[], options=options, view_options={"query": "SELECT 1"}
        )

    folded = CreateModel("Sums", [], options={}, bases=(PostgresMaterializedViewModel,))
    table = CreateModel("Sums", [])
    for bad in (
        migration(view(), index),
        migration(view(indexes=[index.index])),
        migration(folded, index),
    ):
        assert ids(checks.views_indexed_at_birth([bad])) == ["gateway.E006"]
    for good in (migration(view()), migration(index), migration(table, index)):
        assert ids(checks.views_indexed_at_birth([good])) == []
