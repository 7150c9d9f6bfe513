"""Statistics against numbers worked by hand, and against loops that resample rows one by one."""

import numpy as np
import pytest
from scipy import stats

from rarlhf_nb.lab.evaluation.metrics import (
    bootstrap_interval,
    bootstrap_weights,
    distinct_n,
    seeds_needed,
    weighted_mean,
)


def test_weighted_mean_over_nothing_is_nan_without_a_warning(recwarn):
    means = weighted_mean(np.array([1.0, 3.0]), np.array([[1, 1], [0, 0], [3, 1]]))
    np.testing.assert_array_equal(means, [2.0, np.nan, 1.5])
    assert not recwarn


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=80)
    ours = bootstrap_interval(weighted_mean(values, bootstrap_weights(80, 20_000, np.random.default_rng(2))))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(0)
    prompts = rng.normal(scale=3, size=200)
    a, b = prompts + 0.1 + rng.normal(scale=0.1, size=200), prompts
    weights = bootstrap_weights(200, 500, rng)
    paired = bootstrap_interval(weighted_mean(a, weights) - weighted_mean(b, weights))
    slow = [np.repeat(a - b, row).mean() for row in weights[1:]]
    assert paired[1:] == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    assert 0 < paired.low < paired.value < paired.high < 0.2
    assert bootstrap_interval(weighted_mean(a, weights)).low < prompts.mean()


def test_an_empty_tail_has_no_interval_and_empty_resamples_are_left_out():
    assert np.isnan(bootstrap_interval(np.full(5, np.nan))).all()
    assert bootstrap_interval(np.array([1.0, np.nan, 1.0, 1.0])) == (1.0, 1.0, 1.0)


def test_distinct_n_by_hand():
    texts = ["the cat sat on the mat", " the cat sat down"]  # a completion brings its own leading space
    assert [distinct_n(texts, n) for n in (1, 2, 3)] == pytest.approx([0.6, 0.6, 0.5])
    assert distinct_n(["a b", "b a"], 2) == 0.5  # "b b" crosses from one text into the next and does not count
    assert np.isnan(distinct_n(["", " "], 1))


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_the_published_sample_sizes(effect, seeds):
    # G*Power, difference of two dependent means, two-sided, 5 % level, power 80 %
    differences = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    assert seeds_needed(differences + effect) == seeds_needed(differences - effect) == seeds
    assert seeds_needed(7 * (differences + effect)) == seeds


def test_seeds_needed_at_the_edges():
    assert seeds_needed([1.0, -1.0]) == seeds_needed([1000.001, -999.999]) == np.inf
    assert seeds_needed([0.3, 0.3, 0.3]) == seeds_needed([20.0, 20.5]) == 2
    assert np.isnan([seeds_needed(few) for few in ([], [1.0], [0.0, 0.0])]).all()
