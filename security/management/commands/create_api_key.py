import json
from argparse import ArgumentTypeError
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from monitoring.audit import Actor
from registry.management.usage import usage_error
from registry.models import MCPServer, Tenant
from security.models import DEFAULT_SCOPES, APIKeyScope, EnhancedAPIKey
from security.services import api_key_create
from security.validators import validate_network

ARGUMENTS = {
    "name": "NAME",
    "rate_limit_per_hour": "--per-hour",
    "rate_limit_per_day": "--per-day",
}


class Command(BaseCommand):
    help = "Create an API key and print it once; only its prefix can be read again."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--tenant", default="default", metavar="SLUG", help="Default: default.")
        parser.add_argument(
            "--scope", action="append", dest="scopes", metavar="S",
            help=f"Repeatable: {', '.join(APIKeyScope.values)}. Default: proxy and read.",
        )  # fmt: skip
        parser.add_argument(
            "--server", action="append", dest="servers", default=[], metavar="SLUG",
            help="Repeatable: the only servers it may call. Default: all.",
        )  # fmt: skip
        parser.add_argument(
            "--ip", action="append", dest="networks", default=[], metavar="CIDR",
            help="Repeatable: the only addresses it may come from. Default: all.",
        )  # fmt: skip
        parser.add_argument(
            "--expires", type=_days, metavar="DAYS", help="Days that it lives. Default: for ever."
        )
        parser.add_argument(
            "--per-hour", type=int, metavar="N", default=_default("rate_limit_per_hour"),
            help="Calls an hour at most. Default: %(default)s.",
        )  # fmt: skip
        parser.add_argument(
            "--per-day", type=int, metavar="N", default=_default("rate_limit_per_day"),
            help="Calls a day at most. Default: %(default)s.",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(
        self,
        *,
        name: str,
        tenant: str,
        scopes: list[str] | None,
        servers: list[str],
        networks: list[str],
        expires: int | None,
        per_hour: int,
        per_day: int,
        json: bool,
        **_options: Any,
    ) -> None:
        if not name.strip():
            raise CommandError("Write a NAME that tells what the key is for.", returncode=2)
        owner = _tenant(tenant)
        _require(scopes or (), APIKeyScope.values, kind="scope")
        visible = MCPServer.objects.visible_to(owner.pk).order_by("slug")
        _require(servers, visible.values_list("slug", flat=True), kind="server")
        if expires is not None and not 1 <= expires <= 36_500:
            raise CommandError("--expires takes 1 to 36500 days.", returncode=2)
        if per_hour < 1 or per_day < 1:
            raise CommandError("--per-hour and --per-day take 1 and more.", returncode=2)
        _check_networks(networks)
        try:
            row, text = api_key_create(
                actor=Actor(service_name="cli"),
                name=name,
                tenant=owner,
                scopes=list(dict.fromkeys(scopes or DEFAULT_SCOPES)),
                allowed_servers=list(dict.fromkeys(servers)),
                ip_whitelist=networks,
                expires_at=now() + timedelta(days=expires) if expires else None,
                rate_limit_per_hour=per_hour,
                rate_limit_per_day=per_day,
            )
        except ValidationError as error:
            raise usage_error(error, arguments=ARGUMENTS) from None
        if (namesake := _namesake(row)) is not None:
            self.stderr.write(
                f"Another key of {owner} has this name and goes on: {namesake.key_prefix}. "
                "If this one replaces it, revoke it in the admin under API keys."
            )
        if json:
            self.stdout.write(_document(row.pk, row.name, row.key_prefix, text))
            return
        self.stdout.write(f"{text}")
        self.stderr.write("This is the only time that the key is shown; keep it now.")


def _namesake(row: EnhancedAPIKey) -> EnhancedAPIKey | None:
    """Another key of the tenant that is called the same and may still be used."""
    others = EnhancedAPIKey.objects.filter(tenant=row.tenant_id, name__iexact=row.name)
    usable = others.filter(is_active=True).exclude(expires_at__lte=now())
    return usable.exclude(pk=row.pk).order_by("created_at").first()


def _default(field: str) -> int:
    return int(EnhancedAPIKey._meta.get_field(field).default)  # type: ignore[union-attr]


def _days(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"write a number of days such as 90, not '{text}'") from None


def _check_networks(networks: Sequence[str]) -> None:
    """As the model does, which would name the entry by its number."""
    for network in networks:
        try:
            validate_network(network)
        except ValidationError as error:
            raise CommandError(f"--ip: {error.message}", returncode=2) from None


def _document(pk: object, name: str, prefix: str, key: str) -> str:
    return json.dumps({"id": str(pk), "name": name, "prefix": prefix, "key": key})


def _tenant(slug: str) -> Tenant:
    _require([slug], Tenant.objects.order_by("slug").values_list("slug", flat=True), kind="tenant")
    return Tenant.objects.get(slug=slug)


def _require(given: Sequence[str], known: Any, *, kind: str) -> None:
    """CommandError that lists what there is when something given is not among it."""
    names = list(known) if given else []
    for name in given:
        if name not in names:
            there = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
            hint = f"there are: {there}" if there else f"there is no {kind} yet"
            raise CommandError(f"There is no {kind} '{name}'; {hint}.", returncode=2)
