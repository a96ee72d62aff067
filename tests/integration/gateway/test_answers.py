"""What every answer of the control plane carries, whoever gives it, and what the log says."""

from __future__ import annotations

import io
import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import include, path
from django.utils.timezone import now

from gateway.logs import logging_config
from gateway.urls import handler400, handler404, handler500
from gateway.urls import urlpatterns as real
from tests.factories import PerformanceAlertFactory

pytestmark = pytest.mark.django_db
__all__ = ["handler400", "handler404", "handler500"]  # Django looks them up here


def broken(_request: Any) -> None:
    logging.getLogger("gateway.test").warning("about to fail")
    raise RuntimeError("broken on purpose")


urlpatterns = [path("api/broken", broken), path("broken", broken), path("", include(real))]


@pytest.fixture
def client(settings: Any) -> Client:
    settings.ROOT_URLCONF = __name__
    return Client(raise_request_exception=False)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the program's log says, as JSON lines."""
    formatter = logging.config.DictConfigurator({}).configure_formatter(
        logging_config(level="INFO", style="json")["formatters"]["line"]
    )
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/static/gateway/icon.svg", 200),
        ("/static/gateway/none.svg", 404),
        ("/admin/login/", 200),
        ("/api/broken", 500),
        ("/broken", 500),
    ],
)
def test_every_answer_carries_a_request_id(client: Client, address: str, status: int) -> None:
    answers = [client.get(address) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status, status]
    ids = {UUID(answer["X-Request-ID"]) for answer in answers}
    assert len(ids) == 2


def test_what_browsers_ask_for_by_themselves_is_the_icon() -> None:
    answer = Client().get("/favicon.ico", follow=True)
    assert answer.status_code == 200
    assert answer["Content-Type"] == "image/svg+xml"


@pytest.mark.parametrize(
    ("address", "headers", "status", "word"),
    [
        ("/api/v1/nothing", {}, 404, "/api/docs/"),
        ("/api/broken", {}, 500, "operators"),
        ("/api/v1/servers", {"host": "evil.example"}, 400, "headers"),
    ],
)
def test_the_api_answers_json_whatever_happens(
    client: Client, address: str, headers: dict[str, str], status: int, word: str
) -> None:
    answer = client.get(address, headers=headers)
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/json")
    body = answer.json()
    assert set(body) == {"detail", "request_id"}
    assert word in body["detail"]
    assert body["request_id"] == answer["X-Request-ID"]
    assert "purpose" not in answer.text


@pytest.mark.parametrize("address", ["/broken", "/nothing", "/admin/nothing/"])
def test_elsewhere_errors_are_pages(client: Client, address: str) -> None:
    client.force_login(get_user_model().objects.create_superuser(username="boss"))
    answer = client.get(address)
    assert answer["Content-Type"].startswith("text/html")
    for expected in ("MCP Registry Gateway", "To the overview", answer["X-Request-ID"]):
        assert expected in answer.text
    assert "purpose" not in answer.text


def test_the_log_carries_each_request_s_own_id(client: Client, log: io.StringIO) -> None:
    first = client.get("/api/broken")["X-Request-ID"]
    second = client.get("/api/nosuch")["X-Request-ID"]
    lines = {line["event"]: line for line in map(json.loads, log.getvalue().splitlines())}
    assert lines["about to fail"]["request_id"] == first
    assert lines["Internal Server Error: /api/broken"]["request_id"] == first
    assert lines["Not Found: /api/nosuch"]["request_id"] == second


def test_the_overview_does_not_call_unevaluated_alerts_quiet(client: Client) -> None:
    client.force_login(get_user_model().objects.create_superuser(username="boss"))
    cards = {card.title: card for card in client.get("/admin/").context["cards"]}
    assert cards["Firing alerts"].note == "no rule was evaluated: start a worker"
    assert cards["Firing alerts"].value != "0"
    PerformanceAlertFactory(name="waits", last_measured=now(), pending_since=now())
    cards = {card.title: card for card in client.get("/admin/").context["cards"]}
    assert (cards["Firing alerts"].note, cards["Firing alerts"].value) == (
        "no rule fires; pending: waits",
        "0",
    )
