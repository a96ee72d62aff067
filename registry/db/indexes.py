"""Index classes for `Meta.indexes`."""

from django.db import models


class NamedIndex(models.Index):
    """An index whose name may use all of PostgreSQL's 63 bytes.

    Django stops at 30 for other databases' sake; the names that operators know from the
    performance guide are longer.
    """

    max_name_length = 63
