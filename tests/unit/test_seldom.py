"""What the log is told seldom, and in one line."""

from __future__ import annotations

import logging.config

import pytest
from django.test import Client
from procrastinate import exceptions

from gateway.logs import logging_config
from gateway.seldom import Seldom
from registry.sentences import first_line


def test_a_cause_has_a_line_a_minute_and_its_next_one_after_it_is_over() -> None:
    clock = [0.0]
    seldom = Seldom(clock=lambda: clock[0])
    assert [seldom.is_due("a"), seldom.is_due("a"), seldom.is_due("b")] == [True, False, True]
    clock[0] = 60.0
    assert seldom.is_due("a")
    assert (seldom.forget("a"), seldom.forget("a")) == (True, False)
    assert seldom.is_due("a")


def test_what_libpq_says_is_cut_to_its_first_line() -> None:
    assert first_line(OSError("refused.\n\tIs the server running?")) == "refused"
    assert first_line(TimeoutError()) == "TimeoutError"


@pytest.mark.django_db
def test_a_wrong_host_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(logging_config(level="INFO", style="text"))
    answer = Client().get("/admin/", headers={"host": "elsewhere.example.org"})
    assert answer.status_code == 400
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.strip()]) == 1
    assert "elsewhere.example.org" in said[0]


def test_a_lost_connection_of_the_queue_is_the_workers_to_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.config.dictConfig(logging_config(level="INFO", style="text"))
    logger = logging.getLogger("procrastinate.worker.worker")
    for error in (exceptions.ConnectorException("gone"), RuntimeError("broken")):
        logger.error("Side task failed", exc_info=error)
    said = capsys.readouterr().err
    assert "broken" in said
    assert "gone" not in said


def test_a_collector_that_is_away_is_two_lines_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.seldom._libraries", Seldom())
    logging.config.dictConfig(logging_config(level="INFO", style="text"))
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for attempt in range(3):
        logger.warning("Transient error, retrying in %s s", attempt)
        logger.error("Failed to export")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2].split()[0] for line in said] == ["Transient", "Failed"]
