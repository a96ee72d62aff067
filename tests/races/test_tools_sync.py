"""Two syncs of one server at once make no duplicates and end in no deadlock."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connection
from django.utils.timezone import now

from registry import health
from registry.health import Checked
from registry.mcp_client import Listing
from registry.models import HealthStatus, ServerTool
from registry.offers import offers_store
from tests.factories import MCPServerFactory

CALLERS = 6


def at_once(work):
    start = Barrier(CALLERS)

    def run(number):
        try:
            start.wait(timeout=10)
            return work(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(run, range(CALLERS)))


@pytest.mark.django_db(transaction=True)
def test_concurrent_syncs_take_turns():
    server = MCPServerFactory()
    tools = [{"name": f"tool_{n}", "inputSchema": {}} for n in range(200)]

    def sync(number):
        listed = list(reversed(tools)) if number % 2 else tools
        listing = Listing(tools=listed, resources=[], prompts=[])
        return offers_store(server_id=server.pk, listing=listing, at=now()).added

    assert sorted(at_once(sync)) == [0] * (CALLERS - 1) + [200]
    assert ServerTool.objects.filter(server=server).count() == 200


@pytest.mark.django_db(transaction=True)
def test_overlapping_batches_of_checks_do_not_deadlock():
    servers = MCPServerFactory.create_batch(60)
    moment = now()

    def write(number):
        order = servers if number % 2 else servers[::-1]
        results = [Checked(server_id=s.pk, status=HealthStatus.HEALTHY) for s in order]
        return health.record(results, at=moment)

    assert at_once(write) == [60] * CALLERS
