"""What registry's indexes are for: the query, who runs it, how often.

Some are the performance guide's, ahead of their callers: those entries say "nobody yet".
"""

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
        query=lambda: MCPServer.objects.filter(
            **sample(MCPServer, "endpoint_url", "transport_type")
        ),
        caller="nobody yet: the guide has it for asking whether an address is registered already",
        rate="never",
    ),
    IndexEntry(
        index="idx_mcp_servers_health_check_time",
        query=lambda: MCPServer.objects.filter(
            last_health_check__lt=now() - timedelta(minutes=5)
        ).order_by("last_health_check")[:50],
        caller="nobody in this form: the health check asks for those that were never checked too, "
        "which the guide's partial index leaves out",
        rate="never",
    ),
    IndexEntry(
        index="idx_servers_discovery_composite",
        query=lambda: MCPServer.objects.filter(
            health_status=HealthStatus.HEALTHY, transport_type=Transport.HTTP
        ).order_by("avg_response_time")[:20],
        caller="nobody yet: the guide's query for discovery, one health status at a time",
        rate="never",
    ),
    IndexEntry(
        index="idx_servers_discovery_composite",
        query=lambda: _discovered(_tenant_id()),
        tenant=lambda: _tenant_id(),
        caller="GET /api/v1/servers/discover",
        rate="each discovery",
        loses="Two values of the leading column give two ordered runs, which PostgreSQL does not "
        "merge: at best the index filters, and all that it finds must be sorted.",
    ),
    *(
        IndexEntry(
            index=index,
            query=lambda: _discovered(_tenant_id()),
            tenant=lambda: _tenant_id(),
            caller="GET /api/v1/servers/discover",
            rate="each discovery",
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
        caller="nobody yet: the guide's query for the most used tools",
        rate="never",
    ),
    IndexEntry(
        index="idx_tools_discovery_performance",
        query=lambda: ServerTool.objects.named(
            sample(ServerTool, "name", total_calls__gt=0)["name"]
        ).filter(total_calls__gt=0)[:5],
        caller="nobody yet: the guide's query for the best record for one tool name",
        rate="never",
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
