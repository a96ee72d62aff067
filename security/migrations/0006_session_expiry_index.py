from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations

import registry.db.indexes


class Migration(migrations.Migration):
    atomic = False  # as CONCURRENTLY asks for

    dependencies = [("security", "0005_hot_rows")]

    operations = [
        AddIndexConcurrently(
            model_name="session",
            index=registry.db.indexes.NamedIndex(
                fields=["expires_at"], name="idx_sessions_expires_at"
            ),
        ),
    ]
