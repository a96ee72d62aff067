from __future__ import annotations

import pytest

from tests.factories import UserFactory


@pytest.fixture
def user():
    """An operator whose password is `correct horse`."""
    user = UserFactory(tenant=None, is_staff=True)
    user.set_password("correct horse")
    user.save()
    return user
