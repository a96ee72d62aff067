"""What registry's indexes are for: the query, who runs it, how often."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils.timezone import now

from registry.db.catalogue import IndexEntry, sample
from registry.models import (
    HealthStatus,
    MCPServer,
    ServerMetric,
    ServerPrompt,
    ServerResource,
    ServerTool,
    SystemConfig,
    Tenant,
    Transport,
)


def _last_day() -> dict[str, Any]:
    return {"timestamp__gte": now() - timedelta(days=1), "timestamp__lt": now()}


def _tenant_id() -> UUID | None:
    found: UUID | None = sample(MCPServer, "tenant_id")["tenant_id"]
    return found


def _discovered(tenant_id: UUID | None) -> QuerySet[MCPServer]:
    return MCPServer.objects.fastest(tenant_id=tenant_id, transport=Transport.HTTP, limit=20)


# What every health check and every call changes.
VOLATILE = {
    MCPServer: {
        "active_connections",
        "avg_response_time",
        "health_metadata",
        "last_health_check",
        "success_rate",
        "updated_at",
    },
    ServerTool: {
        "avg_execution_time",
        "error_count",
        "last_used_at",
        "success_count",
        "total_calls",
        "updated_at",
    },
    ServerResource: {"avg_size_bytes", "total_accesses", "updated_at"},
}

CATALOGUE = [
    IndexEntry(
        index="uq_tenants_slug",
        query=lambda: Tenant.objects.filter(**sample(Tenant, "slug")),
        caller="get_tenant_usage_summary, --tenant of the commands",
        rate="each call by slug",
    ),
    IndexEntry(
        index="uq_mcp_servers_tenant_slug",
        query=lambda: MCPServer.objects.filter(**sample(MCPServer, "tenant_id", "slug")),
        caller="the data plane: /mcp/<server-slug> of the caller's tenant, then of the shared ones",
        rate="each call",
    ),
    IndexEntry(
        index="idx_mcp_servers_tenant_status",
        query=lambda: MCPServer.objects.filter(
            **sample(MCPServer, "tenant_id", "health_status", health_status=HealthStatus.UNHEALTHY)
        ),
        caller="the REST list of a tenant's servers with ?health_status=, the admin's filter",
        rate="page views",
    ),
    IndexEntry(
        index="idx_mcp_servers_endpoint_transport",
        query=lambda: MCPServer.objects.filter(**sample(MCPServer, "endpoint_url")),
        caller="is this address registered? the REST list with ?endpoint_url=",
        rate="before a registration",
    ),
    IndexEntry(
        index="idx_mcp_servers_health_check_time",
        query=lambda: MCPServer.objects.filter(
            last_health_check__lt=now() - timedelta(minutes=5)
        ).order_by("last_health_check")[:50],
        caller="nobody: the guide's query for servers that were not checked lately",
        rate="never",
        loses="The health check asks each minute for what is due, and that is nearly every server "
        "and those that were never checked: it reads the table.",
        costs="Alone it takes the share of health checks that stay on their page (HOT) from 100 "
        "to 0 % and their WAL from 104 to 517 bytes; 24 bytes a row.",
    ),
    IndexEntry(
        index="idx_servers_discovery_composite",
        query=lambda: _discovered(_tenant_id()),
        tenant=lambda: _tenant_id(),
        caller="GET /api/v1/servers/discover",
        rate="each discovery",
        loses="It knows no tenant, and two values of the leading column give two ordered runs, "
        "which PostgreSQL does not merge: all that it finds must be filtered and sorted.",
        sibling="idx_mcp_servers_tenant_fastest",
        costs="0 % HOT and 534 bytes of WAL a health check where 100 % and 104 are without; 42 "
        "bytes a row.",
    ),
    *(
        IndexEntry(
            index=index,
            query=lambda: _discovered(_tenant_id()),
            tenant=lambda: _tenant_id(),
            caller="GET /api/v1/servers/discover",
            rate="each discovery",
            accepted="The order is the answer: 25 buffers in place of 4,000. A health check writes "
            "once a minute and server, in batches.",
        )
        for index in ("idx_mcp_servers_tenant_fastest", "idx_mcp_servers_shared_fastest")
    ),
    IndexEntry(
        index="uq_server_tools_server_name",
        query=lambda: ServerTool.objects.filter(**sample(ServerTool, "server_id")),
        caller="a server's tools: the REST API, the tool sync; /mcp, for the one that is called",
        rate="each call, each sync",
    ),
    IndexEntry(
        index="idx_server_tools_name_server",
        query=lambda: ServerTool.objects.filter(**sample(ServerTool, "name")),
        caller="who offers this tool? the REST list with ?name=",
        rate="each tool search",
    ),
    IndexEntry(
        index="idx_server_tools_usage_stats",
        query=lambda: ServerTool.objects.filter(total_calls__gt=0).order_by(
            "-total_calls", "-success_count"
        )[:20],
        caller="nobody: the guide's query for the most used tools",
        rate="never",
        loses="The view tool_leaderboard answers that, and by tenant; the index knows neither "
        "tenant nor server nor rate of success.",
        costs="Alone it takes the share of a tool's counts that stay on their page (HOT) from 100 "
        "to 0 % and their WAL from 120 to 442 bytes; 19 bytes a row.",
    ),
    IndexEntry(
        index="idx_tools_discovery_performance",
        query=lambda: ServerTool.objects.named(
            sample(ServerTool, "name", total_calls__gt=0)["name"]
        ).filter(total_calls__gt=0)[:5],
        caller="nobody: the guide's query for the best record among the tools of one name that "
        "were ever called",
        rate="never",
        loses="Tools that were never called are tools too: ServerTool.objects.named() sorts those "
        "of one name, which are few.",
        sibling="idx_server_tools_name_server",
        costs="0 % HOT and 469 bytes of WAL a count where 100 % and 120 are without; 66 bytes a "
        "row, the largest index of the table.",
    ),
    IndexEntry(
        index="uq_server_resources_server_uri",
        query=lambda: ServerResource.objects.filter(**sample(ServerResource, "server_id")),
        caller="a server's resources: the sync",
        rate="each sync",
    ),
    IndexEntry(
        index="uq_server_prompts_server_name",
        query=lambda: ServerPrompt.objects.filter(**sample(ServerPrompt, "server_id")),
        caller="a server's prompts: the sync",
        rate="each sync",
    ),
    IndexEntry(
        index="idx_server_metrics_server_time",
        query=lambda: ServerMetric.objects.filter(
            **sample(ServerMetric, "server_id", **_last_day()),
            **_last_day(),
        ).order_by("-timestamp"),
        caller="one server's metrics of the last day: the admin's list",
        rate="page views",
    ),
    IndexEntry(
        index="uq_system_configs_tenant_key",
        query=lambda: SystemConfig.objects.filter(**sample(SystemConfig, "tenant_id", "key")),
        caller="nobody reads settings at run time yet; saving one checks that the key is free",
        rate="each change of a setting",
    ),
]
