"""Filters of the logs that no index serves and that few rows match."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from itertools import count, pairwise
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from monitoring.models import AuditLog, AuditLogEntry, RequestLog, RequestLogEntry
from monitoring.querysets import AUDIT_INDEXED, REQUESTS_INDEXED
from registry.db import search as searching
from registry.db.keyset import Order
from registry.db.search import search
from registry.models import MCPServer, Tenant
from tests.api import client_of
from tests.factories import AuditLogFactory, MCPServerFactory, RequestLogFactory, TenantFactory
from tests.schema import seed

pytestmark = pytest.mark.django_db

REQUESTS = reverse("admin:monitoring_requestlogentry_changelist")
AUDIT = reverse("admin:monitoring_auditlogentry_changelist")
API = "/api/v1/request-logs"
AUDIT_API = "/api/v1/audit-logs"
BY_ID = Order(("id",), "request_time")
BY_TIME = Order(("request_time", "id"), "request_time")


@pytest.fixture
def hurried(monkeypatch):
    """A search that stops after a stretch of five rows."""
    monkeypatch.setattr(searching, "FIRST", 5)
    monkeypatch.setattr(searching, "SECONDS", 0)


@pytest.fixture
def calls():
    """Forty calls of a tenant, four at a time; every ninth failed. Newest first."""
    tenant, at = TenantFactory(slug="acme"), now() - timedelta(minutes=30)
    for i in range(40):
        RequestLogFactory(
            request_time=at + timedelta(seconds=i // 4),
            tenant_id=tenant.pk,
            status_code=500 if i % 9 == 0 else 200,
        )
    return RequestLogEntry.objects.all()


def failed(rows):
    return rows.filter(status_code=500)


def walk(rows, *, order: Order, newer: bool, clock, size: int = 2) -> list:
    """All that searches find, each from where the one before it came to."""
    found, place = [], None
    while True:
        one = search(
            failed(rows), order=order, place=place, newer=newer, size=size, walked=rows, clock=clock
        )
        found += one.rows
        place = one.reached
        if place is None and len(one.rows) == size:
            place = vars(one.rows[-1])
        if place is None:
            return found


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("order", [BY_ID, BY_TIME])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("seconds", [0, 1])  # that each look at the clock finds passed
def test_searches_one_after_another_find_each_row_once(order, newer, seconds, calls):
    clock = count(step=seconds).__next__
    wanted = list(order.sort(failed(calls), newer=newer))
    assert len(wanted) == 5
    assert walk(calls, order=order, newer=newer, clock=clock) == wanted


@pytest.mark.parametrize("order", [BY_ID, BY_TIME])
@pytest.mark.parametrize("newer", [False, True])
def test_a_second_stretch_finds_what_the_first_has_not(
    order, newer, calls, monkeypatch, django_assert_num_queries
):
    monkeypatch.setattr(searching, "FIRST", 5)
    row = order.sort(calls, newer=newer)[9]  # the first stretch is six to eight rows
    asked = {"order": order, "newer": newer, "size": 1, "walked": calls, "clock": lambda: 0.0}
    with django_assert_num_queries(4):
        assert search(calls.filter(pk=row.pk), place=None, **asked) == searching.Found([row])
    monkeypatch.setattr(searching, "SECONDS", 0)
    with django_assert_num_queries(2):
        first = search(calls.filter(pk=row.pk), place=None, **asked)
    assert first.rows == []
    second = search(calls.filter(pk=row.pk), place=first.reached, **asked)
    assert second.rows == [row]


def test_a_search_stops_when_its_time_is_over_and_says_where(calls, monkeypatch):
    monkeypatch.setattr(searching, "FIRST", 4)
    rows = calls.filter(status_code=404)
    slow = count(step=1.0).__next__
    found = search(rows, order=BY_ID, place=None, newer=False, size=2, walked=calls, clock=slow)
    assert found.rows == []
    assert found.reached["id"] == calls.order_by("-id")[4].pk
    still = search(
        rows, order=BY_ID, place=None, newer=False, size=2, walked=calls, clock=lambda: 0.0
    )
    assert still == searching.Found([])  # there was time for all


@pytest.mark.parametrize(
    ("took", "left", "length"), [(1, 100, 400), (10, 25, 250), (10, 1, 10), (0, 1, 400)]
)
def test_the_next_stretch_is_as_long_as_the_time_allows(took, left, length):
    assert searching._next_length(100, took=took, left=left) == length


def long_log(rows: int) -> None:
    """A call every four seconds."""
    seed.rows(
        RequestLog,
        rows,
        id="(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')"
        " || '70008' || lpad(to_hex(i), 15, '0'))::uuid",
        request_time="at",
        source="LATERAL (SELECT now() - i * interval '4 s' AS at) clock",
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE request_logs")


def rows_read(statement: str) -> float:
    """Rows that the scans of its plan looked at."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) {statement}")
        return _looked_at(cursor.fetchone()[0][0]["Plan"])


def _looked_at(node: dict[str, Any]) -> float:
    if below := node.get("Plans"):
        return sum(map(_looked_at, below))
    dropped = (node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return (node["Actual Rows"] + sum(dropped)) * node["Actual Loops"]


def test_the_statements_of_a_search_are_few_and_read_no_more_than_their_stretch(monkeypatch):
    monkeypatch.setattr(searching, "FIRST", 200)
    monkeypatch.setattr(searching, "LONGEST", 200)
    long_log(10_000)
    rows = RequestLogEntry.objects.filter(
        request_time__gte=now() - timedelta(days=1), request_time__lt=now()
    )
    rare, asked = rows.filter(duration_ms__gt=1e6), {"place": None, "newer": False, "size": 51}
    with CaptureQueriesContext(connection) as captured:
        found = search(rare, order=BY_ID, walked=rows, clock=lambda: 0.0, **asked)
        search(rare, order=BY_ID, **asked)
    assert found.reached["id"] == rows.order_by("-id")[200 * searching.MOST + 6].pk
    *stretches, whole = [query["sql"] for query in captured]
    assert len(stretches) == 2 * searching.MOST
    assert max(map(rows_read, stretches)) <= 200 + 51
    assert rows_read(whole) == 10_000


# ---------------------------------------------------------------- REST


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("asks", ["operator", "operator by tenant", "tenant"])
def test_the_api_gives_short_pages_that_lead_on(asks, calls):
    client = client_of(None)
    query = {"status": 500, "page_size": 2}
    if asks == "operator by tenant":
        query["tenant"] = "acme"
    if asks == "tenant":
        client = client_of(Tenant.objects.get(slug="acme"))
    page = client.get(API, query).json()
    pages = [page]
    while page["next"]:
        page = client.get(page["next"]).json()
        pages.append(page)
    assert all(list(page) == ["next", "previous", "results"] for page in pages)
    wanted = [str(row.pk) for row in failed(calls).order_by("-id")]
    assert [row["id"] for page in pages for row in page["results"]] == wanted
    assert any(len(page["results"]) < 2 for page in pages[:-1])
    back = [row["id"] for row in page["results"]]
    while page["previous"]:
        page = client.get(page["previous"]).json()
        back = [row["id"] for row in page["results"]] + back
    assert back == wanted


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("asks", ["operator", "tenant"])
def test_an_empty_page_of_the_api_leads_both_ways(asks, calls):
    client = client_of(Tenant.objects.get(slug="acme") if asks == "tenant" else None)
    for nth in range(40):  # each row, those at which a stretch ends too
        row = calls.order_by("-id")[nth]
        RequestLogEntry.objects.filter(pk=row.pk).update(tool_name=f"tool {nth}")
        page = client.get(API, {"tool": f"tool {nth}"}).json()
        for way in ("next", "previous"):
            found = [*page["results"]]
            while page[way]:
                page = client.get(page[way]).json()
                found += page["results"]
            assert [one["id"] for one in found] == [str(row.pk)], nth


def narrowed(*names: str) -> list[tuple[str, ...]]:
    """Each of the first name's pairs with another one, and the first alone."""
    first, *others = names
    return [(first,), *((first, other) for other in others)]


@pytest.fixture
def oldest(calls):
    """The oldest call, alone at its server, by the parameters that find it."""
    server, row = (
        MCPServerFactory(tenant=Tenant.objects.get(slug="acme")),
        calls.order_by("id").first(),
    )
    RequestLogEntry.objects.filter(pk=row.pk).update(target_server_id=server.pk)
    return {
        "id": row.pk,
        "request_id": row.request_id,
        "server": server.pk,
        "tenant": "acme",
        "status": 500,
        "rpc_method": row.rpc_method,
    }


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("asks", ["operator", "tenant"])
@pytest.mark.parametrize(
    "by",
    [
        *narrowed("request_id", "server", "tenant", "status"),
        *narrowed("server", "tenant", "status", "rpc_method"),
    ],
)
def test_what_an_index_finds_is_not_searched_for(asks, by, oldest):
    client = client_of(Tenant.objects.get(slug="acme") if asks == "tenant" else None)
    page = client.get(API, {name: oldest[name] for name in by}).json()
    assert [row["id"] for row in page["results"]] == [str(oldest["id"])]
    assert page["next"] is None


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("more", [{}, {"status": 500}])
def test_at_a_server_that_others_call_too_a_tenant_s_calls_are_searched_for(more, oldest):
    """Neither the server's index nor the tenant's would find them soon, so no statement tries."""
    server = oldest["server"]
    MCPServer.objects.filter(pk=server).update(tenant=None)
    for _ in range(30):
        RequestLogFactory(tenant_id=uuid4(), target_server_id=server)
    client = client_of(Tenant.objects.get(slug="acme"))
    found, link = [], f"{API}?{urlencode({'server': server, **more})}"
    with CaptureQueriesContext(connection) as captured:
        while link:
            page = client.get(link).json()
            found, link = found + page["results"], page["next"]
    assert [row["id"] for row in found] == [str(oldest["id"])]
    ends = [one["sql"] for one in captured if "OFFSET" in one["sql"]]
    assert ends
    assert not [sql for sql in ends if '"target_server_id" =' in sql]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("asks", ["operator", "tenant"])
@pytest.mark.parametrize(
    ("rare", "by"),
    [
        *(("resource", by) for by in narrowed("resource", "user", "tenant", "action")),
        *(("user", by) for by in narrowed("user", "tenant", "action", "resource_type")),
    ],
)
def test_the_narrowest_index_leads_through_the_audit_log(asks, rare, by):
    """One entry by the index that finds it; all the others share what else is asked for."""
    tenant, user = TenantFactory(), uuid4()
    wanted = AuditLogFactory(
        tenant_id=tenant.pk,
        user_id=uuid4() if rare == "user" else user,
        resource_type="users",
        resource_id="one" if rare == "resource" else "another",
    )
    for _ in range(30):
        AuditLogFactory(
            tenant_id=tenant.pk, user_id=user, resource_type="users", resource_id="another"
        )
    values = {
        "resource": {"resource_type": "users", "resource_id": wanted.resource_id},
        "resource_type": {"resource_type": "users"},
        "user": {"user": wanted.user_id},
        "tenant": {"tenant": tenant.slug},
        "action": {"action": wanted.action},
    }
    client = client_of(tenant if asks == "tenant" else None)
    page = client.get(AUDIT_API, {k: v for name in by for k, v in values[name].items()}).json()
    assert [row["id"] for row in page["results"]] == [str(wanted.pk)]
    assert page["next"] is None


@pytest.mark.parametrize(
    ("log", "indexed"), [(AuditLog, AUDIT_INDEXED), (RequestLog, REQUESTS_INDEXED)]
)
def test_each_column_that_leads_has_its_index(log, indexed):
    declared = {tuple(index.fields) for index in log._meta.indexes}
    time = log._partitioning_meta.key[0]
    wanted = {(*led, f"-{time}") for led in indexed.in_order} | {(name,) for name in indexed.few}
    assert wanted <= declared
    assert indexed.in_order[-1] == ("tenant_id",)


# ---------------------------------------------------------------- admin


def shown(client, page: str):
    """The page's rows, what it says of the search, and the address to go on."""
    response = client.get(page)
    assert response.status_code == 200
    text = response.content.decode()
    [said] = re.findall(r'<p[^>]*role="status">(.*?)</p>', text, re.DOTALL) or [""]
    [href] = re.findall(r'href="([^"]*)"', said) or [""]
    words = " ".join(re.sub(r"<[^>]*>", "", said).split())
    rows = [row.pk for row in response.context["cl"].result_list]
    return rows, words, page.partition("?")[0] + html.unescape(href) if href else ""


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("by_tenant", [False, True])
def test_the_admin_says_how_far_it_searched_and_goes_on(by_tenant, calls, admin_client):
    own = f"&tenant_id={calls[0].tenant_id}" if by_tenant else ""
    found, says, page = [], [], f"{REQUESTS}?outcome=failed{own}"
    while page:
        rows, words, page = shown(admin_client, page)
        found += rows
        says += [words] if words else []
    assert found == [row.pk for row in failed(calls).order_by("-id")]
    assert len(says) > 2
    assert re.fullmatch(
        r"Searched from now back to \d+ \w+ \d\d:\d\d:\d\d UTC, \d rows? so far. Search further",
        says[0],
    )
    for one, following in pairwise(says):
        [reached] = re.findall(r"to (.*?),", one)
        assert following.startswith(f"Searched from {reached} back to")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("other", ["tenant_id", "outcome", "rpc_method"])
def test_the_admin_reads_along_the_narrowest_index(other, oldest, calls, admin_client):
    values = {"tenant_id": calls[0].tenant_id, "outcome": "failed", "rpc_method": "tools/call"}
    page = f"{REQUESTS}?{other}={values[other]}&target_server_id={oldest['server']}"
    assert shown(admin_client, page) == ([oldest["id"]], "", "")


@pytest.mark.usefixtures("hurried")
def test_a_search_towards_newer_rows_goes_on_too(calls, admin_client):
    oldest = calls.order_by("id").first()
    place = f"{oldest.request_time:%Y-%m-%dT%H:%M:%S.%fZ}~{oldest.pk}"
    found, page = [], f"{REQUESTS}?outcome=failed&after={place}"
    while page:
        rows, words, page = shown(admin_client, page)
        found = rows + found
        assert not words or " on to " in words
    assert found == [row.pk for row in failed(calls).exclude(pk=oldest.pk).order_by("-id")]


@pytest.mark.usefixtures("hurried")
def test_the_audit_log_is_searched_as_the_request_log_is(admin_client):
    wanted = AuditLogFactory(action="server.register")
    for _ in range(12):
        AuditLogFactory(action="key.use")
    page, pages = f"{AUDIT}?action=server", []
    while page:
        rows, _, page = shown(admin_client, page)
        pages.append(rows)
    assert pages == [[], [], [wanted.pk]]
    assert AuditLogEntry.objects.count() == 13


@pytest.mark.usefixtures("hurried")
def test_what_cannot_match_is_not_searched_for(calls, admin_client):
    for query in ("api_key_id=nonsense", "q=nonsense"):
        assert shown(admin_client, f"{REQUESTS}?{query}") == ([], "", "")


@pytest.mark.parametrize("asked", ["server__isnull=True", "error_rate__gt=0.5"])
def test_a_list_takes_conditions_on_fields_that_are_no_filters_of_logs(asked, admin_client):
    page = reverse("admin:registry_servermetricentry_changelist")
    assert admin_client.get(f"{page}?{asked}").status_code == 200
