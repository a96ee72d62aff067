"""What holds for every address of the API. Taken from the routes: a new one is covered too."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from uuid import UUID

import pytest
from django.db import models
from django_filters import CharFilter
from rest_framework.test import APIClient

from gateway.models import CircuitBreaker, ConnectionPool, RequestQueue
from monitoring.models import (
    MaterializedView,
)
from registry.db.ids import uuid7
from registry.models import MCPServer
from tests.api import (
    ALL_SCOPES,
    API,
    api_patterns,
    client_of,
    faults,
    list_paths,
    transaction_queries,
)
from tests.factories import (
    AlertEventFactory,
    AuditLogFactory,
    DataRetentionPolicyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    ScheduledTaskFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
    TenantFactory,
)

pytestmark = pytest.mark.django_db

PATTERNS = [pytest.param(path, view, id=path) for path, view in api_patterns()]
LISTS = list_paths()
SINGLE = [
    "servers/discover",
    "summaries/server-health", "summaries/request-performance", "summaries/tenant-usage",
    "database/size", "database/indexes", "database/performance", "alerts/prometheus",
]  # fmt: skip
OPERATORS = {"retention-policies", "materialized-views", "tasks"}


def _per_server(model: type[models.Model]) -> Callable[[MCPServer], models.Model]:
    # A trigger may have made the row together with the server.
    return lambda server: model.objects.get_or_create(server=server)[0]


# How to make one row of each list for the tenant of a server.
MAKE: dict[str, Callable[[MCPServer], models.Model]] = {
    "servers": lambda server: server,
    "tools": lambda server: ServerToolFactory(server=server),
    "circuit-breakers": _per_server(CircuitBreaker),
    "connection-pools": _per_server(ConnectionPool),
    "request-queues": _per_server(RequestQueue),
    "api-keys": lambda server: EnhancedAPIKeyFactory(tenant=server.tenant),
    "access-controls": lambda server: ServerAccessControlFactory(
        server=server, tenant=server.tenant, can_admin=True, can_write=True
    ),
    "alerts": lambda server: PerformanceAlertFactory(server=server),
    "alert-events": lambda server: AlertEventFactory(alert__server=server),
    "retention-policies": lambda server: DataRetentionPolicyFactory(),
    "materialized-views": lambda server: MaterializedView.objects.create(name=server.slug),
    "tasks": lambda server: ScheduledTaskFactory(),
    "audit-logs": lambda server: AuditLogFactory(tenant_id=server.tenant_id),
    "request-logs": lambda server: RequestLogFactory(tenant_id=server.tenant_id),
}


def name_of(path: str) -> str:
    return path.removeprefix(API)


def path_of(pattern: str, pk: object) -> str:
    """The path of a route, with the id of a row where it wants one."""
    return "/" + re.sub(r"\(\?P<pk>.*?\{12\}\)", str(pk), pattern).removesuffix("/?$")


def test_every_named_list_is_routed():
    assert {name_of(path) for path in LISTS} == set(MAKE)


@pytest.mark.parametrize(("pattern", "view"), PATTERNS)
def test_every_view_names_a_scope_for_what_it_does(pattern, view):
    assert getattr(view, "read_scope", None) in ALL_SCOPES
    changes = {"create", "partial_update", "destroy", "post", "patch", "delete"}
    actions = getattr(view, "get_extra_actions", list)()
    if actions or any(hasattr(view, name) for name in changes):
        assert view.write_scope in ALL_SCOPES


@pytest.mark.parametrize(("pattern", "view"), PATTERNS)
def test_nobody_is_let_in_without_credentials(pattern, view):
    for method in ("get", "post", "patch", "delete"):
        answer = getattr(APIClient(), method)(path_of(pattern, uuid7()))
        assert answer.status_code == 401
        assert answer["WWW-Authenticate"] == "Bearer"
        assert answer.json()["reason"] == "missing_credentials"
        assert answer.json()["request_id"] == answer["X-Request-ID"]


@pytest.mark.parametrize(("pattern", "view"), PATTERNS)
def test_a_key_without_scopes_may_nothing(pattern, view):
    client = client_of(None, scopes=[])
    for method in ("get", "post", "patch", "delete"):
        answer = getattr(client, method)(path_of(pattern, uuid7()), {}, format="json")
        assert answer.status_code in {403, 405}
        assert answer.status_code == 405 or answer.json()["reason"] == "scope_missing"


def test_a_view_without_a_scope_lets_nobody_in():
    from rest_framework.response import Response
    from rest_framework.test import APIRequestFactory
    from rest_framework.views import APIView

    class Forgotten(APIView):
        def get(self, request):
            return Response()

    key = EnhancedAPIKeyFactory(tenant=None, scopes=ALL_SCOPES)
    request = APIRequestFactory().get("/", headers={"x-api-key": key.text})
    assert Forgotten.as_view()(request).status_code == 403


@pytest.mark.parametrize("path", LISTS)
def test_a_tenant_sees_its_own_rows_and_nobody_elses(path):
    make = MAKE[name_of(path)]
    mine, other = TenantFactory(), TenantFactory()
    own, foreign = make(MCPServerFactory(tenant=mine)), make(MCPServerFactory(tenant=other))
    client = client_of(mine)
    answer = client.get(path)
    if name_of(path) in OPERATORS:
        assert answer.status_code == 403
        assert client.get(f"{path}/{own.pk}").status_code == 403
        return
    assert answer.status_code == 200
    ids = {row["id"] for row in answer.json()["results"]}
    assert str(own.pk) in ids
    assert str(foreign.pk) not in ids
    assert client.get(f"{path}/{own.pk}").status_code == 200
    assert client.get(f"{path}/{foreign.pk}").status_code == 404


@pytest.mark.parametrize(("pattern", "view"), [p for p in PATTERNS if "(?P<pk>" in p.values[0]])
def test_another_tenants_row_cannot_be_touched_on_any_path(pattern, view):
    name = pattern.partition("/(?P<pk>")[0].removeprefix("api/v1/")
    foreign = MAKE[name](MCPServerFactory())
    before = type(foreign).objects.filter(pk=foreign.pk).values().get()
    client = client_of(TenantFactory())
    for method in ("get", "post", "patch", "delete"):
        answer = getattr(client, method)(path_of(pattern, foreign.pk), {}, format="json")
        assert answer.status_code in {403 if name in OPERATORS else 404, 405}, method
        assert "no such address" not in answer.content.decode()
    assert type(foreign).objects.filter(pk=foreign.pk).values().get() == before


@pytest.mark.parametrize("path", LISTS)
def test_an_operator_sees_every_tenant(path):
    make = MAKE[name_of(path)]
    rows = [make(MCPServerFactory()), make(MCPServerFactory())]
    ids = {row["id"] for row in client_of(None).get(path).json()["results"]}
    assert {str(row.pk) for row in rows} <= ids


@pytest.mark.parametrize("path", LISTS)
def test_pages_cover_every_row_once_in_both_directions(path):
    make = MAKE[name_of(path)]
    made = [str(make(MCPServerFactory()).pk) for _ in range(5)]
    client = client_of(None)
    pages = [client.get(path, {"page_size": 2}).json()]
    while pages[-1]["next"]:
        pages.append(client.get(pages[-1]["next"]).json())
    seen = [row["id"] for page in pages for row in page["results"]]
    assert len(seen) == len(set(seen))
    assert [row for row in seen if row in made] == sorted(made, reverse=True)
    back = pages[-1]
    again = [back["results"]]
    while back["previous"]:
        back = client.get(back["previous"]).json()
        again.insert(0, back["results"])
    assert [row["id"] for page in again for row in page] == seen


@pytest.mark.parametrize(
    ("path", "by_operator"),
    [(path, True) for path in LISTS]
    + [(path, False) for path in LISTS if name_of(path) not in OPERATORS],
)
def test_a_list_costs_the_same_queries_for_one_row_and_for_many(
    path, by_operator, django_assert_max_num_queries
):
    owner = None if by_operator else TenantFactory()
    client = client_of(owner)
    client.get(path)  # notes the key's use
    for _ in range(4):
        MAKE[name_of(path)](MCPServerFactory(tenant=owner or TenantFactory()))
    # The key with its tenant and user, and the rows with what hangs on them.
    with django_assert_max_num_queries(2 + transaction_queries(owner)):
        answer = client.get(path)
    assert len(answer.json()["results"]) >= 4


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"nonsense": "1"}, "nonsense"),
        ({"page_size": "many"}, "page_size"),
        ({"page_size": "0"}, "page_size"),
        ({"page_size": "-1"}, "page_size"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "WyJuZXh0IiwgIngiXQ"}, "cursor"),
        ({"cursor": "bnVsbA"}, "cursor"),
        ({"cursor": "WyJuZXh0IiwgbnVsbF0"}, "cursor"),  # ["next", null]
        ({"cursor": urlsafe_b64encode(b"[" * 2000).decode()}, "cursor"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(path, query, field):
    answer = client_of(None).get(path, query)
    assert answer.status_code == 400
    assert field in answer.json()


@pytest.mark.parametrize("path", LISTS)
def test_every_filter_refuses_a_bad_value_and_survives_a_nul(path):
    client = client_of(None)
    schema = next(view for pattern, view in api_patterns() if f"/{pattern}" == f"{path}/?$")
    filters = getattr(schema, "filterset_class", None)
    for name in filters.base_filters if filters else ():
        assert client.get(path, {name: "\0"}).status_code == 400, name
        answer = client.get(path, {name: "9" * 400})
        assert answer.status_code in {200, 400}, name
        if not isinstance(filters.base_filters[name], CharFilter):
            assert faults(client.get(path, {name: "nonsense"})) == {name}
            for nothing in ("", " "):
                assert faults(client.get(path, {name: nothing})) == {name}  # not every row


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("request-logs?server=slug", "Write a server's id: a UUID"),
        ("request-logs?request_id=5", "Write a request's id: a UUID"),
        ("request-logs?status=5xx", "Write a status from 100 to 599"),
        ("request-logs?status=99", "Write a status from 100 to 599"),
        ("request-logs?status=503.5", "Write a status from 100 to 599"),
        ("request-logs?since=yesterday", "such as 2026-01-31T12:00:00Z"),
        ("audit-logs?user=root", "Write a user's id: a UUID"),
        ("audit-logs?success=yes", "Write true or false."),
        ("servers?health_status=well", "“well” is none of: healthy, degraded,"),
        ("servers/discover?transport=tcp", "“tcp” is none of: http,"),
        ("access-controls?api_key=mcpgw_1", "Write an API key's id: a UUID"),
    ],
)
def test_a_bad_value_is_told_what_is_wanted(asked, wanted):
    _, _, query = asked.partition("?")
    answer = client_of(None).get(f"{API}{asked}")
    assert answer.status_code == 400
    [sentence] = answer.json()[query.partition("=")[0]]
    assert wanted in sentence


@pytest.mark.parametrize("path", LISTS)
def test_a_page_has_a_largest_size(path):
    client = client_of(None)
    assert client.get(path, {"page_size": "500"}).status_code == 200
    for larger in ("501", "100000000"):
        answer = client.get(path, {"page_size": larger})
        assert (answer.status_code, answer.json()["page_size"]) == (
            400,
            ["Write a whole number from 1 to 500."],
        )


@pytest.mark.parametrize("path", LISTS)
def test_an_id_that_is_none_is_not_found(path):
    for absent in ("nonsense", str(UUID(int=0))):
        answer = client_of(None).get(f"{path}/{absent}")
        assert answer.status_code == 404
        assert absent in answer.json()["detail"]
        assert answer.json()["request_id"] == answer["X-Request-ID"]


def test_a_server_s_slug_in_the_place_of_its_id_is_told_the_way(client):
    told = client.get(f"{API}servers/github/").json()["detail"]
    assert told == (
        "There is no MCP server with the id “github”: an id is a UUID. "
        "/api/v1/servers?slug=… finds one by its slug."
    )


def test_a_misspelt_action_of_a_row_is_no_row(client):
    told = client.get(f"{API}servers/{UUID(int=1)}/disabel/").json()["detail"]
    assert told == "There is no such address. Those that there are stand at /api/docs/."


@pytest.mark.parametrize("asked", ["status=5xx", "nonsense=1", "page_size=501"])
def test_what_does_not_fit_names_the_request(asked):
    answer = client_of(None).get(f"{API}request-logs?{asked}")
    assert faults(answer) == {asked.partition("=")[0]}
    assert answer.json()["request_id"] == answer["X-Request-ID"]


def test_a_request_id_that_does_not_fit_is_told_under_its_own_name():
    body = client_of(None).get(f"{API}request-logs", {"request_id": "5"}).json()
    assert body == {"request_id": ["Write a request's id: a UUID, no name."]}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("name", [*MAKE, *SINGLE])
def test_every_address_works_with_and_without_a_slash(name, slash):
    assert client_of(None).get(f"{API}{name}{slash}").status_code == 200


@pytest.mark.parametrize("path", LISTS)
def test_options_describe_an_address(path):
    assert client_of(None).options(path).status_code == 200


@pytest.mark.parametrize("name", [name for name in SINGLE if name.startswith("database/")])
def test_facts_about_the_database_are_for_operators(name):
    answer = client_of(TenantFactory()).get(API + name)
    assert answer.status_code == 403
    assert "operators" in answer.json()["detail"]


def test_an_unknown_address_is_answered_in_json():
    answer = APIClient().get("/api/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["request_id"] == answer["X-Request-ID"]


@pytest.mark.parametrize("method", ["post", "patch", "delete"])
def test_a_key_that_changes_what_is_no_row_is_not_asked_for_a_form_s_token(method):
    client = client_of(None)
    client.handler.enforce_csrf_checks = True
    answer = getattr(client, method)(f"{API}servers/nonsense", {}, format="json")
    assert answer.status_code == 404
    assert answer.json()["request_id"] == answer["X-Request-ID"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("api-keys", {"name": "x", "tenant": ""}),
        ("servers", {"name": "x", "endpoint_url": "https://mcp.example.org", "tenant": ""}),
        ("alerts", {"name": "x", "metric_name": "x", "threshold_value": 1, "server": ""}),
    ],
)
def test_an_empty_name_is_not_taken_for_all_of_them(path, body):
    answer = client_of(None).post(API + path, body, format="json")
    assert answer.status_code == 400
    assert "null" in str(answer.json())
