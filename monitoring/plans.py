"""How PostgreSQL would run a statement that its statistics know only with $1 in place of values."""

from __future__ import annotations

import re

from django.db import Error, connection, transaction
from psycopg import Cursor, sql

__all__ = ["NoPlanError", "generic_plan"]

_NAME = sql.Identifier("gateway_plan")
_PLACEHOLDER = re.compile(r"\$(\d+)")
_EXPLAINABLE = re.compile(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE|VALUES|MERGE)\b", re.IGNORECASE)
_LIMITS = """
SELECT set_config('transaction_read_only', 'on', true),
       set_config('statement_timeout', '2s', true), set_config('lock_timeout', '500ms', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)
"""


class NoPlanError(Exception):
    """The statement cannot be planned; the message says why."""


def generic_plan(query: str) -> str:
    """The plan of a normalised statement for values that nobody knows, as EXPLAIN prints it.

    Nothing is run: the statement is prepared and explained in a read-only transaction of two
    seconds at most. NoPlanError for utility statements, and where PostgreSQL refuses.
    """
    if not _EXPLAINABLE.match(query):
        raise NoPlanError("Only reading and writing statements have a plan.")
    try:
        with transaction.atomic():
            try:
                return _explained(query)
            finally:
                transaction.set_rollback(True)
    except Error as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise NoPlanError(f"PostgreSQL cannot plan it: {reason}.") from None


def _explained(query: str) -> str:
    prepare = sql.SQL("PREPARE {} AS {}").format(_NAME, sql.SQL(query))
    explain = sql.SQL("EXPLAIN EXECUTE {}").format(_NAME)
    if count := max((int(number) for number in _PLACEHOLDER.findall(query)), default=0):
        explain += sql.SQL(" ({})").format(sql.SQL(", ").join([sql.NULL] * count))
    with connection.cursor() as cursor:
        cursor.execute(_LIMITS)
        # The extended protocol takes one statement and no more, whatever the text holds.
        with connection.wrap_database_errors:
            Cursor(connection.connection).execute(prepare, binary=True)
        try:
            cursor.execute(explain)
            return "\n".join(line for (line,) in cursor.fetchall())
        finally:
            cursor.execute(sql.SQL("DEALLOCATE {}").format(_NAME))
