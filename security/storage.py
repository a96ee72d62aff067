"""How security's tables keep their rows: see registry.db.storage."""

from registry.db.storage import Storage

__all__ = ["STORAGE"]

STORAGE = (
    Storage(
        table="enhanced_api_keys",
        parameters={"fillfactor": 80},
        reason="each process adds up the calls of its keys every ten seconds",
    ),
)
