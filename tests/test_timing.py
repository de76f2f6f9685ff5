"""The clock: medians, calls in turn, first calls apart."""

import time

import pytest

from mlbook.common import timing


def test_timed_measures_a_sleep():
    took = timing.timed(time.sleep, 0.002, samples=5)
    assert took.low <= took.median <= took.high
    assert 0.002 <= took.median < 0.02


def test_timed_refuses_a_median_of_two():
    with pytest.raises(ValueError, match="at least 3 samples, got 2"):
        timing.timed(time.sleep, 0, samples=2)


def test_compare_takes_samples_in_turn():
    """Calls that all slow down tenfold half way keep their ratio."""
    order = []

    def sleeper(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds * (10 if len(order) > 30 else 1))

        return call

    calls = sleeper("short", 0.002), sleeper("long", 0.02)
    short, long = timing.compare(*calls, samples=21, sample_seconds=1e-3)
    assert order == ["short"] * 5 + ["long"] * 5 + ["short", "long"] * 21
    assert 3 < long.median / short.median < 11 and 3 < long.low / short.low < 11
    assert long.high > 5 * long.low  # the slow half was met


def test_first_calls_are_told_apart():
    delays = iter([0.02, 0.0, 0.0])
    first, *later = timing.first_calls(lambda: time.sleep(next(delays)), calls=3)
    assert first >= 0.02 > max(later)
