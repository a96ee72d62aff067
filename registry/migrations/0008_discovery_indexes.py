from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations
from django.db.models import Q

import registry.db.indexes

USABLE = {"health_status__in": ("healthy", "degraded"), "is_enabled": True}


class Migration(migrations.Migration):
    atomic = False  # as CONCURRENTLY asks for

    dependencies = [("registry", "0007_hot_rows")]

    operations = [
        AddIndexConcurrently(
            model_name="mcpserver",
            index=registry.db.indexes.NamedIndex(
                fields=["tenant", "transport_type", "avg_response_time"],
                name="idx_mcp_servers_tenant_fastest",
                condition=Q(**USABLE),
            ),
        ),
        AddIndexConcurrently(
            model_name="mcpserver",
            index=registry.db.indexes.NamedIndex(
                fields=["transport_type", "avg_response_time"],
                name="idx_mcp_servers_shared_fastest",
                condition=Q(tenant=None, **USABLE),
            ),
        ),
    ]
