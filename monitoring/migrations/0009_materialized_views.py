from django.db import migrations, models

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0008_alert_events"), ("registry", "0007_hot_rows")]

    operations = [
        migrations.AddField(
            model_name="dataretentionpolicy",
            name="last_error",
            field=models.TextField(
                blank=True, default="", help_text="Empty: the last run went well."
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="materializedview",
            name="attempted_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="materializedview",
            name="changes_seen",
            field=models.BigIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="materializedview",
            name="last_error",
            field=models.TextField(
                blank=True, default="", help_text="Empty: the last refresh went well."
            ),
            preserve_default=False,
        ),
        run_sql_file(__file__, "0009_tool_leaderboard_v1"),
        run_sql_file(__file__, "0009_tenant_daily_usage_v1"),
        run_sql_file(__file__, "0009_server_hourly_health_v1"),
    ]
