from django.db import migrations, models


class Migration(migrations.Migration):
    """What had been read of each table, so that index usage is that of days and not for ever."""

    dependencies = [("monitoring", "0019_tool_days")]

    operations = [
        migrations.AddField(
            model_name="databasesizesnapshot",
            name="rows_by_index",
            field=models.PositiveBigIntegerField(
                help_text="Read by index, ever, as of the day's first reading.", null=True
            ),
        ),
        migrations.AddField(
            model_name="databasesizesnapshot",
            name="rows_by_scan",
            field=models.PositiveBigIntegerField(
                help_text="Read without an index, ever, as of the day's first reading.", null=True
            ),
        ),
    ]
