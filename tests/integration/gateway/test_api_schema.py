from __future__ import annotations

import re

import pytest
import yaml
from django.core.management import call_command
from django.test import Client

from tests.api import api_patterns

pytestmark = pytest.mark.xdist_group("api_schema")

OUTSIDE = re.compile(r"""(?:src|href|url)\s*[=(:]\s*["']?(?:https?:)?//(?!testserver)[^"'\s)]+""")


@pytest.fixture(scope="module")
def schema(tmp_path_factory) -> dict:
    """As the command writes it; a warning fails it."""
    file = tmp_path_factory.mktemp("schema") / "schema.yml"
    call_command("spectacular", validate=True, fail_on_warn=True, file=str(file))
    return yaml.safe_load(file.read_text())


def test_every_address_is_described(schema):
    routed = {
        "/" + re.sub(r"\(\?P<pk>.*?\{12\}\)", "{id}", pattern).removesuffix("/?$")
        for pattern, _ in api_patterns()
    }
    assert set(schema["paths"]) == routed


def test_every_operation_takes_a_key_or_the_session(schema):
    wanted = [{"bearerKey": []}, {"headerKey": []}, {"session": []}]
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert operation["security"] == wanted
            assert any(status.startswith("2") for status in operation["responses"])


def test_secrets_are_in_no_answer_but_the_first(schema):
    shapes = schema["components"]["schemas"]
    assert "key" in shapes["CreatedAPIKey"]["properties"]
    assert not {"key", "key_hash", "salt"} & shapes["APIKey"]["properties"].keys()
    assert "credentials" not in shapes["MCPServer"]["properties"]


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("request-logs", "tool", "case counts"),
        ("request-logs", "tenant", "case counts"),
        ("audit-logs", "action", "case counts"),
        ("servers", "tag", "case counts"),
        ("api-keys", "prefix", "case counts"),
        ("tools", "search", "case does not count"),
    ],
)
def test_filters_say_how_they_match(path, name, said, schema):
    parameters = schema["paths"][f"/api/v1/{path}"]["get"]["parameters"]
    [described] = [one["description"] for one in parameters if one["name"] == name]
    assert said in described


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/schema/", "/api/docs/"])
def test_schema_and_page_are_open(path, client: Client):
    assert client.get(path).status_code == 200


@pytest.mark.django_db
def test_the_page_uses_no_outside_host(client: Client):
    page = client.get("/api/docs/").content.decode()
    assert "swagger-ui-bundle" in page
    assert not OUTSIDE.findall(page)
    assert OUTSIDE.findall('<script src="https://cdn.example.org/x.js">')  # it would be found


def test_every_operation_tells_of_its_refusals(schema):
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert {"400", "401", "403", "503"} <= operation["responses"].keys()
            assert ("404" in operation["responses"]) is ("{id}" in path)
