"""Django's session store over the table `sessions`, so that every login can be seen and revoked.

The cookie holds the session key, the table only its SHA-256: who reads the table can take over
nobody's login. The key has 165 random bits, so a fast hash gives nothing away.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth import SESSION_KEY as USER_KEY
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.db import IntegrityError, transaction
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.utils.timezone import now

from security.models import Session

__all__ = ["SessionStore", "token_hash"]

# `last_activity` is for people to look at: a write a minute tells them enough.
ACTIVITY_STEP = timedelta(minutes=1)


def token_hash(session_key: str) -> str:
    """What `sessions.session_token` holds for a cookie's value, in hex."""
    return hashlib.sha256(session_key.encode()).hexdigest()


class SessionStore(SessionBase):
    """One request's session. The asynchronous methods are the base's, which call these.

    `ip_address` and `user_agent` are set by `security.middleware.SessionMiddleware` and kept from
    the request that made the session, which for a login is the login.
    """

    ip_address: str | None = None
    user_agent: str = ""

    def load(self) -> dict[str, Any]:
        """The session's data; empty, and the key forgotten, when it is gone, over or revoked."""
        at = now()
        found = self._live().filter(expires_at__gt=at)
        row = found.only("session_data", "last_activity").first()
        if row is None:
            self._session_key = None
            return {}
        self._touch(row)
        return self.decode(row.session_data)

    def exists(self, session_key: str) -> bool:
        return Session.objects.filter(session_token=token_hash(session_key)).exists()

    def create(self) -> None:
        while True:
            self._session_key = self._get_new_session_key()  # type: ignore[attr-defined]
            try:
                self.save(must_create=True)
            except CreateError:
                continue
            self.modified = True
            return

    def save(self, must_create: bool = False) -> None:
        """Write the session. UpdateError: it was deleted or revoked meanwhile, and stays so."""
        if self.session_key is None:
            self.create()
            return
        data = self._get_session(no_load=must_create)  # type: ignore[attr-defined]
        values = {
            "user_id": _user_id(data),
            "session_data": self.encode(data),
            "expires_at": self.get_expiry_date(),
        }
        if must_create:
            self._insert(values)
        else:
            self._update(values)

    def delete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        if key is not None:
            Session.objects.filter(session_token=token_hash(key)).delete()

    @classmethod
    def clear_expired(cls) -> None:
        Session.objects.filter(expires_at__lte=now()).delete()

    def _live(self) -> QuerySet[Session]:
        token = token_hash(self.session_key or "")
        return Session.objects.filter(session_token=token, is_active=True)

    def _touch(self, row: Session) -> None:
        """Note that the session is in use; of requests at the same time, one writes."""
        at = now()
        if row.last_activity <= at - ACTIVITY_STEP:
            idle = Session.objects.filter(pk=row.pk, last_activity__lte=at - ACTIVITY_STEP)
            idle.update(last_activity=at, updated_at=at)

    def _insert(self, values: dict[str, Any]) -> None:
        try:
            with transaction.atomic():
                Session.objects.create(
                    session_token=token_hash(self.session_key or ""),
                    ip_address=self.ip_address,
                    user_agent=self.user_agent[:512],
                    **values,
                )
        except IntegrityError:
            if self.exists(self.session_key or ""):
                raise CreateError from None
            raise  # not the key but the user: somebody deleted the account

    def _update(self, values: dict[str, Any]) -> None:
        at = now()
        # Indexes cover these two: a step that nobody would notice is not written.
        ends = values.pop("expires_at")
        same_end = Q(expires_at__range=(ends - ACTIVITY_STEP, ends))
        recent = Q(last_activity__gt=at - ACTIVITY_STEP)
        times = {
            "expires_at": Case(When(same_end, then=F("expires_at")), default=Value(ends)),
            "last_activity": Case(When(recent, then=F("last_activity")), default=Value(at)),
        }
        try:
            # The condition keeps a session that is being revoked from coming back to life.
            with transaction.atomic():
                kept = self._live().update(updated_at=at, **times, **values)
        except IntegrityError:
            raise UpdateError from None  # the user is gone, and with them their sessions
        if not kept:
            raise UpdateError


def _user_id(data: dict[str, Any]) -> UUID | None:
    return UUID(data[USER_KEY]) if data.get(USER_KEY) else None
