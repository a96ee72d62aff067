from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any

from django.core.management import BaseCommand, CommandParser
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.management.commands.serve import add_server_arguments
from gateway.up import Running, Wanted, up

INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
FRAME = 20  # columns of the frame and the names in it


class Command(BaseCommand):
    help = (
        "Set up and run everything: database, schema, sample MCP server, worker and server. "
        "Ctrl-C stops all of it; the data stays for the next time."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        add_server_arguments(parser)
        seed = parser.add_mutually_exclusive_group()
        seed.add_argument(
            "--seed",
            action="store_true",
            default=None,
            help="Add development data, also to the database of DATABASE_URL.",
        )
        seed.add_argument(
            "--no-seed", dest="seed", action="store_false", help="Add no development data."
        )
        parser.add_argument("--json", action="store_true", help="Once ready, print one document.")

    def handle(
        self,
        *,
        host: str,
        port: int,
        workers: int,
        seed: bool | None,
        json: bool,
        **_options: Any,
    ) -> None:
        talk = Console(stderr=json, highlight=False, soft_wrap=True)
        errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        wanted = Wanted(host=host, port=port, workers=workers, seed=seed)
        spinner = talk.status("Starting") if talk.is_terminal else nullcontext()
        with spinner as status:

            def on_step(step: str) -> None:
                if status is not None:
                    status.update(f"{step} …")
                    status.start()  # it rests while the gateway runs
                else:
                    talk.print(f"{step} …", markup=False)

            def on_ready(running: Running) -> None:
                if status is not None:
                    status.stop()
                if json:
                    self._print_document(running)
                else:
                    show(talk, running)

            up(wanted, on_step=on_step, on_error=errors.print, on_ready=on_ready)
        talk.print("Stopped.")

    def _print_document(self, running: Running) -> None:
        sys.stdout.write(json.dumps(running.as_json()) + "\n")
        sys.stdout.flush()


def show(console: Console, running: Running) -> None:
    """Everything somebody needs to begin; framed on a terminal, plain lines elsewhere."""
    facts = {
        "Gateway": running.url,
        "MCP": running.mcp_url,
        "API key": running.api_key,
        "Admin": f"{running.url}/admin/",
        "Login": f"{running.username} / {running.password or '(the password you set)'}",
        "API docs": f"{running.url}/api/docs/",
        "Database": running.database_url,
    }
    # A frame that breaks lines would break the key for whoever copies it.
    if console.is_terminal and console.width > max(map(len, facts.values())) + FRAME:
        table = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            table.add_row(Text(name, style="bold"), Text(value))
        console.print(Panel(table, title="MCP Registry Gateway is ready", expand=False))
    else:
        console.print("MCP Registry Gateway is ready.")
        for name, value in facts.items():
            console.print(f"{name}: {value}", markup=False)
    for client, snippet in snippets(running).items():
        console.print(f"\n{client}", style="bold", markup=False)
        console.print(snippet, markup=False)
    console.print("\nCtrl-C stops it.", style="dim")


def snippets(running: Running) -> dict[str, str]:
    """What to paste where, by the client's name."""
    header = f"Authorization: Bearer {running.api_key}"
    vs_code = {
        "servers": {
            running.server: {
                "type": "http",
                "url": running.mcp_url,
                "headers": {"Authorization": f"Bearer {running.api_key}"},
            }
        }
    }
    return {
        "Claude Code": (
            f"claude mcp add --transport http {running.server} {running.mcp_url} "
            f'--header "{header}"'
        ),
        "VS Code, .vscode/mcp.json": json.dumps(vs_code, indent=2),
        "MCP Inspector (Node 22.19 or newer)": (
            f"npx {INSPECTOR} --cli {running.mcp_url} --transport http "
            f'--header "{header}" --method tools/list'
        ),
    }
