"""What import-linter cannot see: a string that names a model of a higher room, or its pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.apps import apps

ROOT = Path(__file__).parents[2]
ROOMS = ("registry", "monitoring", "security", "gateway")


def names_of(room: str) -> set[str]:
    """Such as security.User and the admin's security_user."""
    models = apps.get_app_config(room).get_models()
    return {name for model in models for name in (model._meta.label, _pages(model._meta))}


def _pages(opts) -> str:
    return f"{opts.app_label}_{opts.model_name}"


@pytest.mark.parametrize("room", ROOMS[:-1])
def test_what_points_to_a_higher_room_is_in_settings(room):
    higher = set().union(*map(names_of, ROOMS[ROOMS.index(room) + 1 :]))
    named = re.compile(rf"""["'](?:{"|".join(map(re.escape, higher))})\b""")
    sources = [path for path in (ROOT / room).rglob("*.py") if "migrations" not in path.parts]
    assert sources
    assert not [path for path in sources if named.search(path.read_text(encoding="utf-8"))]
