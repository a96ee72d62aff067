"""The API against its OpenAPI document: whatever is sent, it answers as documented.

Schemathesis makes requests that the document allows and requests that it forbids, the same ones in
every run: first what lies at the edges of each schema, then some at random. They are sent in turns
by an administrator of the tenant that runs the gateway and by one of a tenant that does not; what a
request has changed is undone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from math import ceil
from typing import Any
from uuid import UUID

import pytest
import schemathesis
from django.db import transaction
from django.test.client import ClientHandler
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api import API
from tests.factories import EnhancedAPIKeyFactory, MCPServerFactory, TenantFactory, UserFactory
from tests.integration.gateway.test_api_every_address import MAKE, SINGLE

pytestmark = pytest.mark.django_db

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
# Requests of a kind and operation.
MOST_EDGES, AT_RANDOM = 30, 2

handler = ClientHandler()


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Django as a WSGI application, on the test's own connection."""
    answer = handler(environ)
    start_response(f"{answer.status_code} {answer.reason_phrase}", list(answer.items()))
    return [answer.content]


@cache
def document() -> Any:
    made = json.loads(json.dumps(SchemaGenerator().get_schema(public=True), default=str))
    loaded = schemathesis.openapi.from_dict(made, config=SchemathesisConfig(seed=1))
    loaded.app = application
    return loaded


def name_of(operation: APIOperation) -> str:
    """The list that an operation belongs to, or the summary that it is."""
    path = operation.path.removeprefix(API)
    return path if path in SINGLE else path.partition("/")[0]


def operations(name: str) -> list[APIOperation]:
    every = (found.ok() for found in document().get_all_operations())
    return [operation for operation in every if name_of(operation) == name]


@dataclass
class Caller:
    """An administrator's key, and the rows that its requests are about."""

    key: str
    row: Any  # of the list
    named: dict[str, str]  # by the field of a body that names it

    @classmethod
    def of(cls, name: str, *, runs_gateway: bool) -> Caller:
        tenant = TenantFactory(settings={"runs_gateway": runs_gateway})
        key = EnhancedAPIKeyFactory(tenant=tenant, scopes=["admin"])
        server = MCPServerFactory(tenant=tenant)
        named = {"server": server, "user": UserFactory(tenant=tenant), "api_key": key}
        row = MAKE[name](server) if name in MAKE else None
        return cls(key.text, row, {field: str(one.pk) for field, one in named.items()})

    def send(self, case: Case) -> None:
        """Send a request of this caller's and hold its answer against the document."""
        faulty = self._aim(case)
        case.headers["Authorization"] = f"Bearer {self.key}"
        with undone():
            answer = case.call(base_url="http://testserver")
        # In a body "1" is taken for 1 and 1 for "1"; everywhere else what is forbidden is refused.
        strictly = [negative_data_rejection] if faulty and "body" not in faulty else []
        case.validate_response(answer, checks=CHECKS + strictly)

    def _aim(self, case: Case) -> set[str]:
        """Name rows that there are where ids stand, or every request would end there.

        Returns which parts of the request are forbidden: headers are not, for the only one that
        there is becomes the caller's.
        """
        meta = case.meta.components.items() if case.meta else ()
        faulty = {where.value for where, part in meta if part.mode is GenerationMode.NEGATIVE}
        faulty.discard("header")
        if self.row is not None and "id" in case.path_parameters and faulty != {"path"}:
            case.path_parameters["id"] = str(self.row.pk)
        if isinstance(case.body, dict):
            for field, id_ in self.named.items():
                if _is_uuid(case.body.get(field)):
                    case.body[field] = id_
        return faulty


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def _is_uuid(text: Any) -> bool:
    try:
        return str(UUID(text)) == text
    except (ValueError, TypeError, AttributeError):
        return False


def edges(operation: APIOperation, mode: GenerationMode) -> list[Case]:
    """Requests at the edges of the schema, one of each description; of very many some."""
    config = document().config.generation_for(operation=operation)
    found: dict[Any, Case] = {}
    for case in document().iter_coverage_cases(
        operation, generation_modes=[mode], generation_config=config
    ):
        data = case.meta.phase.data
        found.setdefault((case.method, getattr(data, "parameter", ""), data.description), case)
    return list(found.values())[:: ceil(len(found) / MOST_EDGES)]


@pytest.fixture(autouse=True)
def in_silence() -> Iterator[None]:
    """Thousands of refusals are what is wanted here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", [*MAKE, *SINGLE])
def test_answers_are_as_documented(name: str):
    callers = cycle([Caller.of(name, runs_gateway=runs) for runs in (True, False)])
    found = operations(name)
    assert found
    for operation in found:
        for mode in MODES:
            for case in edges(operation, mode):
                next(callers).send(case)
            _at_random(operation, mode, callers)


def _at_random(operation: APIOperation, mode: GenerationMode, callers: Iterator[Caller]) -> None:
    @settings(
        max_examples=AT_RANDOM,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def sent(case: Case) -> None:
        next(callers).send(case)

    sent()
