"""Figures that need the gateway's own tables."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from monitoring.queries import fetch_rows

__all__ = ["server_health"]

# The columns of get_server_health_summary() over the servers that one tenant sees.
_TENANT_HEALTH = """
SELECT CASE WHEN grouping(server.health_status) = 1 THEN 'all' ELSE server.health_status END
           AS health_status,
       count(server.id) AS servers,
       avg(server.avg_response_time) AS avg_response_time,
       avg(server.success_rate) AS success_rate,
       count(server.id) FILTER (
           WHERE server.last_health_check IS NULL
              OR server.last_health_check < statement_timestamp() - interval '5 minutes'
       ) AS stale_checks,
       coalesce(sum(breakers.open), 0)::bigint AS open_breakers,
       max(server.last_health_check) AS last_health_check
  FROM mcp_servers AS server
  LEFT JOIN LATERAL (SELECT count(*) AS open
                       FROM circuit_breakers AS breaker
                      WHERE breaker.server_id = server.id AND breaker.state = 'open') AS breakers
       ON true
 WHERE server.tenant_id = %(tenant)s OR server.tenant_id IS NULL
 GROUP BY GROUPING SETS ((server.health_status), ())
 ORDER BY grouping(server.health_status), server.health_status
"""


def server_health(*, tenant_id: UUID | None = None) -> list[dict[str, Any]]:
    """One row a health status and a last one, `all`: of what a tenant sees, or of everything."""
    if tenant_id is None:
        return fetch_rows("SELECT * FROM get_server_health_summary()")
    return fetch_rows(_TENANT_HEALTH, {"tenant": tenant_id})
