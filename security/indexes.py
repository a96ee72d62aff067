"""What security's indexes are for: the query, who runs it, how often."""

from datetime import timedelta

from django.db.models.functions import Lower
from django.utils.timezone import now

from registry.db.catalogue import IndexEntry, sample
from security.models import (
    APIKey,
    EnhancedAPIKey,
    Role,
    ServerAccessControl,
    Session,
    User,
)

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
        index="idx_sessions_user_active",
        query=lambda: Session.objects.filter(
            **sample(Session, "user_id", "is_active", is_active=True, expires_at__gt=now()),
            expires_at__gt=now(),
        ),
        caller="a user's live logins: the admin's list of sessions with its filters",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_sessions_activity_time",
        query=lambda: Session.objects.filter(is_active=True).order_by("-last_activity")[:50],
        caller="who is here now: the admin's list of sessions",
        rate="page views",
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
]
