"""What holds for every input of the mathematics: risk, schedule, PPO, statistics, Quark's bins, DExperts' nucleus.

Each function meets an obvious, slow reference or an identity. 200 examples each; with HYPOTHESIS_PROFILE=soak, 20,000.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from rarlhf_nb import ppo
from rarlhf_nb.baselines.dexperts import combined_logits, nucleus_mask
from rarlhf_nb.baselines.quark import quantile_bins
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation import metrics
from rarlhf_nb.lab.evaluation.metrics import bootstrap_weights, distinct_n, tail_mean, weighted_mean
from rarlhf_nb.risk import SoftRiskSchedule, cvar, kept_episodes, rockafellar_uryasev_rewards, var

NUMBERS = st.integers(-3, 3).map(float) | st.floats(-1000, 1000)  # small whole numbers make ties
RETURNS = st.lists(NUMBERS, min_size=1, max_size=30)
DECIMALS = st.integers(0, 6).flatmap(lambda digits: st.integers(1, 10**digits).map(lambda part: part / 10**digits))
SHARES = DECIMALS | st.floats(0.001, 1)
SEEDS = st.integers(0, 2**32 - 1)


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def decimal(share):
    """The fraction that is written out when the float is printed."""
    return Fraction(str(share))


# Risk


def slow_cvar(values, alpha):
    """Takes episodes from the lowest on, the last one in part, until the tail is full."""
    size = left = Fraction(alpha) * len(values)
    total = Fraction(0)
    for value in sorted(values):
        part = min(Fraction(1), left)
        total, left = total + part * Fraction(value), left - part
    return float(total / size)


@given(RETURNS, DECIMALS)
def test_var_is_the_lowest_value_at_which_the_distribution_reaches_alpha(values, alpha):
    reaching = [z for z in values if Fraction(sum(v <= z for v in values), len(values)) >= decimal(alpha)]
    assert var(values, alpha) == min(reaching)


@given(RETURNS, SHARES)
def test_cvar_is_the_mean_of_the_tail_and_the_rockafellar_uryasev_maximum(values, alpha):
    assert cvar(values, alpha) == close(slow_cvar(values, alpha))
    array = np.array(values)
    # the objective is concave and piecewise linear: its maximum stands at one of the values
    assert cvar(values, alpha) == pytest.approx(
        max(eta - np.maximum(eta - array, 0).mean() / alpha for eta in values), rel=1e-9, abs=1e-7
    )


@given(RETURNS, st.data())
def test_the_kept_episodes_are_the_lowest_and_of_a_tie_the_first(values, data):
    kept = data.draw(st.integers(1, len(values)))
    chosen = kept_episodes(torch.tensor(values, dtype=torch.float64), kept).tolist()
    assert chosen == sorted(sorted(range(len(values)), key=lambda i: (values[i], i))[:kept])


@given(RETURNS, st.data())
def test_rockafellar_uryasev_rewards_average_to_cvar_and_never_rank_two_episodes_the_other_way(values, data):
    kept = data.draw(st.integers(1, len(values)))
    rewards = rockafellar_uryasev_rewards(torch.tensor(values, dtype=torch.float64), kept).tolist()
    assert math.fsum(rewards) / len(values) == pytest.approx(cvar(values, kept / len(values)), rel=1e-9, abs=1e-7)
    if kept == len(values):
        assert rewards == values
    else:
        assert max(rewards) == sorted(values)[kept - 1]
    ordered = [reward for _, reward in sorted(zip(values, rewards, strict=True))]
    assert ordered == sorted(ordered)


# The schedule


SCHEDULES = {
    "batch_size": st.integers(1, 600),
    "alpha": DECIMALS,
    "iterations": st.integers(1, 500),
    "warm_start": st.integers(-1, 60),
    "rho": DECIMALS,
}


@given(**SCHEDULES)
def test_a_schedule_is_the_exact_one_or_refused_where_it_does_not_fit(batch_size, alpha, iterations, warm_start, rho):
    reached = math.ceil(decimal(rho) * iterations)
    if not 0 <= warm_start < reached:
        with pytest.raises(UserError, match="warm_start"):
            SoftRiskSchedule(batch_size, alpha, iterations, warm_start, rho)
        return
    counts = SoftRiskSchedule(batch_size, alpha, iterations, warm_start, rho).kept_counts()
    smallest = math.ceil(decimal(alpha) * batch_size)
    for iteration, kept in enumerate(counts, start=1):
        progress = Fraction(min(max(iteration - warm_start, 0), reached - warm_start), reached - warm_start)
        assert kept == math.ceil(batch_size * (1 - (1 - decimal(alpha)) * progress))
    assert counts == sorted(counts, reverse=True) and smallest <= min(counts) and max(counts) <= batch_size
    assert set(counts[:warm_start]) <= {batch_size} and set(counts[reached - 1 :]) == {smallest}


@given(
    share=st.floats(allow_nan=True).filter(lambda share: not 0 < share <= 1), field=st.sampled_from(["alpha", "rho"])
)
def test_a_share_outside_its_range_is_refused_by_name(share, field):
    with pytest.raises(UserError, match=field):
        SoftRiskSchedule(
            **{"batch_size": 8, "alpha": 0.4, "iterations": 10, "warm_start": 0, "rho": 0.9} | {field: share}
        )


# PPO


@st.composite
def batches(draw, count):
    """`count` tables (B, T) and a mask with at least one real token in each row, padded on the right."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, columns), min_size=rows, max_size=rows))
    table = arrays(np.float64, (rows, columns), elements=st.floats(-5, 5))
    mask = torch.arange(columns) < torch.tensor(lengths)[:, None]
    return [torch.from_numpy(draw(table)) for _ in range(count)], mask


GARBAGE = st.sampled_from([0.0, -7.0, 1e30, float("inf"), float("-inf"), float("nan")])


@given(batches(4), GARBAGE)
def test_what_stands_on_padding_changes_no_result(batch, garbage):
    tables, mask = batch

    def results(one, two, three, four):
        rewards = ppo.dense_rewards(torch.arange(len(one), dtype=torch.float64), one, two, mask, 0.1)
        return [
            ppo.masked_mean(one, mask),
            ppo.masked_sum(one, mask),
            ppo.episode_kl(one, two, mask),
            rewards,
            *ppo.generalized_advantages(one, two, mask, 0.9, 0.95),
            ppo.whiten(three, mask),
            ppo.policy_losses(one, two, three, 0.2)[mask],
            ppo.masked_mean(ppo.policy_losses(one, two, three, 0.2), mask),
            ppo.value_losses(one, two, four, 0.2)[mask],
            ppo.masked_mean(ppo.value_losses(one, two, four, 0.2), mask),
        ]

    dirty = [table.masked_fill(~mask, garbage) for table in tables]
    for clean_result, dirty_result in zip(results(*tables), results(*dirty), strict=True):
        assert torch.equal(clean_result, dirty_result)


@given(batches(1))
def test_whitened_values_have_mean_zero_and_variance_one(batch):
    (values,), mask = batch
    whitened, variance = ppo.whiten(values, mask), values[mask].var(correction=0).item()
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6) and (whitened[~mask] == 0).all()
    assert whitened[mask].var(correction=0).item() == pytest.approx(variance / (variance + 1e-8), abs=1e-6)


@given(batches(2), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_double_sum_of_later_errors(batch, gamma, lam):
    (rewards, values), mask = batch
    advantages, targets = ppo.generalized_advantages(rewards, values, mask, gamma, lam)
    for row, length in enumerate(mask.sum(1).tolist()):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        slow = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, length)) for t in range(length)]
        assert advantages[row, :length].tolist() == close(slow)
        assert targets[row, :length].tolist() == close([a + b for a, b in zip(slow, v, strict=False)])
    # the reward to go, if nothing is discounted
    plain, _ = ppo.generalized_advantages(rewards, values, mask, 1.0, 1.0)
    togo = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(plain[mask], (togo - values)[mask])


@given(batches(3), st.floats(0.01, 0.9))
def test_clipping_takes_away_gains_and_no_losses(batch, clip):
    (log_probs, old_log_probs, advantages), _ = batch
    ratio = (log_probs - old_log_probs).exp()
    losses = ppo.policy_losses(log_probs, old_log_probs, advantages, clip)
    bounded = torch.where(advantages >= 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    torch.testing.assert_close(losses, -advantages * bounded)
    values, old_values, targets = log_probs, old_log_probs, advantages
    value_loss, unclipped = ppo.value_losses(values, old_values, targets, clip), 0.5 * (values - targets) ** 2
    near = (values - old_values).abs() < clip
    assert (value_loss >= unclipped).all()
    torch.testing.assert_close(value_loss[near], unclipped[near])


# Statistics


@st.composite
def weighted(draw):
    """values, keys and whole weights (N,) that do not sum to 0."""
    n = draw(st.integers(1, 20))
    row = st.lists(NUMBERS, min_size=n, max_size=n).map(np.array)
    weights = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).map(np.array))
    assume(weights.sum())
    return draw(row), draw(row), weights


@given(weighted())
def test_a_weight_counts_repetitions(rows):
    values, _, weights = rows
    assert weighted_mean(values, weights) == close(np.repeat(values, weights).mean())
    assert np.isnan(weighted_mean(values, np.zeros_like(weights)))


@given(weighted(), SHARES)
def test_a_tail_mean_is_cvar_of_the_repeated_rows(rows, share):
    values, keys, weights = rows
    assert tail_mean(values, values, share, weights) == close(cvar(np.repeat(values, weights), share))
    assert tail_mean(values, keys, 1.0, weights) == close(weighted_mean(values, weights))
    order = np.argsort(keys, kind="stable")
    repeated = np.repeat(values[order], weights[order])  # in the order of their keys, ties as they come
    size = Fraction(share) * len(repeated)
    parts = [float(min(Fraction(1), max(Fraction(0), size - i))) for i in range(len(repeated))]
    assert tail_mean(values, keys, share, weights) == close(float(np.dot(parts, repeated) / float(size)))


@given(weighted(), st.lists(SHARES, min_size=1, max_size=5), st.integers(1, 70), SEEDS)
def test_many_shares_at_once_agree_with_one_at_a_time(rows, shares, resamples, seed):
    values, keys, _ = rows
    weights = bootstrap_weights(len(values), resamples, np.random.default_rng(seed))
    together = metrics.tail_means(values, keys, weights, np.array(shares))
    for share, found in zip(shares, together, strict=True):
        np.testing.assert_allclose(found, tail_mean(values, keys, share, weights), rtol=1e-7, atol=1e-6)


@given(st.integers(1, 50), st.integers(1, 50), SEEDS)
def test_bootstrap_weights_draw_every_time_as_many_rows_as_there_are(count, resamples, seed):
    weights = bootstrap_weights(count, resamples, np.random.default_rng(seed))
    assert weights.shape == (1 + resamples, count) and (weights >= 0).all() and (weights.sum(1) == count).all()
    assert (weights[0] == 1).all()
    np.testing.assert_array_equal(weights, bootstrap_weights(count, resamples, np.random.default_rng(seed)))


WORDS = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=8).map(" ".join)


@given(st.lists(WORDS, max_size=6), st.integers(1, 4))
def test_distinct_n_is_a_share_and_repeating_every_text_divides_it(texts, n):
    found = distinct_n(texts, n)
    if any(text.strip() for text in texts):
        assert 0 <= found <= 1
        assert distinct_n(texts * 2, n) == close(found / 2)
    assert np.isnan(distinct_n([text for text in texts if not text.strip(" ")], n))


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 9)), min_size=1, max_size=20))
def test_perplexity_recovers_the_probability_of_each_token_and_leaves_out_empty_texts(texts):
    probability, tokens = (np.array(column) for column in zip(*texts, strict=True))
    found = metrics.perplexity(np.log(probability) * tokens, tokens, np.ones(len(texts)))
    scored = [1 / p for p, count in texts if count]
    assert found == close(np.mean(scored)) if scored else np.isnan(found)


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.floats(0.5, 0.99))
def test_an_interval_over_seeds_contains_their_mean_and_widens_with_its_level(values, level):
    value, low, high = metrics.seed_interval(values, level)
    assert value == close(np.mean(values))
    if len(values) == 1:
        assert np.isnan([low, high]).all()
    else:
        assert low <= value <= high <= metrics.seed_interval(values, 0.995).high
        error = np.sqrt(sum((v - value) ** 2 for v in values) / (len(values) - 1) / len(values))
        assert [low, high] == close(
            [value + stats.t(len(values) - 1).ppf(0.5 + s * level / 2) * error for s in (-1, 1)]
        )


@given(RETURNS, st.integers(1, 40), SEEDS)
def test_a_bootstrap_interval_lies_within_its_resamples(values, resamples, seed):
    statistics = weighted_mean(np.array(values), bootstrap_weights(len(values), resamples, np.random.default_rng(seed)))
    value, low, high = metrics.bootstrap_interval(statistics)
    assert value == statistics[0] == close(np.mean(values))
    assert statistics[1:].min() <= low <= high <= statistics[1:].max()


# Baselines


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(1, 12))
def test_quantile_bins_have_their_sizes_and_follow_the_rewards_and_then_the_pool(rewards, quantiles):
    assume(len(rewards) >= quantiles)
    bins = quantile_bins(torch.tensor(rewards, dtype=torch.float64), quantiles).tolist()
    size = len(rewards) // quantiles
    expected = [number for number in range(quantiles - 1) for _ in range(size)]
    expected += [quantiles - 1] * (len(rewards) - len(expected))
    assert [bins[i] for i in sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))] == expected


LOGITS = (
    st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (3, n), elements=st.floats(-20, 20))).map(torch.from_numpy)
)


@given(LOGITS, st.floats(0.01, 1))
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens_with_its_mass(logits, top_p):
    for row, kept in zip(logits, nucleus_mask(logits, top_p), strict=True):
        probabilities = row.softmax(-1)
        inside, outside = probabilities[kept], probabilities[~kept]
        assert kept[row.argmax()] and inside.sum() >= top_p - 1e-9
        if len(outside):
            assert inside.min() >= outside.max()
        if top_p < 1:
            assert inside.sum() - inside.min() <= top_p + 1e-9


@given(LOGITS, st.floats(0, 5))
def test_combined_logits_are_the_base_times_the_ratio_of_the_experts(logits, alpha):
    base, expert, anti_expert = logits
    found = combined_logits(base, expert, anti_expert, alpha).softmax(-1)
    product = base.softmax(-1) * (expert.softmax(-1) / anti_expert.softmax(-1)) ** alpha
    torch.testing.assert_close(found, product / product.sum(), atol=1e-9, rtol=1e-6)
    for unsteered in (combined_logits(base, expert, anti_expert, 0.0), combined_logits(base, expert, expert, alpha)):
        assert torch.equal(unsteered, base)
