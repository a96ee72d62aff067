import sys
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from registry.audit import Actor
from registry.db.encryption import DecryptionError
from registry.headers import parse_headers
from registry.health import Checked
from registry.management.usage import usage_error
from registry.models import HealthStatus, MCPServer, Tenant, Transport
from registry.services import health_check, server_register, tools_sync

MAX_HEADERS_KIB = 64  # more than servers take
ARGUMENTS = {
    "name": "NAME",
    "endpoint_url": "URL",
    "slug": "--slug",
    "transport_type": "--transport",
    "tags": "--tag",
    "credentials": "--headers",
}


class Command(BaseCommand):
    help = "Register an MCP server, check its health and read its tools."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("url", metavar="URL", help="For stdio: the command line, quoted.")
        parser.add_argument(
            "--transport",
            choices=Transport.values,
            default=Transport.HTTP.value,
            help="Default: http.",
        )
        parser.add_argument(
            "--slug", metavar="SLUG", help="What the address ends in. Default: made of NAME."
        )
        parser.add_argument("--tenant", default="default", metavar="SLUG", help="Default: default.")
        parser.add_argument("--description", default="", metavar="TEXT")
        parser.add_argument(
            "--tag", action="append", default=[], dest="tags", metavar="TAG", help="Repeatable."
        )
        parser.add_argument(
            "--headers",
            metavar="FILE",
            help=(
                "What the gateway sends to the server: one header a line, as in Authorization: "
                "Bearer …, kept encrypted. - reads them from standard input."
            ),
        )

    def handle(
        self,
        *,
        name: str,
        url: str,
        transport: str,
        slug: str | None,
        tenant: str,
        description: str,
        tags: list[str],
        headers: str | None,
        **_options: Any,
    ) -> None:
        _require_text(NAME=name, URL=url)
        try:
            server = server_register(
                actor=Actor(service_name="cli"),
                tenant=_tenant(tenant),
                name=name,
                url=url,
                transport=transport,
                slug=slug,
                description=description,
                tags=tags,
                credentials=_credentials(headers) if headers else None,
                allow_stdio=True,
                defer_check=False,  # done here and now, so that the outcome can be told
            )
        except ValidationError as error:
            raise usage_error(error, arguments=ARGUMENTS) from None
        self.stdout.write(f"Registered '{server.slug}' for tenant '{tenant}'. {_where(server)}")
        self._contact(server)

    def _contact(self, server: MCPServer) -> None:
        """A server that is away is registered all the same: the worker asks again each minute."""
        from registry.mcp_client import UpstreamError  # the SDK takes half a second

        checked = health_check(server=server, at=now())
        self.stdout.write(f"Health: {checked.status.value}{_reason(checked)}")
        if checked.status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED):
            try:
                found = tools_sync(server=server, at=now())
            except (UpstreamError, DecryptionError) as error:
                self.stderr.write(f"Tools not read: {error}")
                return
            self.stdout.write(
                f"Offers {found.tools} tool(s), {found.resources} resource(s), "
                f"{found.prompts} prompt(s)."
            )


def _where(server: MCPServer) -> str:
    if server.transport_type == Transport.HTTP:
        return f"Agents reach it at /mcp/{server.slug}"
    return (
        f"It is watched and listed; agents cannot call it, for it speaks {server.transport_type} "
        "and the gateway forwards Streamable HTTP alone."
    )


def _tenant(slug: str) -> Tenant:
    found = Tenant.objects.filter(slug=slug).first()
    if found is None:
        known = ", ".join(Tenant.objects.order_by("slug").values_list("slug", flat=True)[:20])
        hint = f"there are: {known}" if known else "there is none yet; run init_db"
        raise CommandError(f"There is no tenant '{slug}'; {hint}.", returncode=2)
    return found


def _credentials(file: str) -> dict[str, dict[str, str]]:
    """The headers in a file; ValidationError when it holds none that can be sent."""
    try:
        headers = parse_headers(_read(file).decode("utf-8-sig"))
    except OSError as error:
        raise ValidationError({"credentials": f"{error.strerror}: {file}"}) from None
    except UnicodeDecodeError:
        raise ValidationError({"credentials": f"{file} is no text."}) from None
    except ValidationError as error:
        raise ValidationError({"credentials": error.messages}) from None
    if not headers:
        raise ValidationError({"credentials": "There is no header; write Authorization: Bearer …"})
    return {"headers": headers}


def _read(file: str) -> bytes:
    limit = MAX_HEADERS_KIB * 1024
    if file != "-":
        with Path(file).open("rb") as opened:
            content = opened.read(limit + 1)
    elif sys.stdin is None or sys.stdin.closed:
        raise ValidationError("Standard input is closed.")
    else:
        content = sys.stdin.buffer.read(limit + 1)
    if len(content) > limit:
        raise ValidationError(f"Write at most {MAX_HEADERS_KIB} KiB of headers.")
    return content


def _require_text(**arguments: str) -> None:
    for name, text in arguments.items():
        if not text.strip():
            raise CommandError(f"{name} is empty: write one.", returncode=2)


def _reason(checked: Checked) -> str:
    return f". {checked.error}" if checked.error else ""
