"""Models that know nothing are not told apart; a planted skill is found."""

import pytest

from benchmarks.untrained_twins import measure


@pytest.mark.slow
def test_untrained_twins():
    shares = measure()
    assert shares["called different by kat"] <= 0.05
    assert shares["called different by exact McNemar on plain letters"] > 0.3
    assert shares["skill of 5 points found by kat"] >= 0.8
