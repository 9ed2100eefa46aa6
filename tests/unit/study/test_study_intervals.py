"""Intervals over seeds, against values from tables and by hand."""

import pytest

from cmtvision.study.intervals import mean_interval, paired_difference


def test_interval_is_students():
    """Three values 1, 2, 3: mean 2, s = 1, t(2) = 4.303, half width 4.303 / sqrt(3) = 2.484."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 2.4843, 2 + 2.4843), abs=1e-3)


@pytest.mark.parametrize(
    ("count", "t"), [(2, 12.706), (17, 2.120), (18, 2.110), (21, 2.086), (31, 2.042), (121, 1.980)]
)
def test_quantile_at_every_number_of_seeds(count, t):
    """Values of printed tables, on both sides of where ours ends."""
    values = [0.0, 1.0] * (count // 2) + [0.5] * (count % 2)
    found = mean_interval(values)
    mean = sum(values) / count
    spread = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    assert (found.high - found.mean) * count**0.5 / spread == pytest.approx(t, abs=2e-3)


def test_one_value_has_no_interval():
    found = mean_interval([0.5])
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="expected at least one"):
        mean_interval([])


def test_pairing_cancels_what_seeds_do_to_both():
    """Seeds far apart, differences nearly equal: paired, the difference is sure."""
    found = paired_difference({0: 0.61, 1: 0.82, 2: 0.93}, {2: 0.90, 0: 0.58, 1: 0.80})
    assert found.mean == pytest.approx(0.08 / 3)
    assert found.low > 0


def test_only_shared_seeds_are_compared():
    assert paired_difference({0: 0.5, 3: 0.9}, {0: 0.4, 4: 0.1}).mean == pytest.approx(0.1)
    assert paired_difference({0: 0.5}, {1: 0.4}) is None
