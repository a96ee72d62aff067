"""Questions about access rules that are asked of many rows at once."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import BooleanField, F, OuterRef, Q, Subquery
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from security.models import ServerAccessControl

__all__ = ["rule_grants"]


def rule_grants(
    flag: str,
    *,
    server: str,
    api_key_id: UUID | None,
    user_id: UUID | None,
    tenant_id: UUID | None,
    otherwise: Combinable,
) -> Combinable:
    """What the rule that decides says about `flag` (`can_read`, …), for each row's server.

    `server` is the way from a row to its server's id. The most specific subject with an active
    rule decides: key, then user, then tenant; with none of them it is `otherwise`. Each look-up
    is served by uq_server_access_control_subject, which begins with the server.
    """
    subjects = [("api_key", api_key_id), ("user", user_id), ("tenant", tenant_id)]
    known = [(name, pk) for name, pk in subjects if pk is not None]
    if not known:
        return otherwise
    rule = (
        ServerAccessControl.objects.filter(_any(known), server=OuterRef(server), is_active=True)
        .order_by(F("api_key").asc(nulls_last=True), F("user").asc(nulls_last=True))
        .values(flag)[:1]
    )
    return Coalesce(Subquery(rule), otherwise, output_field=BooleanField())


def _any(subjects: Iterable[tuple[str, UUID]]) -> Q:
    condition = Q()
    for name, pk in subjects:
        condition |= Q(**{name: pk})
    return condition
