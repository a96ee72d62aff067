from django.conf import settings
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import CASCADE, Q

from registry.db.indexes import NamedIndex


def _parent(to: str, related_name: str) -> models.ForeignKey:
    return models.ForeignKey(
        blank=True,
        db_index=False,
        null=True,
        on_delete=CASCADE,
        related_name=related_name,
        to=to,
    )


class Migration(migrations.Migration):
    """The new indexes come first: nobody is without one while Django's own go."""

    atomic = False  # as CONCURRENTLY asks for

    dependencies = [
        ("registry", "0008_discovery_indexes"),
        ("security", "0006_session_expiry_index"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="session",
            index=NamedIndex(
                condition=Q(is_active=True),
                fields=["user", "expires_at"],
                name="idx_sessions_user_live",
            ),
        ),
        AddIndexConcurrently(
            model_name="session",
            index=NamedIndex(
                condition=Q(user__isnull=False), fields=["user"], name="idx_sessions_user"
            ),
        ),
        AddIndexConcurrently(
            model_name="apikey",
            index=NamedIndex(
                condition=Q(user__isnull=False), fields=["user"], name="idx_api_keys_user"
            ),
        ),
        AddIndexConcurrently(
            model_name="enhancedapikey",
            index=NamedIndex(fields=["tenant", "-id"], name="idx_enhanced_api_keys_tenant_newest"),
        ),
        AddIndexConcurrently(
            model_name="enhancedapikey",
            index=NamedIndex(
                condition=Q(user__isnull=False), fields=["user"], name="idx_enhanced_api_keys_user"
            ),
        ),
        AddIndexConcurrently(
            model_name="enhancedapikey",
            index=NamedIndex(
                condition=Q(expires_at__isnull=False, is_active=True),
                fields=["expires_at"],
                name="idx_enhanced_api_keys_expires",
            ),
        ),
        AddIndexConcurrently(
            model_name="enhancedapikey",
            index=NamedIndex(
                condition=Q(is_locked=True), fields=["-id"], name="idx_enhanced_api_keys_locked"
            ),
        ),
        *(
            AddIndexConcurrently(
                model_name="serveraccesscontrol",
                index=NamedIndex(
                    condition=Q(**{f"{subject}__isnull": False}),
                    fields=[subject],
                    name=f"idx_server_access_control_{subject}",
                ),
            )
            for subject in ("user", "tenant", "api_key")
        ),
        migrations.AlterField(
            "apikey", "user", _parent(settings.AUTH_USER_MODEL, "plain_api_keys")
        ),
        migrations.AlterField("enhancedapikey", "tenant", _parent("registry.tenant", "api_keys")),
        migrations.AlterField(
            "enhancedapikey", "user", _parent(settings.AUTH_USER_MODEL, "api_keys")
        ),
        migrations.AlterField(
            "serveraccesscontrol", "api_key", _parent("security.enhancedapikey", "access_rules")
        ),
        migrations.AlterField(
            "serveraccesscontrol", "tenant", _parent("registry.tenant", "access_rules")
        ),
        migrations.AlterField(
            "serveraccesscontrol", "user", _parent(settings.AUTH_USER_MODEL, "access_rules")
        ),
    ]
