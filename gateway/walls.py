"""Breakers, pools and queues belong to whom their server belongs to; shared ones may be read."""

from registry.db.walls import OF_OWN_SERVER, OF_VISIBLE_SERVER, Wall

__all__ = ["WALLS"]

WALLS = tuple(
    Wall(table=table, read=OF_VISIBLE_SERVER, change=OF_OWN_SERVER)
    for table in ("circuit_breakers", "connection_pools", "request_queues")
)
