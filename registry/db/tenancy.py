"""The one place that sets the tenant of a transaction.

See Note [Tenant of a transaction]: the tenant is a transaction-local setting, so that a
connection handed on by a pooler carries nothing over, and so that row-level security can
read it with `current_setting('gateway.tenant_id', true)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import connections, transaction

SETTING = "gateway.tenant_id"


@contextmanager
def tenant_transaction(*, tenant_id: UUID | None, using: str = "default") -> Iterator[None]:
    """Open a transaction that belongs to one tenant; None is the gateway itself."""
    with transaction.atomic(using=using):
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT set_config(%s, %s, true)", [SETTING, str(tenant_id or "")])
        yield
