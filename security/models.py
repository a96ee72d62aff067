"""Who may do what: users, their sessions, API keys and the rules per server."""

from typing import ClassVar, Self

from django.contrib.auth.models import AbstractUser, UserManager
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils.timezone import now

from registry.db.base import TimestampedModel, UUIDModel, choices_constraint
from registry.db.indexes import NamedIndex
from registry.models import MCPServer, Tenant
from security.validators import (
    validate_hour,
    validate_network,
    validate_timezone,
    validate_weekday,
)

__all__ = [
    "APIKey",
    "APIKeyScope",
    "EnhancedAPIKey",
    "Role",
    "ServerAccessControl",
    "Session",
    "User",
]


class Role(models.TextChoices):
    ADMIN = "admin", "Administrator"
    USER = "user", "User"
    SERVICE = "service", "Service"
    READONLY = "readonly", "Read-only"


class User(UUIDModel, AbstractUser, TimestampedModel):
    """A person or service that signs in; each role is a group of the same name."""

    first_name = None  # type: ignore[assignment]  # full_name holds the whole
    last_name = None  # type: ignore[assignment]
    # Unique by constraint: `unique=True` on text makes a second, unused LIKE index.
    username = models.CharField(
        max_length=150,
        validators=[AbstractUser.username_validator],
        error_messages={
            "unique": "A user with that name exists already.",
        },
    )
    email = models.EmailField(blank=True)
    full_name = models.CharField(max_length=255, blank=True)
    role = models.CharField(max_length=8, choices=Role, default=Role.USER)
    auth_provider = models.CharField(max_length=63, default="local")
    auth_provider_id = models.CharField(max_length=255, blank=True)
    # Null: an operator, who sees every tenant.
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="users", db_index=False
    )

    objects: ClassVar[UserManager[Self]] = UserManager()

    class Meta:
        db_table = "users"
        constraints = [
            models.UniqueConstraint(fields=["username"], name="uq_users_username"),
            models.UniqueConstraint(
                Lower("email"),
                name="uq_users_email_lower",
                condition=~Q(email=""),
                violation_error_message="A user with that e-mail address exists already.",
            ),
            choices_constraint(table="users", field="role", choices=Role),
        ]
        indexes = [
            NamedIndex(fields=["tenant", "role", "is_active"], name="idx_users_tenant_role"),
        ]

    def get_full_name(self) -> str:
        return self.full_name or self.username

    def get_short_name(self) -> str:
        return self.username


class Session(UUIDModel, TimestampedModel):
    """A login. The cookie holds the token, the table only its hash."""

    # Null until somebody signs in.
    user = models.ForeignKey(
        User, models.CASCADE, null=True, blank=True, related_name="sessions", db_index=False
    )
    session_token = models.CharField(max_length=64, help_text="SHA-256 of the cookie's value.")
    ip_address = models.GenericIPAddressField(null=True, blank=True)
    user_agent = models.CharField(max_length=512, blank=True)
    expires_at = models.DateTimeField()
    session_data = models.TextField(blank=True)
    is_active = models.BooleanField(default=True)
    last_activity = models.DateTimeField(default=now)

    class Meta:
        db_table = "sessions"
        constraints = [
            models.UniqueConstraint(fields=["session_token"], name="uq_sessions_session_token"),
        ]
        indexes = [
            NamedIndex(fields=["user", "is_active", "expires_at"], name="idx_sessions_user_active"),
            NamedIndex(
                fields=["user", "expires_at"],
                name="idx_sessions_user_live",
                condition=Q(is_active=True),
            ),
            NamedIndex(fields=["user"], name="idx_sessions_user", condition=Q(user__isnull=False)),
            NamedIndex(
                fields=["-last_activity"],
                name="idx_sessions_activity_time",
                condition=Q(is_active=True),
            ),
            NamedIndex(fields=["expires_at"], name="idx_sessions_expires_at"),
        ]

    def __str__(self) -> str:
        return f"{self.user or 'anonymous'} from {self.ip_address or 'unknown address'}"


class APIKeyScope(models.TextChoices):
    READ = "read", "Read the registry"
    WRITE = "write", "Change the registry"
    ADMIN = "admin", "Everything, and manage keys and rules"
    PROXY = "proxy", "Call servers through the gateway"
    METRICS = "metrics", "Read monitoring data"
    HEALTH = "health", "Read health"


DEFAULT_SCOPES = (APIKeyScope.PROXY.value, APIKeyScope.READ.value)  # of a key of an agent


def _scopes() -> "ArrayField[list[str], list[str]]":
    return ArrayField(models.CharField(max_length=8, choices=APIKeyScope), default=list, blank=True)


class APIKey(UUIDModel, TimestampedModel):
    """The plain key of before. Accepted, and replaced by an enhanced key when presented."""

    name = models.CharField(max_length=255)
    key_hash = models.CharField(max_length=64, help_text="SHA-256 of the whole key, hex.")
    key_prefix = models.CharField(max_length=16)
    user = models.ForeignKey(
        User,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="plain_api_keys",
        db_index=False,
    )
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, related_name="plain_api_keys", db_index=False
    )
    permissions = models.JSONField(default=dict, blank=True)
    scopes = _scopes()
    is_active = models.BooleanField(default=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True)
    total_requests = models.PositiveBigIntegerField(default=0)

    class Meta:
        db_table = "api_keys"
        verbose_name = "plain API key"
        constraints = [
            models.UniqueConstraint(fields=["key_hash"], name="uq_api_keys_key_hash"),
        ]
        indexes = [
            NamedIndex(fields=["tenant", "is_active"], name="idx_api_keys_tenant_active"),
            NamedIndex(fields=["user"], name="idx_api_keys_user", condition=Q(user__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.name


class EnhancedAPIKey(UUIDModel, TimestampedModel):
    """A key that agents present. Its secret was shown once; only a salted HMAC is kept."""

    name = models.CharField(max_length=255)
    description = models.TextField(blank=True)
    key_hash = models.BinaryField(max_length=32)
    key_prefix = models.CharField(max_length=16)
    salt = models.BinaryField(max_length=32)
    user = models.ForeignKey(
        User, models.CASCADE, null=True, blank=True, related_name="api_keys", db_index=False
    )
    # Null: an operator's key, which sees every tenant's API and calls only shared servers.
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="api_keys", db_index=False
    )
    scopes = _scopes()
    # Empty lists restrict nothing.
    allowed_servers = ArrayField(
        models.CharField(max_length=63), default=list, blank=True, help_text="Slugs."
    )
    allowed_methods = ArrayField(
        models.CharField(max_length=255),
        default=list,
        blank=True,
        help_text="Patterns such as tools/call or tools/call:read_*.",
    )
    ip_whitelist = ArrayField(
        models.CharField(max_length=43, validators=[validate_network]),
        default=list,
        blank=True,
        help_text="Addresses and networks.",
    )
    rate_limit_per_hour = models.PositiveIntegerField(default=1000)
    rate_limit_per_day = models.PositiveIntegerField(default=10_000)
    is_active = models.BooleanField(default=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True)
    total_requests = models.PositiveBigIntegerField(default=0)
    total_errors = models.PositiveBigIntegerField(default=0)
    failed_attempts = models.PositiveIntegerField(default=0)
    last_failed_attempt = models.DateTimeField(null=True, blank=True)
    is_locked = models.BooleanField(default=False)
    locked_until = models.DateTimeField(
        null=True, blank=True, help_text="Empty: until somebody unlocks the key."
    )

    class Meta:
        db_table = "enhanced_api_keys"
        verbose_name = "API key"
        constraints = [
            models.UniqueConstraint(fields=["key_hash"], name="uq_enhanced_api_keys_key_hash"),
            models.UniqueConstraint(fields=["key_prefix"], name="uq_enhanced_api_keys_key_prefix"),
            models.CheckConstraint(
                name="ck_enhanced_api_keys_scopes",
                condition=Q(scopes__contained_by=APIKeyScope.values),
            ),
        ]
        indexes = [
            # Also serves the foreign key.
            NamedIndex(fields=["tenant", "-id"], name="idx_enhanced_api_keys_tenant_newest"),
            NamedIndex(
                fields=["user"], name="idx_enhanced_api_keys_user", condition=Q(user__isnull=False)
            ),
            NamedIndex(
                fields=["expires_at"],
                name="idx_enhanced_api_keys_expires",
                condition=Q(is_active=True, expires_at__isnull=False),
            ),
            NamedIndex(
                fields=["-id"], name="idx_enhanced_api_keys_locked", condition=Q(is_locked=True)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.key_prefix})"


class ServerAccessControl(UUIDModel, TimestampedModel):
    """What one subject (a user, a tenant or a key) may do with one server, and when."""

    server = models.ForeignKey(
        MCPServer, models.CASCADE, related_name="access_rules", db_index=False
    )
    user = models.ForeignKey(
        User,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="access_rules",
        db_index=False,
    )
    tenant = models.ForeignKey(
        Tenant,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="access_rules",
        db_index=False,
    )
    api_key = models.ForeignKey(
        EnhancedAPIKey,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="access_rules",
        db_index=False,
    )
    can_read = models.BooleanField(default=True)
    can_write = models.BooleanField(default=False)
    can_admin = models.BooleanField(default=False)
    can_proxy = models.BooleanField(default=True)
    allowed_methods = ArrayField(
        models.CharField(max_length=255), default=list, blank=True, help_text="Empty: all."
    )
    denied_methods = ArrayField(
        models.CharField(max_length=255),
        default=list,
        blank=True,
        help_text="Patterns such as tools/call:delete_*; a denial wins.",
    )
    access_start_time = models.TimeField(null=True, blank=True)
    access_end_time = models.TimeField(null=True, blank=True)
    allowed_days = ArrayField(
        models.PositiveSmallIntegerField(validators=[validate_weekday]),
        default=list,
        blank=True,
        help_text="0 is Monday. Empty: every day.",
    )
    allowed_hours = ArrayField(
        models.PositiveSmallIntegerField(validators=[validate_hour]),
        default=list,
        blank=True,
        help_text="0 to 23. Empty: every hour.",
    )
    timezone = models.CharField(max_length=63, default="UTC", validators=[validate_timezone])
    is_active = models.BooleanField(default=True)
    last_access = models.DateTimeField(null=True, blank=True)
    access_count = models.PositiveBigIntegerField(default=0)

    class Meta:
        db_table = "server_access_control"
        verbose_name = "access rule"
        constraints = [
            models.CheckConstraint(
                name="ck_server_access_control_one_subject",
                condition=(
                    Q(user__isnull=False, tenant=None, api_key=None)
                    | Q(user=None, tenant__isnull=False, api_key=None)
                    | Q(user=None, tenant=None, api_key__isnull=False)
                ),
                violation_error_message="Name exactly one of user, tenant and API key.",
            ),
            # One active rule a subject and server, so that "the rule that decides" is one row.
            # Begins with the server: also the index of the rules of a server.
            models.UniqueConstraint(
                fields=["server", "user", "tenant", "api_key"],
                name="uq_server_access_control_subject",
                condition=Q(is_active=True),
                nulls_distinct=False,
                violation_error_message="This subject has an active rule for the server already.",
            ),
            models.CheckConstraint(
                name="ck_server_access_control_days",
                condition=Q(allowed_days__contained_by=list(range(7))),
            ),
            models.CheckConstraint(
                name="ck_server_access_control_hours",
                condition=Q(allowed_hours__contained_by=list(range(24))),
            ),
        ]
        # A rule names one subject: together these hold each rule once, as one index would.
        indexes = [
            NamedIndex(
                fields=[subject],
                name=f"idx_server_access_control_{subject}",
                condition=Q(**{f"{subject}__isnull": False}),
            )
            for subject in ("user", "tenant", "api_key")
        ]

    def __str__(self) -> str:
        return f"{self.server}: {self.api_key or self.user or self.tenant}"
