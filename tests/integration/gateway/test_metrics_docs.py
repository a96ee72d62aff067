"""The dashboard and the page on metrics name what `/metrics` gives, and nothing else."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.queries import performance_metrics
from tests.integration.gateway.conftest import Scene
from tests.integration.gateway.test_metrics import operator_key, samples, scrape

__all__ = ["operator_key"]  # a fixture

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
DASHBOARD = json.loads((DOCS / "grafana" / "mcp-gateway.json").read_text())
NAME = re.compile(r"\bmcp_gateway_[a-z0-9_]+")


def panels(kind: str | None = None) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if kind in (None, panel["type"])]


def expressions() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for block in re.findall(r"```yaml\n# mcp-gateway.rules.yml\n(.*?)```", PAGE, re.DOTALL):
        rules = yaml.safe_load(block)["groups"][0]["rules"]
        found += [rule["expr"] for rule in rules]
    return found


def labels_of(expression: str) -> dict[str, set[str]]:
    """The labels that an expression selects by, by metric."""
    return {
        name: set(re.findall(r"([a-z_]+)[=!]~?=?\"", selected)) - {"instance", "job"}
        for name, selected in re.findall(r"(mcp_gateway_[a-z0-9_]+)\{([^}]*)\}", expression)
    }


@pytest.fixture
def given(scene: Scene, operator_key: str) -> dict[str, set[str]]:
    """Names of `/metrics` with their labels; of the view also what has no value now."""
    scene.row(scene.call())
    found = {
        name: {label for labels, _ in rows for label in labels}
        for name, rows in samples(scrape(scene.url, operator_key)).items()
    }
    for row in performance_metrics():
        found.setdefault(f"mcp_gateway_{row['metric']}", {"subject"})
    return found


def test_every_name_is_given_and_every_figure_is_described(given: dict[str, set[str]]):
    assert len(expressions()) > 30
    for expression in expressions():
        assert set(NAME.findall(expression)) <= given.keys(), expression
        for name, labels in labels_of(expression).items():
            assert labels <= given[name], expression
    described = set(NAME.findall(PAGE))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in given}
    assert described <= families | given.keys()
    of_view = {f"mcp_gateway_{row['metric']}" for row in performance_metrics()}
    assert families - described <= of_view


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["id"] is None  # Grafana gives one
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*variables, "__rate_interval"}
    for one, other in combinations((panel["gridPos"] for panel in panels()), 2):
        assert not (
            one["x"] < other["x"] + other["w"]
            and other["x"] < one["x"] + one["w"]
            and one["y"] < other["y"] + other["h"]
            and other["y"] < one["y"] + one["h"]
        )


def test_the_scrape_configuration_is_yaml():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    scrape_config = next(yaml.safe_load(block) for block in blocks if "scrape_configs" in block)
    (job,) = scrape_config["scrape_configs"]
    assert job["authorization"].keys() == {"credentials_file"}  # Bearer is Prometheus' default
