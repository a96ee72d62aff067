"""The sample's tools, its resource and its prompt."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

__all__ = ["build"]

INSTRUCTIONS = (
    "A sample to try the gateway with. Call `add` for an answer at once, `countdown` for one "
    "that takes its time and reports progress."
)
HARMLESS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

Text = Annotated[str, Field(max_length=100_000, description="Any text.")]


class TextCounts(BaseModel):
    """What `word_count` found."""

    words: int
    lines: int
    characters: int


def build() -> MCPServer:
    """The server, speaking every protocol version that the SDK knows."""
    server = MCPServer(
        "sample",
        title="Sample server",
        version="1.0.0",
        instructions=INSTRUCTIONS,
        middleware=[_tell_every_version],
    )
    for tool in (add, current_time, reverse_text, word_count, countdown):
        server.add_tool(tool, annotations=HARMLESS)
    server.resource("sample://welcome", mime_type="text/markdown")(welcome)
    server.prompt()(summarise)
    return server


async def _tell_every_version(
    ctx: ServerRequestContext[Any, Any], call_next: CallNext
) -> HandlerResult:
    """The SDK speaks the versions with a handshake too, but leaves them out of its answer."""
    result = await call_next(ctx)
    if ctx.method == "server/discover":
        assert isinstance(result, dict)  # noqa: S101  (what is sent, at this point)
        return {**result, "supportedVersions": [*KNOWN_PROTOCOL_VERSIONS]}
    return result


def add(
    a: Annotated[int | float, Field(description="The first number.")],
    b: Annotated[int | float, Field(description="The second number.")],
) -> int | float:
    """Add two numbers."""
    return a + b


def reverse_text(text: Text) -> str:
    """Write a text backwards."""
    return text[::-1]


def word_count(text: Text) -> TextCounts:
    """Count the words, lines and characters of a text."""
    return TextCounts(words=len(text.split()), lines=len(text.splitlines()), characters=len(text))


def current_time(
    timezone: Annotated[str, Field(description="An IANA name such as Europe/Berlin.")] = "UTC",
) -> str:
    """Tell the time in a time zone, as ISO 8601 with its offset from UTC."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            f"There is no time zone '{timezone[:64]}'; write one such as Europe/Berlin or UTC."
        ) from None
    return datetime.now(zone).isoformat(timespec="seconds")


async def countdown(
    ctx: Context,
    start: Annotated[int, Field(ge=1, le=60, description="The number to count down from.")] = 3,
    seconds: Annotated[float, Field(ge=0, le=5, description="Pause between two numbers.")] = 1,
) -> str:
    """Count down slowly, reporting progress at each number."""
    for done in range(start):
        await ctx.report_progress(done, start, f"{start - done} …")
        await asyncio.sleep(seconds)
    await ctx.report_progress(start, start, "Lift-off!")
    return "Lift-off!"


def welcome() -> str:
    """What this server is."""
    return (
        "# Welcome\n\nThis text came from the sample MCP server, through the gateway, which "
        "checked your key, asked the circuit breaker and wrote one row into `request_logs`.\n"
    )


def summarise(text: str, sentences: str = "3") -> str:
    """Ask for a short summary of a text."""
    return f"Summarise the following text in at most {sentences} sentences.\n\n{text}"
