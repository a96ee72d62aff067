"""What security's indexes are for: the query, who runs it, how often."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.db.models.functions import Lower
from django.utils.timezone import now

from registry.api.pagination import NewestFirst
from registry.db.catalogue import IndexEntry, sample
from security.models import (
    APIKey,
    EnhancedAPIKey,
    Role,
    ServerAccessControl,
    Session,
    User,
)
from security.tasks import keys_overdue

_USE = {"last_used", "total_requests", "updated_at"}

# What every call and every request of a browser changes.
VOLATILE = {
    Session: {"last_activity", "session_data", "updated_at"},
    APIKey: _USE,
    EnhancedAPIKey: _USE | {"failed_attempts", "last_failed_attempt", "total_errors"},
    ServerAccessControl: {"access_count", "last_access", "updated_at"},
}


def _logins(at: datetime) -> QuerySet[Session]:
    live = {"is_active": True, "expires_at__gt": at}
    return Session.objects.filter(**sample(Session, "user_id", **live), **live)


def _keys(**conditions: Any) -> QuerySet[EnhancedAPIKey]:
    return NewestFirst.first_page(EnhancedAPIKey.objects.filter(**conditions))


def _tenant_id() -> UUID | None:
    found: UUID | None = sample(EnhancedAPIKey, "tenant_id")["tenant_id"]
    return found


def _rules(subject: str) -> QuerySet[ServerAccessControl]:
    return ServerAccessControl.objects.filter(**sample(ServerAccessControl, f"{subject}_id"))


CATALOGUE = [
    IndexEntry(
        index="uq_users_username",
        query=lambda: User.objects.filter(**sample(User, "username")),
        caller="sign-in",
        rate="each sign-in",
    ),
    IndexEntry(
        index="uq_users_email_lower",
        query=lambda: (
            User.objects.annotate(address=Lower("email"))
            .filter(address=sample(User, "email")["email"])
            .exclude(email="")
        ),
        caller="is this address taken? the admin's forms",
        rate="each change of a user",
    ),
    IndexEntry(
        index="idx_users_tenant_role",
        query=lambda: User.objects.filter(
            **sample(User, "tenant_id", "role", "is_active", role=Role.ADMIN)
        ),
        caller="a tenant's administrators: the admin's filters",
        rate="page views",
    ),
    IndexEntry(
        index="uq_sessions_session_token",
        query=lambda: Session.objects.filter(**sample(Session, "session_token")),
        caller="the session store",
        rate="each request of a signed-in browser",
    ),
    IndexEntry(
        index="idx_sessions_user_live",
        query=lambda: _logins(now()),
        caller="a user's live logins: the admin's list of sessions with its filters",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_sessions_user",
        query=lambda: Session.objects.filter(**sample(Session, "user_id")),
        caller="deleting a user: their sessions go too",
        rate="each deletion",
    ),
    IndexEntry(
        index="idx_sessions_user_active",
        query=lambda: _logins(now()),
        caller="the same",
        rate="some a day",
        loses="A key of two values in the middle is a condition: most rows in it are logins that "
        "ended, which nobody asks for by user and time.",
        sibling="idx_sessions_user_live",
        costs="50 bytes a row, ended logins too; the sibling has 13 a row of the table, and with "
        "the index for the foreign key 30.",
    ),
    IndexEntry(
        index="idx_sessions_activity_time",
        query=lambda: Session.objects.filter(is_active=True).order_by("-last_activity")[:50],
        caller="who is here now: the admin's list of sessions",
        rate="page views",
        accepted="A session's activity is noted once a minute at most: 586 bytes of WAL then, "
        "where 88 are without (HOT 0 and 100 %).",
    ),
    IndexEntry(
        index="idx_sessions_expires_at",
        query=lambda: Session.objects.filter(expires_at__lt=now() - timedelta(days=7)).order_by(
            "expires_at"
        )[:1000],
        caller="retention: the next logins to delete, a week past their end",
        rate="some an hour",
    ),
    IndexEntry(
        index="uq_api_keys_key_hash",
        query=lambda: APIKey.objects.filter(**sample(APIKey, "key_hash")),
        caller="authentication with a plain key",
        rate="each call",
    ),
    IndexEntry(
        index="idx_api_keys_tenant_active",
        query=lambda: APIKey.objects.filter(
            **sample(APIKey, "tenant_id", "is_active", is_active=True)
        ),
        caller="a tenant's plain keys that are still accepted, get_tenant_usage_summary",
        rate="page views",
    ),
    IndexEntry(
        index="uq_enhanced_api_keys_key_prefix",
        query=lambda: EnhancedAPIKey.objects.filter(**sample(EnhancedAPIKey, "key_prefix")),
        caller="authentication: the row whose HMAC is then compared",
        rate="each call",
    ),
    IndexEntry(
        index="uq_server_access_control_subject",
        query=lambda: ServerAccessControl.objects.filter(
            **sample(ServerAccessControl, "server_id", "is_active", is_active=True)
        ),
        caller="authorisation: the active rules of a server",
        rate="each call",
    ),
    IndexEntry(
        index="idx_api_keys_user",
        query=lambda: APIKey.objects.filter(**sample(APIKey, "user_id")),
        caller="deleting a user: their plain keys go too",
        rate="each deletion",
    ),
    IndexEntry(
        index="idx_enhanced_api_keys_user",
        query=lambda: EnhancedAPIKey.objects.filter(**sample(EnhancedAPIKey, "user_id")),
        caller="the REST list with ?user=; deleting a user",
        rate="page views",
    ),
    IndexEntry(
        index="idx_enhanced_api_keys_tenant_newest",
        query=lambda: _keys(tenant_id=_tenant_id()),
        tenant=lambda: _tenant_id(),
        caller="the REST list of a tenant's keys; get_tenant_usage_summary; deleting a tenant",
        rate="page views",
    ),
    IndexEntry(
        index="idx_enhanced_api_keys_expires",
        query=lambda: keys_overdue(now()),
        caller="the task api_keys_expire: keys to switch off a month past their end",
        rate="each hour",
    ),
    IndexEntry(
        index="idx_enhanced_api_keys_locked",
        query=lambda: _keys(is_locked=True),
        caller="the REST list with ?is_locked=true, the admin's filter",
        rate="page views",
    ),
    *(
        IndexEntry(
            index=f"idx_server_access_control_{subject}",
            query=partial(_rules, subject),
            caller=f"the REST list of a {subject}'s rules; deleting the {subject}",
            rate="page views",
        )
        for subject in ("user", "tenant", "api_key")
    ),
]
