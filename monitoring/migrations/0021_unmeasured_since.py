from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0020_rows_read")]

    operations = [
        migrations.AddField(
            model_name="performancealert",
            name="unmeasured_since",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
    ]
