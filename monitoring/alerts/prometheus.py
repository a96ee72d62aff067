"""The alert rules in Prometheus' own form, for those who evaluate there.

    https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/

/metrics gives each metric of `performance_monitoring` as mcp_gateway_<metric>{subject="…"}, in the
view's unit. What has no equal there: that an alert resolves some way off its threshold (it goes on
firing for as long as here instead), reminders, acknowledgements and the lack of a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import yaml

from monitoring.alerts.events import server_subject
from monitoring.alerts.metrics import RECENT_CALLS, metric_of
from monitoring.alerts.rules import CLEAR_AT_LEAST
from monitoring.models import PerformanceAlert

__all__ = ["METRIC_PREFIX", "prometheus_rules"]

METRIC_PREFIX = "mcp_gateway_"


def prometheus_rules(alerts: Iterable[PerformanceAlert]) -> str:
    """A rule file (YAML) with one group; alerts need their server and its tenant."""
    group = {"name": "mcp-gateway", "rules": [_rule(alert) for alert in alerts]}
    text: str = yaml.safe_dump({"groups": [group]}, sort_keys=False, allow_unicode=True, width=100)
    return text


def _rule(alert: PerformanceAlert) -> dict[str, Any]:
    rule = alert.rule()
    annotations = {"summary": alert.description or alert.name, "alert_id": str(alert.pk)}
    return {
        "alert": alert.name,
        "expr": _expression(alert),
        "for": f"{alert.duration_minutes}m",
        "keep_firing_for": f"{int(max(rule.duration, CLEAR_AT_LEAST).total_seconds() // 60)}m",
        "labels": {"severity": alert.severity},
        # There {{ … }} is a template; a rule's own words are none.
        "annotations": {key: text.replace("{{", "{ {") for key, text in annotations.items()},
    }


def _expression(alert: PerformanceAlert) -> str:
    least = metric_of(alert.metric_name).least_calls
    enough = f" and on() max({METRIC_PREFIX}{RECENT_CALLS}) >= {least}" if least else ""
    return _condition(alert) + enough


def _condition(alert: PerformanceAlert) -> str:
    name = METRIC_PREFIX + alert.metric_name
    operator, threshold = alert.comparison_operator, _number(alert.threshold_value)
    if alert.server is not None:
        series = f"{name}{{subject={_quoted(server_subject(alert.server))}}}"
        if metric_of(alert.metric_name).of_servers:
            series = f"(sum({series}) or vector(0))"
        return f"{series} {operator} {threshold}"
    if operator == "==":
        return f"count({name} == {threshold}) > 0"
    return f"{'min' if operator in ('<', '<=') else 'max'}({name}) {operator} {threshold}"


def _number(value: float) -> str:
    if math.isfinite(value) and value == int(value) and abs(value) < 2**53:
        return str(int(value))
    return repr(value).replace("inf", "Inf").replace("nan", "NaN")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
