from django.db import migrations, models
from django.db.models.lookups import Exact

from registry.models import validate_tenant_settings

# What the constraint would refuse becomes what its writer most likely meant: access is denied
# where the word for it cannot be read.
REPAIR = """
UPDATE tenants SET settings = '{}', updated_at = now() WHERE jsonb_typeof(settings) <> 'object';
UPDATE tenants SET settings = settings || '{"default_access": "deny"}', updated_at = now()
WHERE settings ? 'default_access' AND settings -> 'default_access' NOT IN ('"allow"', '"deny"');
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0002_resolve_tenant")]

    operations = [
        migrations.AlterField(
            model_name="tenant",
            name="settings",
            field=models.JSONField(blank=True, default=dict, validators=[validate_tenant_settings]),
        ),
        migrations.RunSQL(REPAIR, migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    Exact(
                        models.Func(
                            models.F("settings"),
                            function="jsonb_typeof",
                            output_field=models.TextField(),
                        ),
                        "object",
                    ),
                    models.Q(
                        models.Q(("settings__has_key", "default_access"), _negated=True),
                        ("settings__default_access__in", ("allow", "deny")),
                        _connector="OR",
                    ),
                ),
                name="ck_tenants_settings",
                violation_error_message="The settings are no object, or name no known access.",
            ),
        ),
    ]
