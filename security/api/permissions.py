from rest_framework.permissions import IsAuthenticated as HasScope  # noqa: F401
