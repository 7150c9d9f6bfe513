"""Statistics of a table of episodes and their intervals: tail means, quantile curves, perplexity, Dist-n.

A statistic that can be resampled takes `weights`, how often each row counts: ones give the estimate, the rows of
`bootstrap_weights` give its resamples, and the same weights for two methods give their paired difference.
Shapes: N rows (episodes or texts), R resamples; weights (..., N) -> statistic (...).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from rarlhf_nb.risk import check_alpha

SIGNIFICANCE, POWER = 0.05, 0.8  # of the t-tests that `seeds_needed` plans
MOST_SEEDS = 1_000_000  # beyond it, no number of seeds is said to be enough
ROWS_AT_ONCE = 64  # resamples; bounds the memory of (rows, N) temporaries


class Interval(NamedTuple):
    """An estimate and both ends of its interval."""

    value: float
    low: float
    high: float


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_i w_i v_i / sum_i w_i; NaN where the weights sum to 0. (N,), (..., N) -> (...)."""
    total = np.asarray(weights.sum(-1), dtype=np.float64)
    return np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0)


def tail_mean(values: np.ndarray, keys: np.ndarray, share: float, weights: np.ndarray) -> np.ndarray:
    """Mean value of the lowest `share` of the rows by key; the boundary row counts with the fraction that is left.

    With keys = values it is CVaR (eq. 6, `risk.cvar`); with keys = prompt scores, the mean reward of the hardest
    prompts. values, keys: (N,); weights: (..., N) -> (...). Equal keys keep their order. Raises `UserError`
    on a share outside (0, 1].
    """
    order = np.argsort(keys, kind="stable")
    weights = weights[..., order]
    reached = np.cumsum(weights, axis=-1)
    size = check_alpha(share) * reached[..., -1:]
    counted = np.clip(size - (reached - weights), 0, weights)
    return weighted_mean(values[order], counted)


def tail_means(values: np.ndarray, keys: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`tail_mean` for many shares at once: (N,), (N,), (R, N), (K,) -> (K, R).

    Cumulative sums serve all shares with one pass over the rows, which makes the explorer's hundred shares fast. They
    add up in another order than `tail_mean`, so the two agree only up to rounding, and the report keeps `tail_mean`.
    """
    order = np.argsort(keys, kind="stable")
    ordered = values[order]
    means = np.empty((len(shares), len(weights)))
    for start in range(0, len(weights), ROWS_AT_ONCE):
        counts = weights[start : start + ROWS_AT_ONCE][:, order].astype(np.float64)
        reached, totals = np.cumsum(counts, axis=1), np.cumsum(counts * ordered, axis=1)
        for row, (episodes, total, count) in enumerate(zip(reached, totals, counts, strict=True), start=start):
            size = shares * episodes[-1]
            last = np.minimum(np.searchsorted(episodes, size), len(ordered) - 1)  # the boundary row of each share
            before = size - (episodes[last] - count[last])  # how much of the boundary row counts
            means[:, row] = (total[last] - count[last] * ordered[last] + before * ordered[last]) / size
    return means


def quantile_curve(rewards: ArrayLike, prompt_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The paper's curve: mean reward over the lowest q share of prompts, by prompt score, for q = 1/N ... 1.

    It is cumulative: the point at q averages all prompts up to q, so the last point is the mean reward.
    (N,), (N,) -> q (N,) and mean reward (N,).
    """
    ordered = np.asarray(rewards, dtype=np.float64)[np.argsort(prompt_scores, kind="stable")]
    ranks = np.arange(1, len(ordered) + 1)
    return ranks / len(ordered), np.cumsum(ordered) / ranks


def perplexity(log_likelihoods: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over texts of exp(-log-likelihood / tokens), the paper's (and Hugging Face evaluate's) definition.

    The other definition in use, exp(-total / total tokens), weighs long texts more and is lower where texts differ.
    log_likelihoods: (N,) nats per text; tokens: (N,) scored tokens, where a text without any is left out;
    weights: (..., N).
    """
    scored = tokens > 0
    text_perplexities = np.exp(-log_likelihoods[scored] / tokens[scored])
    return weighted_mean(text_perplexities, weights[..., scored])


def distinct_n(texts: Sequence[str], n: int, denominator: Literal["words", "ngrams"] = "words") -> float:
    """Dist-n: the number of different n-grams in all `texts` together, divided by the number of words.

    Words are split at single spaces, and no n-gram crosses from one text into the next. "words" is the definition of
    Li et al. 2016, DExperts and Quark, with which Dist-2 and Dist-3 cannot reach 1; "ngrams" divides by the number of
    n-grams instead. Dist-n falls with the number of texts: compare equal numbers of texts only. NaN without words.
    """
    words = [text.strip(" ").split(" ") if text.strip(" ") else [] for text in texts]
    ngrams = [tuple(line[at : at + n]) for line in words for at in range(len(line) - n + 1)]
    total = sum(map(len, words)) if denominator == "words" else len(ngrams)
    return len(set(ngrams)) / total if total else float("nan")


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half (Agarwal et al. 2021), with a quarter cut at each end: (..., N) -> (...)."""
    return stats.trim_mean(values, 0.25, axis=-1)


def bootstrap_weights(count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` prompts is drawn when `count` are drawn with replacement: (1 + R, count).

    The first row is the sample itself, all ones, so the first value of a statistic is the estimate.
    """
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.vstack([np.ones(count, dtype=np.int64), drawn])


def bootstrap_interval(statistics: np.ndarray, level: float = 0.95) -> Interval:
    """Estimate and percentile interval of a statistic over `bootstrap_weights`: (1 + R,) -> Interval.

    For a paired difference, pass one method's statistics minus the other's. Resamples in which the statistic does not
    exist (an empty tail) are left out; without an estimate everything is NaN.
    """
    estimate, resampled = float(statistics[0]), statistics[1:][~np.isnan(statistics[1:])]
    if np.isnan(estimate) or not len(resampled):
        return Interval(estimate, np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def stratified_interval(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A statistic over training seeds and tasks, with the stratified bootstrap of Agarwal et al. 2021.

    scores: (S, K), seeds by tasks. Each resample draws S seeds with replacement within each task (the stratum), so
    every resample holds every task. statistic: (..., S * K) -> (...). One seed has no interval (NaN).
    """
    size, tasks = scores.shape
    estimate = float(statistic(scores.reshape(-1)))
    if size < 2:
        return Interval(estimate, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(size, size=(resamples, size, tasks))
    resampled = statistic(scores[drawn, np.arange(tasks)].reshape(resamples, -1))
    return bootstrap_interval(np.concatenate([[estimate], resampled]), level)


def seed_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over training seeds with Student's t interval: (S,) -> Interval; one seed has no interval, none no mean.

    For the paired interval of two methods trained from the same seeds, pass their differences by seed.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    quantile = special.stdtrit(len(values) - 1, (1 + level) / 2)  # stats.t.ppf, but fast enough for the explorer
    half = quantile * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half))


def seeds_needed(differences: ArrayLike) -> float:
    """How many seeds would tell two methods apart, if the difference and the spread seen so far were the true ones.

    differences: (S,) of two methods, paired by seed. The smallest number of seeds, at least 2, with which a two-sided
    paired t-test at `SIGNIFICANCE` finds such a difference with probability `POWER`: inf for equal means and beyond
    `MOST_SEEDS`; NaN for fewer than two differences and where all of them are 0.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2 or not differences.any():
        return np.nan
    mean, spread = abs(differences.mean()), differences.std(ddof=1)
    if mean == 0:
        return np.inf
    if spread <= 1e-12 * mean:  # equal differences, but for rounding
        return 2.0
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, POWER, key=lambda seeds: t_test_power(mean / spread, seeds))
    return float(counts[place]) if place < len(counts) else np.inf


def t_test_power(effect: float, seeds: int) -> float:
    """The probability that a two-sided paired t-test at `SIGNIFICANCE` finds a true effect: noncentral t.

    effect: mean / standard deviation of the differences, at least 0.
    """
    freedom, noncentrality = seeds - 1, effect * np.sqrt(seeds)
    boundary = stats.t.ppf(1 - SIGNIFICANCE / 2, freedom)
    wrong_side = stats.nct.cdf(-boundary, freedom, noncentrality)  # SciPy gives NaN where it is next to 0
    return float(stats.nct.sf(boundary, freedom, noncentrality) + np.nan_to_num(wrong_side))
