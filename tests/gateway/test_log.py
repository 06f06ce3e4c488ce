"""The log writes JSON lines without ever blocking, and keeps out what may be a person's number."""

import io
import json
import os
import threading
from datetime import UTC, datetime

import pytest

from gateway.log import LineWriter, event_log, safe_id


class StandingClock:
    """A clock that stands."""

    def boot(self) -> float:
        return 0.0

    def wall(self) -> datetime:
        return datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


def test_a_line_is_one_json_object_with_its_time() -> None:
    out = io.StringIO()
    writer = LineWriter(out)
    log = event_log(StandingClock(), writer)
    log.info("call", source="onss", total_ms=1.5)
    log.warning("stopping")
    writer.close()
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first == {
        "event": "call",
        "level": "info",
        "source": "onss",
        "total_ms": 1.5,
        "time": "2026-11-24T09:30:00.000+00:00",
    }
    assert (second["event"], second["level"]) == ("stopping", "warning")


def test_a_reader_that_stands_still_does_not_block_the_writer() -> None:
    """A pipe holds 64 KiB; 40,000 lines are far more, and nobody reads."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        writer = LineWriter(out)
        log = event_log(StandingClock(), writer)
        for number in range(40_000):
            log.info("call", number=number)
        received: list[bytes] = []

        def read() -> None:
            while data := os.read(reading, 1 << 20):
                received.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        writer.close()
    reader.join(timeout=10)
    os.close(reading)
    assert writer.dropped == 0
    assert b"".join(received).count(b"\n") == 40_000


def test_a_reader_that_went_away_costs_lines_and_not_calls() -> None:
    out = io.StringIO()
    writer = LineWriter(out)
    log = event_log(StandingClock(), writer)
    out.close()
    log.info("call")
    writer.close()
    log.info("call")
    log.info("call")
    assert writer.dropped == 2


@pytest.mark.parametrize("given", ["5f9c2d1e", "urn:uuid:6fa459ea-ee8a-3ca4-894e-db77e160355e", "job-42/item-7"])
def test_an_ordinary_identifier_is_kept(given: str) -> None:
    assert safe_id(given) == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00000000097",
        "person-00000000097",
        "00.00.00-000.97",
        "00 00 00 000 97",
        "two\nlines",
        'quo"te',
        "x" * 129,
    ],
)
def test_what_may_be_a_national_number_or_break_a_line_is_not_kept(given: str) -> None:
    assert safe_id(given) == ""
