from django.db import migrations, models


class Migration(migrations.Migration):
    """An alert that a key acknowledged named nobody."""

    dependencies = [("monitoring", "0023_alert_history_named")]

    operations = [
        migrations.AddField(
            model_name="performancealert",
            name="acknowledged_with",
            field=models.CharField(
                blank=True,
                db_default="",
                editable=False,
                help_text="The API key that said so, by name and prefix; empty: the admin.",
                max_length=320,
            ),
        ),
    ]
