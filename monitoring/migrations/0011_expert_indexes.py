from django.conf import settings
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import CASCADE, SET_NULL, Q

from registry.db.indexes import AddPartitionedIndex, NamedIndex


class Migration(migrations.Migration):
    """The new indexes come first: nobody is without one while Django's own go."""

    atomic = False  # as CONCURRENTLY asks for

    dependencies = [
        ("monitoring", "0010_retention_indexes"),
        ("registry", "0008_discovery_indexes"),
    ]

    operations = [
        AddPartitionedIndex(
            model_name="auditlog",
            index=NamedIndex(fields=["user_id", "-timestamp"], name="idx_audit_logs_user_time"),
        ),
        AddPartitionedIndex(
            model_name="auditlog",
            index=NamedIndex(
                fields=["resource_type", "resource_id", "-timestamp"],
                name="idx_audit_logs_resource_time",
            ),
        ),
        AddPartitionedIndex(
            model_name="requestlog",
            index=NamedIndex(
                fields=["target_server_id", "-request_time"], name="idx_request_logs_server_time"
            ),
        ),
        AddIndexConcurrently(
            model_name="performancealert",
            index=NamedIndex(
                condition=Q(server__isnull=False),
                fields=["server"],
                name="idx_performance_alerts_server",
            ),
        ),
        migrations.AlterField(
            "performancealert",
            "server",
            models.ForeignKey(
                blank=True,
                db_index=False,
                null=True,
                on_delete=CASCADE,
                related_name="alerts",
                to="registry.mcpserver",
            ),
        ),
        migrations.AlterField(
            "performancealert",
            "acknowledged_by",
            models.ForeignKey(
                blank=True,
                db_index=False,
                null=True,
                on_delete=SET_NULL,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
    ]
