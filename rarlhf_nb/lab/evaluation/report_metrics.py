"""Every metric of the report as a statistic that can be resampled; `glossary` gives the formulas.

Shapes: N rows of a table, P prompts; weights (..., N) -> statistic (...).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from rarlhf_nb.lab.evaluation.metrics import distinct_n, perplexity, tail_mean, weighted_mean

Statistic = Callable[[np.ndarray], np.ndarray]  # weights (..., N) -> (...)
DIST_SIZES = (1, 2, 3)
TOXIC = 0.5  # a text is toxic at this probability or above
ABSURD_PERPLEXITY = 1e4  # completions above it are left out, as in DExperts: a few of them would dominate the mean


class Metric(NamedTuple):
    """A metric's name for readers, the statistic that computes it, and how many rows the statistic averages."""

    name: str
    statistic: Statistic
    rows: float


def episode_metrics(
    table: pd.DataFrame, tail_threshold: float, tail_share: float, cvar_levels: Sequence[float]
) -> dict[str, Metric]:
    """The metrics of a table of episodes; a metric of an optional column only where the table has that column."""
    reward, score = (table[column].to_numpy(dtype=float) for column in ("reward", "prompt_score"))
    size = len(table)

    def where(condition: pd.Series) -> tuple[Statistic, int]:
        chosen = condition.to_numpy(dtype=float)
        return lambda weights: weighted_mean(reward, weights * chosen), int(chosen.sum())

    def lowest(keys: np.ndarray, share: float) -> tuple[Statistic, float]:
        return partial(tail_mean, reward, keys, share), share * size

    percent = f"{100 * tail_share:g}"
    return {
        "reward": Metric("reward", partial(weighted_mean, reward), size),
        "tail_reward": Metric(
            f"reward, prompts scored ≤ {tail_threshold:g}", *where(table["prompt_score"] <= tail_threshold)
        ),
        f"tail_reward_{percent}": Metric(f"reward, lowest {percent} % of prompts", *lowest(score, tail_share)),
        **{
            f"cvar_{100 * level:g}": Metric(f"CVaR {100 * level:g} % of reward", *lowest(reward, level))
            for level in cvar_levels
        },
        **{
            f"reward[{group}]": Metric(f"reward, group {group}", *where(table["group"] == group))
            for group in rare_groups(table)
        },
        **_means(table),
        **_completion_perplexity(table),
    }


def rare_groups(table: pd.DataFrame) -> list[str]:
    """Every group of prompts except the largest, ordered by size."""
    return table["group"].value_counts().index[1:].tolist()


def _means(table: pd.DataFrame) -> dict[str, Metric]:
    names = {
        "normalised_reward": "normalised reward (0 to 1)",
        "kl": "KL from the SFT policy (nats)",
        "completion_length": "completion length (tokens)",
    }
    return {
        column: Metric(name, partial(weighted_mean, table[column].to_numpy(dtype=float)), len(table))
        for column, name in names.items()
        if column in table
    }


def _completion_perplexity(table: pd.DataFrame) -> dict[str, Metric]:
    if "base_log_likelihood" not in table:
        return {}
    log_likelihoods, tokens = table["base_log_likelihood"].to_numpy(), table["completion_length"].to_numpy()
    sensible = np.exp(-log_likelihoods / np.maximum(tokens, 1)) < ABSURD_PERPLEXITY
    statistic = partial(perplexity, log_likelihoods, np.where(sensible, tokens, 0))
    return {"completion_perplexity": Metric("perplexity of completions, base model", statistic, int(sensible.sum()))}


def pooled_dist(table: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Dist-1/2/3 over all completions of the first sample together: key -> (name, value).

    They have no intervals: a resample repeats texts, and that alone lowers Dist-n.
    """
    completions = table.loc[table["seed"] == table["seed"].iloc[0], "completion"].tolist()
    return {f"dist_{n}": (f"Dist-{n}, all completions", distinct_n(completions, n)) for n in DIST_SIZES}


def sample_metrics(samples: pd.DataFrame, toxicity: bool) -> dict[str, Metric]:
    """Metrics of prompts with several completions each: statistics of weights over the P prompts.

    samples: an episodes table; `seed` tells the samples of a prompt apart. toxicity: whether the reward is civility, so
    that 1 - normalised_reward is the toxicity; RealToxicityPrompts defines its expected maximum and its probability.
    """
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
