from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tallystick.clock import SimulatedClock, SystemClock, from_us, to_us, utc
from tallystick.errors import StateError


def test_times_go_to_microseconds_and_back_exactly():
    moment = datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)
    assert from_us(to_us(moment)) == moment


def test_naive_times_are_utc_and_aware_ones_are_converted():
    assert utc(datetime(2013, 7, 1, 12)) == datetime(2013, 7, 1, 12, tzinfo=UTC)
    east = timezone(timedelta(hours=2))
    assert utc(datetime(2013, 7, 1, 12, tzinfo=east)).hour == 10


def test_the_system_clock_is_close_to_the_machines():
    assert abs(SystemClock().now_us() - to_us(datetime.now(UTC))) < 5_000_000


def test_a_simulated_time_is_seen_by_another_process(tmp_path):
    clock = SimulatedClock(tmp_path / "clock", start=datetime(2013, 1, 1, tzinfo=UTC))
    clock.set(datetime(2013, 3, 1, 6, 30, tzinfo=UTC))
    code = "from tallystick.clock import *; print(from_us(process_clock().now_us()).isoformat())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TALLYSTICK_CLOCK_FILE": str(tmp_path / "clock")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "2013-03-01T06:30:00+00:00"


def test_a_missing_simulated_clock_says_what_to_do(tmp_path):
    with pytest.raises(StateError, match="Unset TALLYSTICK_CLOCK_FILE"):
        SimulatedClock(tmp_path / "none")
