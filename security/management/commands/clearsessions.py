"""Django's own command. It comes with an app whose table this project does not use."""

from django.contrib.sessions.management.commands.clearsessions import Command

__all__ = ["Command"]
