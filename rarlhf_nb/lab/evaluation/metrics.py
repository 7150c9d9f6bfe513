"""The metrics of tables of episodes, as statistics that can be resampled, and intervals over resamples and over seeds.

A statistic takes `weights`, how often each row counts: ones give the estimate, the rows of `bootstrap_weights` give its
resamples, and the same weights for two methods give their paired difference.
Shapes: N rows (episodes or texts), P prompts, R resamples, S training seeds; weights (..., N) -> statistic (...).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from rarlhf_nb.risk import check_alpha

Statistic = Callable[[np.ndarray], np.ndarray]  # weights (..., N) -> (...)
LEVEL = 0.95  # of every interval
SIGNIFICANCE, POWER = 0.05, 0.8  # of the t-tests that `seeds_needed` plans
MOST_SEEDS = 1_000_000  # beyond it, no number of seeds is said to be enough
DIST_SIZES = (1, 2, 3)
TOXIC = 0.5  # a text is toxic at this probability or above
ABSURD_PERPLEXITY = 1e4  # completions above it are left out, as in DExperts: a few of them would dominate the mean


class Interval(NamedTuple):
    """An estimate and both ends of its interval."""

    value: float
    low: float
    high: float


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_i w_i v_i / sum_i w_i; NaN if the weights sum to 0. (N,), (..., N) -> (...)."""
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

    The sum of the tail is piecewise linear in the share, so one pass over the rows serves all shares, which makes the
    explorer's hundred shares fast. It agrees with `tail_mean` up to rounding; the report keeps `tail_mean`.
    """
    order = np.argsort(keys, kind="stable")
    ordered = values[order]
    means = np.empty((len(shares), len(weights)))
    for resample, counts in enumerate(weights[:, order]):
        reached, totals = (np.append(0, np.cumsum(column)) for column in (counts, counts * ordered))
        sizes = shares * reached[-1]
        means[:, resample] = np.interp(sizes, reached, totals) / sizes
    return means


def perplexity(log_likelihoods: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over texts of exp(-log-likelihood / tokens), the paper's (and Hugging Face evaluate's) definition.

    The other definition in use, exp(-total / total tokens), weighs long texts more and is lower if texts differ.
    log_likelihoods: (N,) nats per text; tokens: (N,) scored tokens; a text without any is left out;
    weights: (..., N).
    """
    scored = tokens > 0
    text_perplexities = np.exp(-log_likelihoods[scored] / tokens[scored])
    return weighted_mean(text_perplexities, weights[..., scored])


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Dist-n: the number of different n-grams in all `texts` together, divided by the number of words.

    Words are split at single spaces, and no n-gram crosses from one text into the next. This is the definition of
    Li et al. 2016, DExperts and Quark, with which Dist-2 and Dist-3 cannot reach 1. Dist-n falls with the number of
    texts: compare equal numbers of texts only. NaN without words.
    """
    words = [text.strip(" ").split(" ") if text.strip(" ") else [] for text in texts]
    ngrams = {tuple(line[at : at + n]) for line in words for at in range(len(line) - n + 1)}
    total = sum(map(len, words))
    return len(ngrams) / total if total else float("nan")


def bootstrap_weights(count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` prompts is drawn when `count` are drawn with replacement: (1 + R, count).

    The first row is the sample itself, all ones, so the first value of a statistic is the estimate.
    """
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.vstack([np.ones(count, dtype=np.int64), drawn])


def bootstrap_interval(statistics: np.ndarray) -> Interval:
    """Estimate and 95 % percentile interval of a statistic over `bootstrap_weights`: (1 + R,) -> Interval.

    For a paired difference, pass one method's statistics minus the other's. Resamples in which the statistic does not
    exist (an empty tail) are left out; without an estimate everything is NaN.
    """
    estimate, resampled = float(statistics[0]), statistics[1:][~np.isnan(statistics[1:])]
    if np.isnan(estimate) or not len(resampled):
        return Interval(estimate, np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))


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
    paired t-test at `SIGNIFICANCE` finds such a difference with probability `POWER`, by the approximation of Guenther
    1981, at most a seed short: (z + z')^2 s^2 / d^2 + z^2 / 2. It is inf for equal means and beyond `MOST_SEEDS`; NaN
    for fewer than two differences, and if all of them are 0.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2 or not differences.any():
        return np.nan
    mean, spread = abs(differences.mean()), differences.std(ddof=1)
    test, power = special.ndtri([1 - SIGNIFICANCE / 2, POWER])
    needed = np.ceil(((test + power) * spread / mean) ** 2 + test**2 / 2) if mean else np.inf
    return float(needed) if needed <= MOST_SEEDS else np.inf


# The metrics of the report; `glossary` gives the formulas

OPTIONAL_MEANS = {
    "normalised_reward": "normalised reward (0 to 1)",
    "kl": "KL from the SFT policy (nats)",
    "completion_length": "completion length (tokens)",
}


class Metric(NamedTuple):
    """A metric's name for readers, the statistic that computes it, and how many rows the statistic averages."""

    name: str
    statistic: Statistic
    rows: float


def episode_metrics(
    table: pd.DataFrame, tail_threshold: float, tail_share: float, cvar_levels: Sequence[float]
) -> dict[str, Metric]:
    """The metrics of a table of episodes; that of an optional column only if the table has the column."""
    reward, score = (table[column].to_numpy(dtype=float) for column in ("reward", "prompt_score"))

    def mean(column: str, name: str) -> Metric:
        return Metric(name, partial(weighted_mean, table[column].to_numpy(dtype=float)), len(table))

    def mean_of(rows: pd.Series, name: str) -> Metric:
        chosen = rows.to_numpy(dtype=float)
        return Metric(name, lambda weights: weighted_mean(reward, weights * chosen), int(chosen.sum()))

    def lowest(keys: np.ndarray, share: float, name: str) -> Metric:
        return Metric(name, partial(tail_mean, reward, keys, share), share * len(table))

    percent = f"{100 * tail_share:g}"
    metrics = {
        "reward": mean("reward", "reward"),
        "tail_reward": mean_of(table["prompt_score"] <= tail_threshold, f"reward, prompts scored ≤ {tail_threshold:g}"),
        f"tail_reward_{percent}": lowest(score, tail_share, f"reward, lowest {percent} % of prompts"),
    }
    for level in cvar_levels:
        metrics[f"cvar_{100 * level:g}"] = lowest(reward, level, f"CVaR {100 * level:g} % of reward")
    for group in table["group"].value_counts().index[1:]:  # all but the largest
        metrics[f"reward[{group}]"] = mean_of(table["group"] == group, f"reward, group {group}")
    for column, name in OPTIONAL_MEANS.items():
        if column in table:
            metrics[column] = mean(column, name)
    if "base_log_likelihood" in table:
        metrics["completion_perplexity"] = _completion_perplexity(table)
    return metrics


def _completion_perplexity(table: pd.DataFrame) -> Metric:
    log_likelihoods, tokens = table["base_log_likelihood"].to_numpy(), table["completion_length"].to_numpy()
    sensible = np.exp(-log_likelihoods / np.maximum(tokens, 1)) < ABSURD_PERPLEXITY
    statistic = partial(perplexity, log_likelihoods, np.where(sensible, tokens, 0))
    return Metric("perplexity of completions, base model", statistic, int(sensible.sum()))


def held_out_metrics(texts: pd.DataFrame | None) -> dict[str, Metric]:
    """The perplexity of held-out texts (see `evaluate.held_out_log_likelihoods`), a statistic of weights over them."""
    if texts is None:
        return {}
    statistic = partial(perplexity, texts["log_likelihood"].to_numpy(), texts["tokens"].to_numpy())
    return {"perplexity": Metric("perplexity, held-out texts (lower is better)", statistic, len(texts))}


def pooled_dist(table: pd.DataFrame) -> dict[str, Metric]:
    """Dist-1/2/3 over all completions of the first sample together.

    They have no resamples: a resample repeats texts, and that alone lowers Dist-n.
    """
    completions = table.loc[table["seed"] == table["seed"].iloc[0], "completion"].tolist()

    def without_resamples(value: float) -> Statistic:
        return lambda weights: np.where(np.arange(len(weights)) == 0, value, np.nan)

    return {
        f"dist_{n}": Metric(f"Dist-{n}, all completions", without_resamples(distinct_n(completions, n)), len(table))
        for n in DIST_SIZES
    }


def sample_metrics(samples: pd.DataFrame | None, toxicity: bool) -> dict[str, Metric]:
    """Metrics of prompts with several completions each: statistics of weights over the P prompts.

    samples: an episodes table; `seed` tells the samples of a prompt apart. toxicity: whether the reward is civility, so
    that 1 - normalised_reward is the toxicity; RealToxicityPrompts defines its expected maximum and its probability.
    """
    if samples is None:
        return {}
    by_prompt = [samples.iloc[rows] for rows in samples.groupby(prompt_positions(samples)).indices.values()]
    count = len(by_prompt[0])
    values = {
        f"prompt_dist_{n}": (
            f"Dist-{n} of {count} completions per prompt",
            [distinct_n(rows["completion"].tolist(), n) for rows in by_prompt],
        )
        for n in DIST_SIZES
    }
    if toxicity and "normalised_reward" in samples:
        worst = np.array([1 - rows["normalised_reward"].min() for rows in by_prompt])
        values["expected_maximum_toxicity"] = f"expected maximum toxicity of {count}", worst
        values["toxicity_probability"] = f"toxicity probability, one of {count} ≥ {TOXIC}", worst >= TOXIC
    return {
        key: Metric(name, partial(weighted_mean, np.asarray(each, dtype=float)), len(by_prompt))
        for key, (name, each) in values.items()
    }


def prompt_positions(table: pd.DataFrame) -> np.ndarray:
    """The position of each episode's prompt within its sample (`seed`): (N,)."""
    return table.groupby("seed").cumcount().to_numpy()
