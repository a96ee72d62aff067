from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0014_metric_snapshots")]

    operations = [
        migrations.AddField(
            model_name="dataretentionpolicy",
            name="archive",
            field=models.BooleanField(
                default=False,
                help_text="Write what goes to Parquet files in GATEWAY_ARCHIVE_DIR of the worker "
                "first; only for the partitioned logs.",
            ),
        ),
    ]
