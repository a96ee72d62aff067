"""Users, sessions, API keys and access rules, for operators."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.hashers import is_password_usable
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.timezone import now
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    BooleanRadioFilter,
    ChoicesDropdownFilter,
)
from unfold.forms import (
    AdminPasswordChangeForm,
    UnfoldReadOnlyPasswordHashWidget,
    UserChangeForm,
    UserCreationForm,
)
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from registry.admin_base import (
    CheckedModelForm,
    OperatorAdmin,
    OwnedRowsMixin,
    ServerRowsMixin,
    actor_of,
    display,
    link_to_row,
    register_last,
)
from registry.admin_filters import OneOfFilter
from security import services
from security.models import (
    APIKey,
    APIKeyScope,
    EnhancedAPIKey,
    Role,
    ServerAccessControl,
    Session,
    User,
)

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def scopes_field(**kwargs: Any) -> forms.MultipleChoiceField:
    return forms.MultipleChoiceField(
        choices=APIKeyScope.choices, widget=UnfoldAdminCheckboxSelectMultipleWidget, **kwargs
    )


# ---------------------------------------------------------------- users and groups


class UserChecks(CheckedModelForm):
    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if self.cleaned_data.get("is_staff") and self.cleaned_data.get("tenant"):
            self.add_error(
                "is_staff",
                "The admin shows every tenant's data: leave the tenant empty for an operator.",
            )
        return cleaned


class NewUserForm(UserChecks, UserCreationForm):  # type: ignore[misc]
    class Meta:
        model = User
        fields = ("username", "email", "full_name", "role", "tenant", "is_staff")


class PasswordStateWidget(UnfoldReadOnlyPasswordHashWidget):  # type: ignore[misc]
    """Whether there is a password; nothing of its hash, which Django's own shows in part."""

    def get_context(self, name: str, value: str | None, attrs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context(name, value, attrs)
        usable = bool(value) and is_password_usable(value)
        context["summary"] = [{"label": "set" if usable else "none: no login by password"}]
        return context


class ChangedUserForm(UserChecks, UserChangeForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "password" in self.fields:
            self.fields["password"].widget = PasswordStateWidget()

    class Meta:
        model = User
        fields = "__all__"


class NewPasswordForm(AdminPasswordChangeForm):  # type: ignore[misc]
    def save(self, commit: bool = True) -> User:
        """Write the password alone: Django's own would write the whole row."""
        user: User = super().save(commit=False)
        if commit:
            user.save(update_fields=["password", "updated_at"])
        return user


class UserAdmin(OperatorAdmin, DjangoUserAdmin):  # type: ignore[misc,type-arg]
    form = ChangedUserForm
    add_form = NewUserForm
    change_password_form = NewPasswordForm
    audit_hidden = ("password",)
    list_display = (
        "username",
        "full_name",
        "email",
        "role_label",
        "tenant",
        "is_staff",
        "is_active",
        "last_login",
    )
    list_filter = (
        ("role", ChoicesDropdownFilter),
        ("is_active", BooleanRadioFilter),
        ("is_staff", BooleanRadioFilter),
        ("tenant", AutocompleteSelectFilter),
    )
    list_select_related = ("tenant",)
    search_fields = ("username", "email", "full_name")
    ordering = ("username",)
    autocomplete_fields = ("tenant",)
    filter_horizontal = ("user_permissions",)
    readonly_fields = ("last_login", "date_joined", "auth_provider", "auth_provider_id", "groups")
    fieldsets = (
        (None, {"fields": (("username", "password"), ("full_name", "email"))}),
        (
            "Rights",
            {
                "fields": (
                    ("role", "tenant"),
                    "is_active",
                    "is_staff",
                    "is_superuser",
                    "groups",
                ),
                "description": "The role decides the group of the same name. Staff may open "
                "this admin, which shows every tenant; so staff belong to no tenant.",
            },
        ),
        ("Further permissions", {"fields": ("user_permissions",), "classes": ("tab",)}),
        (
            "Record",
            {
                "fields": (("last_login", "date_joined"), ("auth_provider", "auth_provider_id")),
                "classes": ("tab",),
            },
        ),
    )
    add_fieldsets = (
        (
            None,
            {
                "fields": (
                    ("username", "email"),
                    "full_name",
                    ("role", "tenant"),
                    "is_staff",
                    "usable_password",
                    "password1",
                    "password2",
                )
            },
        ),
    )

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        join_role_group(form.instance)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        fixed = super().get_readonly_fields(request, obj)
        if request.user.is_superuser:
            return fixed
        fixed = (*fixed, "is_superuser", "user_permissions")
        # Nobody hands out more than they hold: a role brings its group's permissions.
        is_admin = getattr(request.user, "role", "") == Role.ADMIN
        return fixed if is_admin else (*fixed, "role", "is_staff")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        allowed = bool(super().has_change_permission(request, obj))
        # Else an operator could set a superuser's password and become one.
        return allowed and (request.user.is_superuser or obj is None or not obj.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        allowed = bool(super().has_delete_permission(request, obj))
        return allowed and (request.user.is_superuser or obj is None or not obj.is_superuser)

    @display(
        description="role",
        ordering="role",
        label={
            Role.ADMIN: "danger",
            Role.USER: "info",
            Role.SERVICE: "primary",
            Role.READONLY: "default",
        },
    )
    def role_label(self, user: User) -> str:
        return user.get_role_display()


def join_role_group(user: User) -> None:
    """Of the roles' groups a user is in exactly the one of its role; other groups stay."""
    others = Group.objects.filter(name__in=set(Role.values) - {user.role})
    user.groups.remove(*others)
    user.groups.add(*Group.objects.filter(name=user.role))


class GroupAdmin(OperatorAdmin, DjangoGroupAdmin):  # type: ignore[misc]
    list_display = ("name",)


register_last(User, UserAdmin)
register_last(Group, GroupAdmin)


# ---------------------------------------------------------------- sessions


class LiveFilter(OneOfFilter):
    """Logins that still open the door, unless asked for the others."""

    title = "state"
    parameter_name = "state"
    all_option = None

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [("live", "Signed in"), ("ended", "Ended"), ("all", "All")]

    def value(self) -> str:
        return super().value() or "live"

    def chosen(self, rows: QuerySet[Session], choice: str) -> QuerySet[Session]:
        live = {"is_active": True, "expires_at__gt": now()}
        if choice == "all":
            return rows
        return rows.exclude(**live) if choice == "ended" else rows.filter(**live)


@admin.register(Session)
class SessionAdmin(OwnedRowsMixin, OperatorAdmin):
    list_display = ("user_link", "state", "ip_address", "last_activity", "expires_at", "user_agent")
    list_display_links = ("last_activity",)
    list_filter = (LiveFilter, ("user", AutocompleteSelectFilter))
    list_select_related = ("user",)
    search_fields = ("user__username",)
    ordering = ("-last_activity",)
    # Neither the token's hash nor the session's data.
    fields = (
        ("user_link", "state"),
        ("ip_address", "user_agent"),
        ("created_at", "last_activity", "expires_at"),
    )
    actions = ("revoke",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Session]:
        rows: QuerySet[Session] = super().get_queryset(request)
        return rows.defer("session_data", "session_token")

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("security.change_session"))

    @admin.action(description="Sign out the selected sessions", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        actor = actor_of(request)
        self.apply(
            request,
            queryset,
            lambda session: services.session_revoke(actor=actor, session=session),
            done="session(s) signed out",
            idle="had ended before",
        )

    @display(description="user", ordering="user__username")
    def user_link(self, session: Session) -> str:
        if session.user is None:
            return "nobody yet"
        return link_to_row("security_user", session.user_id, session.user.username)

    @display(
        description="state", label={"live": "success", "expired": "default", "revoked": "warning"}
    )
    def state(self, session: Session) -> str:
        if not session.is_active:
            return "revoked"
        return "live" if session.expires_at > now() else "expired"


# ---------------------------------------------------------------- API keys

KEY_COLOURS = {
    "active": "success",
    "locked": "danger",
    "expired": "warning",
    "revoked": "default",
}


class KeyColumnsMixin:
    """What plain and enhanced keys show alike."""

    @display(description="state", label=KEY_COLOURS)
    def state(self, key: APIKey | EnhancedAPIKey) -> str:
        if not key.is_active:
            return "revoked"
        if key.expires_at and key.expires_at <= now():
            return "expired"
        locked = getattr(key, "is_locked", False)
        still = locked and (key.locked_until is None or key.locked_until > now())  # type: ignore[union-attr]
        return "locked" if still else "active"

    @display(description="locked")
    def lock_told(self, key: EnhancedAPIKey) -> str:
        if self.state(key) != "locked":
            return "no"
        until = key.locked_until
        return f"until {until:%Y-%m-%d %H:%M} UTC" if until else "until somebody unlocks it"

    @display(description="owner")
    def owner(self, key: APIKey | EnhancedAPIKey) -> str:
        if key.tenant is None:
            return "operators"
        return link_to_row("registry_tenant", key.tenant_id, key.tenant.slug)

    @display(description="scopes", label=True)
    def scope_labels(self, key: APIKey | EnhancedAPIKey) -> list[str]:
        return list(key.scopes)

    @display(description="requests", ordering="total_requests")
    def requests(self, key: APIKey | EnhancedAPIKey) -> str:
        return f"{key.total_requests:,}"


class EnhancedAPIKeyForm(CheckedModelForm):
    scopes = scopes_field(required=True, help_text="What the key may be used for.")

    class Meta:
        model = EnhancedAPIKey
        fields = "__all__"
        labels = {"ip_whitelist": "Allowed addresses"}
        help_texts = {
            "allowed_servers": "Slugs of servers.",
            "ip_whitelist": "Addresses and networks, such as 203.0.113.7 or 10.0.0.0/8.",
            "expires_at": "UTC. Empty: never.",
        }


@admin.register(EnhancedAPIKey)
class EnhancedAPIKeyAdmin(KeyColumnsMixin, OperatorAdmin):
    form = EnhancedAPIKeyForm
    audit_noun = "api_key"
    list_display = (
        "name",
        "key_prefix",
        "state",
        "owner",
        "scope_labels",
        "requests",
        "last_used",
        "expires_at",
    )
    list_filter = (
        ("is_active", BooleanRadioFilter),
        ("is_locked", BooleanRadioFilter),
        ("tenant", AutocompleteSelectFilter),
    )
    list_select_related = ("tenant", "user")
    search_fields = ("name", "key_prefix")
    search_help_text = "Name, or the prefix between mcpgw_ and the next underscore"
    ordering = ("-created_at",)
    autocomplete_fields = ("tenant", "user")
    actions = ("revoke", "lock", "unlock")
    readonly_fields = (
        "key_prefix",
        "state",
        "requests",
        "total_errors",
        "failed_attempts",
        "last_failed_attempt",
        "lock_told",
        "last_used",
        "created_at",
    )
    BASIS = (None, {"fields": ("name", "description", ("tenant", "user"), "expires_at")})
    RIGHTS = (
        "Rights",
        {
            "fields": (
                "scopes",
                "allowed_servers",
                "allowed_methods",
                "ip_whitelist",
                ("rate_limit_per_hour", "rate_limit_per_day"),
            ),
            "description": "Empty lists restrict nothing. A key without a tenant is an "
            "operator's: it sees every tenant in the API and calls shared servers only.",
        },
    )
    add_fieldsets = (BASIS, RIGHTS)
    fieldsets = (
        BASIS,
        RIGHTS,
        (
            "Use",
            {
                "fields": (
                    ("key_prefix", "state"),
                    ("requests", "total_errors", "last_used"),
                    ("failed_attempts", "last_failed_attempt", "lock_told"),
                    "created_at",
                ),
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[EnhancedAPIKey]:
        rows: QuerySet[EnhancedAPIKey] = super().get_queryset(request)
        return rows.defer("key_hash", "salt")

    def get_readonly_fields(self, _request: HttpRequest, obj: EnhancedAPIKey | None = None) -> Any:
        # A key keeps its owner: whose calls the logs tell of must not change afterwards.
        return (*self.readonly_fields, "tenant", "user") if obj else self.readonly_fields

    def save_model(
        self, request: HttpRequest, obj: Any, form: forms.ModelForm[Any], change: bool
    ) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        chosen = {name: form.cleaned_data[name] for name in form.fields}
        row, text = services.api_key_create(actor=actor_of(request), id=obj.pk, **chosen)
        obj.__dict__.update(row.__dict__)
        request.created_key = text  # type: ignore[attr-defined]

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Nothing: the service has written the audit entry."""

    def response_add(
        self,
        request: HttpRequest,
        obj: EnhancedAPIKey,
        post_url_continue: str | None = None,  # noqa: ARG002
    ) -> HttpResponse:
        """The key's text, in the answer to the POST alone: no message, cookie or session has it."""
        context = {
            **self.admin_site.each_context(request),
            "title": "The new API key",
            "opts": self.opts,
            "original": obj,
            "text": request.created_key,  # type: ignore[attr-defined]
        }
        response = TemplateResponse(request, "security/api_key_created.html", context)
        response["Cache-Control"] = "no-store"
        return response

    @admin.action(description="Revoke the selected keys", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[EnhancedAPIKey]) -> None:
        actor = actor_of(request)
        self.apply(
            request,
            queryset,
            lambda key: services.api_key_revoke(actor=actor, key=key),
            done="key(s) revoked",
            idle="revoked before",
        )

    @admin.action(description="Lock the selected keys", permissions=["change"])
    def lock(self, request: HttpRequest, queryset: QuerySet[EnhancedAPIKey]) -> None:
        actor = actor_of(request)
        self.apply(
            request,
            queryset,
            lambda key: services.api_key_lock(actor=actor, key=key),
            done="key(s) locked",
            idle="locked before",
        )

    @admin.action(description="Unlock the selected keys", permissions=["change"])
    def unlock(self, request: HttpRequest, queryset: QuerySet[EnhancedAPIKey]) -> None:
        actor = actor_of(request)
        self.apply(
            request,
            queryset,
            lambda key: services.api_key_unlock(actor=actor, key=key),
            done="key(s) unlocked",
            idle="not locked",
        )


@admin.register(APIKey)
class APIKeyAdmin(KeyColumnsMixin, OperatorAdmin):
    """Plain keys of before: nobody makes new ones; they can be switched off."""

    audit_noun = "plain_api_key"
    list_display = (
        "name",
        "key_prefix",
        "state",
        "owner",
        "scope_labels",
        "requests",
        "last_used",
        "expires_at",
    )
    list_filter = (("is_active", BooleanRadioFilter), ("tenant", AutocompleteSelectFilter))
    list_select_related = ("tenant", "user")
    search_fields = ("name", "key_prefix")
    ordering = ("-created_at",)
    fields = (
        ("name", "key_prefix"),
        "is_active",
        ("tenant", "user"),
        ("scopes", "permissions"),
        ("requests", "last_used", "expires_at"),
    )
    readonly_fields = (
        "name",
        "key_prefix",
        "tenant",
        "user",
        "scopes",
        "permissions",
        "requests",
        "last_used",
        "expires_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[APIKey]:
        rows: QuerySet[APIKey] = super().get_queryset(request)
        return rows.defer("key_hash")

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False


# ---------------------------------------------------------------- access rules


class AccessRuleForm(CheckedModelForm):
    allowed_days = forms.TypedMultipleChoiceField(
        choices=tuple(enumerate(WEEKDAYS)),
        coerce=int,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="None chosen: every day.",
    )

    class Meta:
        model = ServerAccessControl
        labels = {"api_key": "API key"}
        fields = "__all__"


@admin.register(ServerAccessControl)
class ServerAccessControlAdmin(ServerRowsMixin, OperatorAdmin):
    form = AccessRuleForm
    audit_noun = "access_rule"
    list_display = ("server_link", "subject", "rights", "times", "is_active", "last_access", "uses")
    list_display_links = ("subject",)
    list_filter = (
        ("is_active", BooleanRadioFilter),
        ("server", AutocompleteSelectFilter),
        ("tenant", AutocompleteSelectFilter),
        ("user", AutocompleteSelectFilter),
        ("api_key", AutocompleteSelectFilter),
    )
    list_select_related = ("server", "user", "tenant", "api_key")
    search_fields = ("server__slug", "user__username", "tenant__slug", "api_key__name")
    autocomplete_fields = ("server", "user", "tenant", "api_key")
    ordering = ("server__slug", "-id")
    readonly_fields = ("last_access", "uses", "created_at")
    fieldsets = (
        (
            None,
            {
                "fields": ("server", "user", "tenant", "api_key", "is_active"),
                "description": "Name exactly one of user, tenant and API key. Of several rules "
                "for a server the most specific decides: key, then user, then tenant.",
            },
        ),
        (
            "Rights",
            {
                "fields": (
                    ("can_proxy", "can_read", "can_write", "can_admin"),
                    "allowed_methods",
                    "denied_methods",
                ),
                "description": "Proxy: call it through the gateway. Read, write, admin: see it in "
                "the API, change it, manage its rules and credentials.",
            },
        ),
        (
            "Times",
            {
                "fields": (
                    ("access_start_time", "access_end_time"),
                    "timezone",
                    "allowed_days",
                    "allowed_hours",
                )
            },
        ),
        ("Use", {"fields": (("last_access", "uses", "created_at"),), "classes": ("tab",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServerAccessControl]:
        rows = super().get_queryset(request)
        return rows.select_related("user", "tenant", "api_key").defer(
            "api_key__key_hash", "api_key__salt"
        )

    def get_fieldsets(self, request: HttpRequest, obj: ServerAccessControl | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    @display(description="subject")
    def subject(self, rule: ServerAccessControl) -> str:
        if rule.api_key:
            return f"key {rule.api_key}"
        return f"user {rule.user}" if rule.user else f"tenant {rule.tenant}"

    @display(description="may", label=True)
    def rights(self, rule: ServerAccessControl) -> list[str]:
        names = ("proxy", "read", "write", "admin")
        return [name for name in names if getattr(rule, f"can_{name}")] or ["nothing"]

    @display(description="when")
    def times(self, rule: ServerAccessControl) -> str:
        parts = []
        if rule.access_start_time and rule.access_end_time:
            parts.append(f"{rule.access_start_time:%H:%M} to {rule.access_end_time:%H:%M}")
        if rule.allowed_days:
            parts.append(", ".join(WEEKDAYS[day][:3] for day in sorted(rule.allowed_days)))
        if rule.allowed_hours:
            parts.append("hours " + ", ".join(str(hour) for hour in sorted(rule.allowed_hours)))
        return f"{'; '.join(parts)} {rule.timezone}" if parts else "always"

    @display(description="uses", ordering="access_count")
    def uses(self, rule: ServerAccessControl) -> str:
        return f"{rule.access_count:,}"
