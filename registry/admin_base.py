"""What every admin page of the gateway shares: audit entries, errors in words, cheap lists."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, cast
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ERROR_FLAG
from django.contrib.admin.widgets import AutocompleteSelect
from django.contrib.auth import get_permission_codename
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.forms import SimpleArrayField
from django.core.exceptions import ValidationError
from django.db import DataError, IntegrityError, OperationalError, models, transaction
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.text import capfirst
from psycopg.errors import QueryCanceled
from unfold import decorators as unfold_decorators
from unfold.admin import ModelAdmin, TabularInline
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from registry.admin_filters import TimeWindowFilter, say_unknown_choices
from registry.admin_keyset import KeysetList
from registry.audit import Actor, audit_write
from registry.db.encryption import DecryptionError
from registry.db.ids import time_of, uuid_or_none
from registry.db.jsonb import UNSTORABLE, is_storable
from registry.db.keyset import SLACK
from registry.db.partitions import NOWHERE, is_about_partitions
from registry.db.search import Indexed
from registry.figures import NOTHING, byte_size, duration, percentage

__all__ = [
    "NOTHING",
    "CheckedModelForm",
    "CommaSeparatedWidget",
    "ListedInline",
    "LogAdmin",
    "NewestFirstMixin",
    "OperatorAdmin",
    "OwnedRowsMixin",
    "ReadOnlyMixin",
    "ServerRowsMixin",
    "ServiceAdmin",
    "actor_of",
    "byte_size",
    "display",
    "duration",
    "link_to_list",
    "link_to_row",
    "name_or_id",
    "percentage",
    "register_last",
]


def actor_of(request: HttpRequest) -> Actor:
    """The operator behind an admin request, as the audit log names them."""
    return Actor(
        service_name="admin",
        tenant_id=getattr(request.user, "tenant_id", None),
        user_id=request.user.pk,
        request_id=getattr(request, "request_id", None),
        ip_address=getattr(request, "client_address", None),
        user_agent=request.headers.get("user-agent", ""),
    )


Method = TypeVar("Method", bound=Callable[..., Any])


def display(
    *, description: str, ordering: str | None = None, label: Any = None
) -> Callable[[Method], Method]:
    """A column of a list, or a read-only field. `label` shows it as a chip: True, or its colours.

    Colours are {words: "success" | "info" | "warning" | "danger" | "default"}, by what the method
    returns; a choice stands for its label. Unfold's decorator with a type.
    """
    if isinstance(label, dict):
        label = {getattr(words, "label", words): colour for words, colour in label.items()}
    decorated = unfold_decorators.display(description=description, ordering=ordering, label=label)
    return cast("Callable[[Method], Method]", decorated)


# ---------------------------------------------------------------- links


def link_to_row(url_name: str, pk: object, text: object) -> str:
    """A link to the page of one row, such as link_to_row("registry_tenant", id, slug)."""
    if pk is None:
        return NOTHING
    try:
        url = reverse(f"admin:{url_name}_change", args=[quote(str(pk))])
    except NoReverseMatch:
        return str(text)
    return format_html('<a href="{}" class="text-link">{}</a>', url, text)


def name_or_id(url_name: str, pk: object, name: str | None) -> str:
    """A log's link to what it names, or the bare id of what is gone."""
    return link_to_row(url_name, pk, name) if name is not None else str(pk or NOTHING)


def link_to_list(url_name: str, text: object, **filters: str | int | UUID) -> str:
    """A link to the rows of a list that match, such as the tools of one server."""
    query = urlencode({name: str(value) for name, value in filters.items()})
    url = f"{reverse(f'admin:{url_name}_changelist')}?{query}"
    return format_html('<a href="{}" class="text-link">{}</a>', url, text)


# ---------------------------------------------------------------- forms


class CommaSeparatedWidget(UnfoldAdminTextInputWidget):  # type: ignore[misc]
    """A list of short strings in one line."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__({"placeholder": "Separate with commas", **(attrs or {})})


class SafeJSONField(forms.JSONField):
    """Any JSON that may be stored; other text is shown again as it was typed."""

    default_error_messages = {"unstorable": UNSTORABLE}

    def to_python(self, value: Any) -> Any:
        try:
            found = super().to_python(value)
        except (RecursionError, ValueError):  # too deep; a number of thousands of digits
            found = math.inf
        if not is_storable(found):
            raise ValidationError(self.error_messages["unstorable"], code="unstorable")
        return found

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            self.to_python(data)
        except ValidationError:
            return None if data is None else InvalidJSONInput(data)
        return super().bound_data(data, initial)


class RowSelect(AutocompleteSelect):
    """Looks for no row of an id that is none, which PostgreSQL would refuse."""

    def optgroups(self, name: str, value: Any, attrs: Any = None) -> Any:
        return super().optgroups(name, [one for one in value if self._is_id(one)], attrs)

    def _is_id(self, text: str) -> bool:
        try:
            self.field.target_field.to_python(text)
        except ValidationError:
            return False
        return True


class CheckedModelForm(forms.ModelForm):  # type: ignore[type-arg]
    """Reports as form errors what the database or a service would refuse after the form.

    Django leaves out constraints that touch a field which the form does not show. `refusal` is
    what a service said at the attempt to save, see `OperatorAdmin.changeform_view`.
    """

    refusal: ClassVar[ValidationError | None] = None
    # Where a service names a field otherwise than the form: {"credentials": "new_credentials"}.
    told_at: ClassVar[dict[str, str]] = {}

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.refusal is not None:
            self._add(self.refusal)
        elif not self.errors:
            try:
                self.instance.validate_constraints()
            except ValidationError as error:
                self._add(error)

    def _add(self, error: ValidationError) -> None:
        """Each message at its field, or above the form when the form does not show the field."""
        for name, found in error.update_error_dict({}).items():
            field = self.told_at.get(name, name)
            self.add_error(field if field in self.fields else None, found)


def _as_json(value: Any) -> Any:
    """A form's value as the audit log keeps it: rows by id, times as text."""
    return json.loads(json.dumps(value, default=lambda other: str(getattr(other, "pk", other))))


# ---------------------------------------------------------------- admin classes


class OperatorAdmin(ModelAdmin):  # type: ignore[misc]
    """A page for operators: what it saves is checked in full and leaves an audit entry.

    `audit_noun` begins the action's name (`server` gives `server.create`); values of
    `audit_hidden` fields stay out of the log, as do secrets that are no fields of the model.
    """

    form = CheckedModelForm
    show_full_result_count = False
    list_per_page = 50  # drawing a row takes longer than reading it
    list_filter_submit = True
    warn_unsaved_form = True
    compressed_fields = True
    empty_value_display = NOTHING
    formfield_overrides = {
        ArrayField: {"widget": CommaSeparatedWidget},
        models.TextField: {"widget": UnfoldAdminTextareaWidget({"rows": 3})},
        models.JSONField: {
            "form_class": SafeJSONField,
            "widget": UnfoldAdminTextareaWidget({"rows": 4}),
        },
    }
    rows_name = ""  # the plural, where the list's name is none: a log, a history
    audit_noun = ""
    audit_hidden: tuple[str, ...] = ()

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        if ERROR_FLAG in request.GET:  # where Django goes from filters that it cannot read
            text = "A filter in the address does not fit this list. None of them is set."
            self.message_user(request, text, messages.WARNING)
        # As the menu has it.
        named = {"title": capfirst(str(self.opts.verbose_name_plural)), "opts": self.opts}
        return super().changelist_view(request, named | (extra_context or {}))

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        say_unknown_choices(request, changelist)
        return changelist

    def formfield_for_dbfield(
        self, db_field: models.Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if isinstance(field, SimpleArrayField):
            # The form must check each entry itself: of what the model's validators say, Django
            # would keep "did not validate" and drop the reason.
            entry, known = field.base_field, field.base_field.validators
            checks = db_field.base_field.validators  # type: ignore[attr-defined]
            entry.validators = [*known, *(check for check in checks if check not in known)]
            field.error_messages["item_invalid"] = "Entry %(nth)s:"
        return field

    def formfield_for_foreignkey(
        self, db_field: Any, request: HttpRequest | None, **kwargs: Any
    ) -> Any:
        if db_field.name in self.autocomplete_fields:
            kwargs["widget"] = RowSelect(db_field, self.admin_site)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return cast("HttpResponse", self._save_or_show(request, *args, **kwargs))
        except IntegrityError as error:
            text = (
                NOWHERE
                if is_about_partitions(error)
                else "Somebody changed this at the same moment. Nothing was saved: look and try "
                "again."
            )
        except DataError:
            text = "PostgreSQL cannot store one of the values. Nothing was saved: check the text."
        except DecryptionError as error:
            text = str(error)
        self.message_user(request, text, messages.ERROR)
        return HttpResponseRedirect(request.get_full_path())

    def _save_or_show(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except ValidationError as refusal:
            # A service refused what the form had let pass. Its transaction is rolled back; the
            # form is shown again with what was typed and the service's words.
            request.refusal = refusal  # type: ignore[attr-defined]
            return super().changeform_view(request, *args, **kwargs)

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        form = super().get_form(request, *args, **kwargs)  # a class of its own a request
        form.refusal = getattr(request, "refusal", None)
        return form

    def save_model(
        self, request: HttpRequest, obj: Any, form: forms.ModelForm[Any], change: bool
    ) -> None:
        """Write what the form changed and nothing else: counters and states move meanwhile."""
        if not change:
            super().save_model(request, obj, form, change)
            return
        columns = {field.name for field in self.model._meta.concrete_fields}
        changed = columns & set(form.changed_data)
        if not changed:
            return
        held = self.model._default_manager.select_for_update().filter(pk=obj.pk)
        if held.values_list("pk").first() is None:
            raise ValidationError("Somebody deleted this at the same moment.")
        obj.save(update_fields=changed | ({"updated_at"} & columns))

    def response_action(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> Any:
        # An action's changes and their audit entries stand or fall together.
        with transaction.atomic():
            return super().response_action(request, queryset)

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> Any:
        request.audit_changes = self.audit_changes(form)  # type: ignore[attr-defined]
        return super().construct_change_message(request, form, formsets, add)

    def audit_changes(self, form: forms.BaseForm) -> dict[str, Any]:
        """Each changed field with its value before and after; names alone where it is secret."""
        columns = {field.name for field in self.model._meta.fields} - set(self.audit_hidden)
        changes: dict[str, Any] = {}
        for name in form.changed_data:
            before, after = form.initial.get(name), form.cleaned_data.get(name)
            if not isinstance(form, forms.ModelForm) or name not in columns:
                changes[name] = "not shown"
            elif before != after:
                changes[name] = _as_json([before, after])
        return changes

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        self._audit(request, "create", obj)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        if getattr(request, "audit_changes", None):  # else a form was saved as it was
            self._audit(request, "update", obj)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Iterable[models.Model]) -> Any:
        for row in queryset:
            self._audit(request, "delete", row)
        return super().log_deletions(request, queryset)

    def _audit(self, request: HttpRequest, verb: str, row: models.Model) -> None:
        details: dict[str, Any] = {"name": str(row)}
        if changes := getattr(request, "audit_changes", None):
            details["changes"] = changes
        noun = self.audit_noun or self.model._meta.model_name
        audit_write(actor=actor_of(request), action=f"{noun}.{verb}", resource=row, details=details)

    def apply(
        self,
        request: HttpRequest,
        rows: Iterable[Any],
        change: Callable[..., bool],
        *,
        done: str,
        idle: str,
    ) -> None:
        """Run a service on each selected row and say how many changed: `done` and `idle` words."""
        changed = [change(row) for row in rows]
        if count := sum(changed):
            self.message_user(request, f"{count} {done}.", messages.SUCCESS)
        if rest := len(changed) - count:
            self.message_user(request, f"{rest} {idle}.", messages.INFO)


class ReadOnlyMixin:
    """Rows that the gateway writes and nobody edits, superusers included."""

    def has_add_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any, **__: Any) -> bool:
        return False


class ServiceAdmin(OperatorAdmin):
    """Rows that services change: those check, write the audit entry and do what else follows."""

    def service_create(self, actor: Actor, fields: dict[str, Any]) -> models.Model:
        raise NotImplementedError

    def service_update(self, actor: Actor, row: Any, changes: dict[str, Any]) -> models.Model:
        raise NotImplementedError

    def service_delete(self, actor: Actor, row: Any) -> None:
        raise NotImplementedError

    def service_fields(self, form: forms.ModelForm[Any], names: Iterable[str]) -> dict[str, Any]:
        """The form's values by the names that the services take."""
        columns = {field.name for field in self.model._meta.fields}
        return {name: form.cleaned_data[name] for name in names if name in columns}

    def save_model(
        self, request: HttpRequest, obj: models.Model, form: forms.ModelForm[Any], change: bool
    ) -> None:
        actor = actor_of(request)
        if change:
            row = self.service_update(actor, obj, self.service_fields(form, form.changed_data))
        else:
            row = self.service_create(actor, self.service_fields(form, form.cleaned_data))
        obj.__dict__.update(row.__dict__)  # Django goes on with `obj`: its log, its redirect

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        self.service_delete(actor_of(request), obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> None:
        for row in queryset:
            self.service_delete(actor_of(request), row)

    def _audit(self, request: HttpRequest, verb: str, row: models.Model) -> None:
        """Nothing: the service has written the entry."""


class OwnedRowsMixin:
    """Rows that come and go with another row, such as a breaker with its server.

    Their own pages offer neither adding nor deleting. Deleting the owner asks for the right to
    delete them, so outside their pages the permission is what the user's groups say.
    """

    def has_add_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        opts = self.opts  # type: ignore[attr-defined]
        match = request.resolver_match
        own = f"{opts.app_label}_{opts.model_name}_"
        if match is not None and (match.url_name or "").startswith(own):
            return False
        return bool(super().has_delete_permission(request, obj))  # type: ignore[misc]


class ServerRowsMixin:
    """Rows that belong to one server: joined once, without its credentials."""

    list_select_related: tuple[str, ...] = ("server",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        return rows.select_related("server").defer("server__credentials")

    @display(description="server", ordering="server__slug")
    def server_link(self, row: Any) -> str:
        return link_to_row("registry_mcpserver", row.server_id, row.server)


class NewestFirstMixin:
    """A list that only grows: newest first, read page after page and never counted."""

    ordering: tuple[str, ...] = ("-id",)  # ids are ordered by time, and every table has their index
    sortable_by = ()
    show_facets = admin.ShowFacets.NEVER  # a count for each choice of each filter
    time_field: ClassVar[str]

    def get_changelist(self, *_: Any, **__: Any) -> type[ChangeList]:
        return KeysetList

    def walked(
        self,
        request: HttpRequest,  # noqa: ARG002
        changelist: ChangeList,  # noqa: ARG002
    ) -> models.QuerySet[Any] | None:
        """The rows to look through for those that are asked for; None where an index gives these.

        See `registry.db.search`.
        """
        return None


class LogAdmin(NewestFirstMixin, ReadOnlyMixin, OperatorAdmin):
    """A partitioned log: newest first, a bounded window, no count, a row found by its id's time."""

    actions = None
    log: ClassVar[type[models.Model]]  # the partitioned model: who may view it sees these pages
    list_before_template = "registry/admin_searched.html"
    indexed: ClassVar[Indexed]  # its columns as the filters name their parameters

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        # Such rows are read along that index; all rows along the primary key.
        return (f"-{self.time_field}", "-id") if self._led_by(request) else self.ordering

    def _led_by(self, request: HttpRequest) -> frozenset[str]:
        """The filters by whose index the log is read."""
        given = {name for name in request.GET if str(request.GET[name]).strip()}
        return self.indexed.leading(given)

    def walked(self, request: HttpRequest, changelist: ChangeList) -> models.QuerySet[Any] | None:
        if changelist.queryset.query.is_empty():
            return None  # a filter was refused, and has said so
        walking = {TimeWindowFilter.parameter_name, *self._led_by(request)}
        asked = {name for name, (*_, value) in changelist.get_filters_params().items() if value}
        searched = changelist.query
        if self.indexed.few.issuperset(self.search_fields) if searched else asked <= walking:
            return None
        rows = changelist.root_queryset
        for spec in changelist.filter_specs:
            if walking & set(spec.expected_parameters()):
                rows = spec.queryset(request, rows)
        return self.near_search(rows, searched) if searched else rows

    def near_search(self, rows: models.QuerySet[Any], _search_term: str) -> models.QuerySet[Any]:
        """The rows among which what is searched for must be, by what the term tells."""
        return rows

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        opts = self.log._meta
        codename = get_permission_codename("view", opts)
        return bool(request.user.has_perm(f"{opts.app_label}.{codename}"))

    def get_object(
        self,
        request: HttpRequest,
        object_id: str,
        from_field: str | None = None,  # noqa: ARG002
    ) -> Any:
        row_id = uuid_or_none(object_id)
        made = time_of(row_id) if row_id else None
        if made is None:
            return None
        near = {f"{self.time_field}__range": (made - SLACK, made + SLACK)}
        return self.get_queryset(request).filter(**near, pk=object_id).first()

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().changelist_view(request, *args, **kwargs)
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled) or request.GET.get("window") == "1":
                raise
        self.message_user(
            request,
            "These filters match too little in too many rows; shown is the last hour.",
            messages.WARNING,
        )
        return HttpResponseRedirect(f"{request.path}?window=1")


class ListedInline(ReadOnlyMixin, TabularInline):  # type: ignore[misc]
    """The rows that belong to the shown one, each with a link to its own page."""

    extra = 0
    per_page = 20
    tab = True
    show_change_link = True
    show_title = False
    if not hasattr(TabularInline, "show_title"):  # Unfold's name for it, before it was renamed
        hide_title = True


def register_last(model: type[models.Model], with_admin: type[ModelAdmin]) -> None:
    """Replace the admin that a library registered for its model."""
    if admin.site.is_registered(model):
        admin.site.unregister(model)
    admin.site.register(model, with_admin)
