"""The job queue's app under a name that operators know. Apart, as settings name it by a string."""

from __future__ import annotations

from procrastinate.contrib.django.apps import ProcrastinateConfig

__all__ = ["JobQueueConfig"]


class JobQueueConfig(ProcrastinateConfig):
    verbose_name = "Job queue"
