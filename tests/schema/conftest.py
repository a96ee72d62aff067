from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection, transaction

from tests.schema.seed import seed_everything


@pytest.fixture(scope="module")
def seeded(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    """A month of rows, shared by a module's tests and gone afterwards.

    The tests have to be marked django_db, see tests/schema/test_indexes.py.
    """
    with django_db_blocker.unblock(), transaction.atomic():
        name = str(connection.settings_dict["NAME"])
        assert name.startswith("test_"), f"{name} is no test database: mark the test django_db"
        seed_everything()
        connection.check_constraints()  # now and once, or each test would check every row
        yield
        transaction.set_rollback(True)
