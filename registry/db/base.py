"""What every table of this project shares."""

from django.db import models
from django.db.models.functions import Now
from django.utils.timezone import now

from registry.db.ids import uuid7

__all__ = ["TimestampedModel", "UUIDModel", "choices_constraint"]


class UUIDModel(models.Model):
    """A row whose id the application makes, ordered by time (UUID version 7)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        abstract = True


class TimestampedModel(models.Model):
    """When a row was made and last changed; `update()` must set `updated_at` itself."""

    created_at = models.DateTimeField(default=now, db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True, db_default=Now())

    class Meta:
        abstract = True


def choices_constraint(
    *, table: str, field: str, choices: type[models.TextChoices]
) -> models.CheckConstraint:
    """The guard that psql, COPY and bulk updates meet; `TextChoices` guards forms only."""
    return models.CheckConstraint(
        name=f"ck_{table}_{field}", condition=models.Q(**{f"{field}__in": choices.values})
    )
