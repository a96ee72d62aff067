"""Tenants whose settings were written before the table checked them."""

from importlib import import_module

import pytest
from django.db import connection

from registry.models import Tenant
from tests.factories import TenantFactory

REPAIR = import_module("registry.migrations.0003_tenant_settings").REPAIR


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("written", "repaired"),
    [
        ([], {}),
        ("deny", {}),
        ({"default_access": "denied", "note": 1}, {"default_access": "deny", "note": 1}),
        ({"default_access": None}, {"default_access": "deny"}),
        ({"default_access": "allow"}, {"default_access": "allow"}),
        ({"note": 1}, {"note": 1}),
    ],
)
def test_the_migration_repairs_what_it_will_refuse(written, repaired):
    tenant = TenantFactory()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tenants DROP CONSTRAINT ck_tenants_settings")
        Tenant.objects.filter(pk=tenant.pk).update(settings=written)
        cursor.execute(REPAIR)
    tenant.refresh_from_db()
    assert tenant.settings == repaired
