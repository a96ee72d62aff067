from django.db import migrations


class Migration(migrations.Migration):
    """The admin's menu and page have one name for it."""

    dependencies = [("monitoring", "0022_rows_counted")]

    operations = [
        migrations.AlterModelOptions(
            name="alertevent", options={"verbose_name_plural": "alert history"}
        ),
    ]
