from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.core.exceptions import ObjectDoesNotExist, RequestDataTooBig, ValidationError
from django.db import DataError, IntegrityError, OperationalError

from registry.api.errors import handle

REQUEST = SimpleNamespace(request_id=uuid4())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IntegrityError("duplicate key"), 409),
        (DataError("out of range"), 400),
        (OperationalError("lock timeout"), 503),
        (ObjectDoesNotExist(), 404),
        (RequestDataTooBig(), 413),
        (ValidationError("no"), 400),
    ],
)
def test_what_the_database_and_the_models_refuse_has_a_status(error, status):
    answer = handle(error, {"request": REQUEST})
    assert answer.status_code == status
    assert "duplicate key" not in str(answer.data)


def test_the_answer_names_the_request():
    answer = handle(IntegrityError(), {"request": REQUEST})
    assert answer.data["request_id"] == str(REQUEST.request_id)


def test_a_busy_database_says_when_to_try_again():
    assert handle(OperationalError(), {"request": REQUEST})["Retry-After"] == "5"


def test_a_models_refusal_keeps_its_field():
    answer = handle(ValidationError({"name": ["Too long."]}), {"request": REQUEST})
    assert answer.data == {"name": ["Too long."], "request_id": str(REQUEST.request_id)}


def test_a_programming_error_stays_one():
    assert handle(KeyError("x"), {"request": REQUEST}) is None
