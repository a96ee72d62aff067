import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import monitoring.alerts.channels
import registry.db.encryption
import registry.db.ids
import registry.db.indexes


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0006_rollups"),
    ]

    operations = [
        migrations.AddField(
            model_name="performancealert",
            name="channel_secrets",
            field=registry.db.encryption.EncryptedJSONField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="performancealert",
            name="clear_since",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="performancealert",
            name="last_measured",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="performancealert",
            name="last_value",
            field=models.FloatField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="performancealert",
            name="no_data_since",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="performancealert",
            name="pending_since",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AlterField(
            model_name="performancealert",
            name="cooldown_minutes",
            field=models.PositiveIntegerField(
                default=60, help_text="Between reminders while it fires; 0: no reminders."
            ),
        ),
        migrations.AlterField(
            model_name="performancealert",
            name="notification_channels",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text='A list such as [{"type": "log"}, {"type": "email", "to": ["ops@example.org"]}, {"type": "webhook", "url": "https://hooks.example.org/alerts", "secret": "…"}].',
                validators=[monitoring.alerts.channels.check_channels],
            ),
        ),
        migrations.CreateModel(
            name="AlertEvent",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=registry.db.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("occurred_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("triggered", "Triggered"),
                            ("reminded", "Reminded"),
                            ("resolved", "Resolved"),
                            ("acknowledged", "Acknowledged"),
                            ("no_data", "No data"),
                            ("measured", "Measured again"),
                        ],
                        max_length=12,
                    ),
                ),
                (
                    "value",
                    models.FloatField(help_text="Empty: there was nothing to measure.", null=True),
                ),
                ("unit", models.CharField(blank=True, max_length=32)),
                ("subject", models.CharField(blank=True, max_length=255)),
                ("message", models.TextField()),
                ("parts", models.JSONField(default=list)),
                ("deliveries", models.JSONField(default=dict)),
                (
                    "alert",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to="monitoring.performancealert",
                    ),
                ),
            ],
            options={
                "db_table": "alert_events",
                "indexes": [
                    registry.db.indexes.NamedIndex(
                        fields=["alert", "-id"], name="idx_alert_events_alert_newest"
                    )
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "kind__in",
                                [
                                    "triggered",
                                    "reminded",
                                    "resolved",
                                    "acknowledged",
                                    "no_data",
                                    "measured",
                                ],
                            )
                        ),
                        name="ck_alert_events_kind",
                    )
                ],
            },
        ),
    ]
