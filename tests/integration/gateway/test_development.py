"""What `up` keeps in `.local/`, and what it does when the database does not match it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.development import ACTOR, ADMIN, admin_password, development_key, sample_known
from gateway.sample.server import build
from monitoring.models import AuditLog
from security.models import APIKeyScope, EnhancedAPIKey, User
from security.services import api_key_revoke
from tests.factories import TenantFactory, UserFactory
from tests.mcp_server import running

pytestmark = pytest.mark.django_db


def test_the_key_is_the_same_until_the_database_knows_it_no_more(tmp_path: Path) -> None:
    tenant = TenantFactory()
    key = development_key(folder=tmp_path, tenant=tenant)
    row = EnhancedAPIKey.objects.get()
    assert set(row.scopes) == set(APIKeyScope.values)
    assert development_key(folder=tmp_path, tenant=tenant) == key
    assert EnhancedAPIKey.objects.count() == 1

    row.delete()
    fresh = development_key(folder=tmp_path, tenant=tenant)
    assert fresh != key
    assert (tmp_path / "development-key").read_text().strip() == fresh
    assert (tmp_path / "development-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoilt", ["", "not a key", "mcpgw_abcdef_1"])
def test_a_spoilt_key_file_is_replaced(tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "development-key").write_text(spoilt)
    assert development_key(folder=tmp_path, tenant=TenantFactory()).startswith("mcpgw_")
    assert EnhancedAPIKey.objects.count() == 1


def test_a_revoked_key_is_replaced(tmp_path: Path) -> None:
    tenant = TenantFactory()
    key = development_key(folder=tmp_path, tenant=tenant)
    api_key_revoke(actor=ACTOR, key=EnhancedAPIKey.objects.get())
    assert development_key(folder=tmp_path, tenant=tenant) != key


def test_admin_is_made_once_with_a_kept_password(tmp_path: Path) -> None:
    password = admin_password(folder=tmp_path, may_reset=True)
    user = User.objects.get(username=ADMIN)
    assert user.is_superuser
    assert user.is_staff
    assert user.check_password(password)
    assert admin_password(folder=tmp_path, may_reset=True) == password
    assert (tmp_path / "admin-password").stat().st_mode & 0o777 == 0o600
    assert AuditLog.objects.filter(action="user.create", resource_id=str(user.pk)).count() == 1


def test_a_new_database_gets_the_kept_password(tmp_path: Path) -> None:
    password = admin_password(folder=tmp_path, may_reset=True)
    User.objects.all().delete()
    assert admin_password(folder=tmp_path, may_reset=False) == password
    assert User.objects.get(username=ADMIN).check_password(password)


def test_a_password_that_somebody_changed_stays(tmp_path: Path) -> None:
    admin_password(folder=tmp_path, may_reset=True)
    user = User.objects.get(username=ADMIN)
    user.set_password("their own")
    user.save()
    assert admin_password(folder=tmp_path, may_reset=True) is None
    user.refresh_from_db()
    assert user.check_password("their own")


def test_only_a_database_of_our_own_gets_an_unknown_password_replaced(tmp_path: Path) -> None:
    user = UserFactory(username=ADMIN)
    user.set_password("unknown")
    user.save()
    assert admin_password(folder=tmp_path, may_reset=False) is None
    assert not (tmp_path / "admin-password").exists()
    password = admin_password(folder=tmp_path, may_reset=True)
    user.refresh_from_db()
    assert user.check_password(password)


@pytest.mark.django_db(transaction=True)
def test_the_sample_follows_its_address(settings) -> None:
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    tenant = TenantFactory()
    with running(build().streamable_http_app()) as url:
        server = sample_known(tenant=tenant, url=f"{url}/mcp")
        assert set(server.tools.values_list("name", flat=True)) >= {"add", "countdown"}
    with running(build().streamable_http_app()) as elsewhere:
        again = sample_known(tenant=tenant, url=f"{elsewhere}/mcp")
    assert again.pk == server.pk
    again.refresh_from_db()
    assert again.endpoint_url == f"{elsewhere}/mcp"
    assert again.health_status == "healthy"
