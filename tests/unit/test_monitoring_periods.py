"""Windows hold enough time and enough requests; runs are found at every edge."""

from __future__ import annotations

import numpy as np
import pytest

from tallystick_monitoring.skew_periods import WINDOW_REQUESTS_MIN, WINDOW_S_MIN, _edges, _runs

SECOND = 1_000_000


@pytest.mark.parametrize("requests", [1, 19, 20, 39, 40, 41, 500])
@pytest.mark.parametrize("seed", range(5))
def test_windows_hold_enough(requests: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaps_s = rng.choice([0, 1, 60, 600, 90_000], size=requests, p=[0.1, 0.3, 0.4, 0.15, 0.05])
    times = 10**15 + np.cumsum(gaps_s) * SECOND
    edges = _edges(times)
    counts = np.histogram(times, bins=edges)[0]
    assert counts.sum() == requests
    assert (np.diff(edges) > 0).all()
    if len(counts) > 1:
        assert counts.min() >= WINDOW_REQUESTS_MIN
        assert np.diff(edges)[:-1].min() >= WINDOW_S_MIN * SECOND


def test_many_requests_at_one_time_are_one_window() -> None:
    assert len(_edges(np.full(1_000, 10**15))) == 2


@pytest.mark.parametrize(
    ("flags", "runs"),
    [
        ("", []),
        ("000", []),
        ("1", [(0, 0)]),
        ("0110", [(1, 2)]),
        ("1011", [(0, 0), (2, 3)]),
    ],
)
def test_runs(flags: str, runs: list) -> None:
    assert _runs(np.array([flag == "1" for flag in flags], dtype=np.bool_)) == runs
