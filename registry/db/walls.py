"""What a tenant may see and change of each table. See Note [Tenant of a transaction].

An app declares its tables as `WALLS` in its `walls.py`, beside the models; this module finds them
by that name, so that no room imports another one above it. Expressions are SQL over the table's
columns, in which `{tenant}` stands for the transaction's tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import LiteralString

from django.apps import apps
from django.utils.module_loading import module_has_submodule
from psycopg import sql

__all__ = ["OF_OWN_SERVER", "OF_VISIBLE_SERVER", "Wall", "expression", "walls"]

# A scalar sub-select is evaluated once a statement, not once a row. Without a tenant it is NULL,
# and no comparison with that is true.
_TENANT = sql.SQL("(SELECT nullif(current_setting('gateway.tenant_id', true), '')::uuid)")

# Note [IN to read, EXISTS to change]
# A list reads many rows: IN is hashed once a statement, where EXISTS was looked up for each row
# (measured on 240,000 tools: 138,190 buffers for a page, with IN 1,401). A change is about a row
# or two: there EXISTS is one look-up, and IN would read all of a tenant's servers.
OF_VISIBLE_SERVER: LiteralString = (
    "server_id IN (SELECT server.id FROM mcp_servers AS server"
    " WHERE (server.tenant_id = {tenant} OR server.tenant_id IS NULL) AND {tenant} IS NOT NULL)"
)
OF_OWN_SERVER: LiteralString = (
    "EXISTS (SELECT FROM mcp_servers AS server"
    " WHERE server.id = server_id AND server.tenant_id = {tenant})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """One table, and which of its rows are a tenant's. An empty expression lets no row through."""

    table: str
    read: LiteralString  # the rows it sees
    change: LiteralString = ""  # the rows that it may change and remove
    add: LiteralString | None = None  # what a row has to be afterwards; None: as `change`
    append_only: bool = False  # for operators too
    secret: tuple[str, ...] = ()  # columns that the read-only role does not see

    @property
    def check(self) -> LiteralString:
        return self.change if self.add is None else self.add


@cache
def walls() -> tuple[Wall, ...]:
    """The walls of all installed apps."""
    return tuple(
        wall
        for app in apps.get_app_configs()
        if app.module is not None and module_has_submodule(app.module, "walls")
        for wall in getattr(import_module(f"{app.name}.walls"), "WALLS", ())
    )


def expression(text: LiteralString) -> sql.Composed:
    """A wall's expression as SQL."""
    return sql.SQL(text).format(tenant=_TENANT)
