"""The tails of several methods' rewards, measured once for every alpha, so that a slider need only look them up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rarlhf_nb.lab.evaluation.metrics import bootstrap_weights, prompt_positions, tail_means, weighted_mean
from rarlhf_nb.lab.evaluation.tables import check_episodes
from rarlhf_nb.lab.methods import method_order
from rarlhf_nb.risk import check_alpha, tail_count

Ranking = Literal["reward", "prompt_score"]
RANKINGS: dict[Ranking, str] = {"reward": "reward", "prompt_score": "prompt score"}
ALPHAS = np.arange(1, 101) / 100  # the slider's steps


@dataclass(frozen=True)
class Tails:
    """The episodes of a method in both orders, with the tail mean for every alpha in `ALPHAS` and every resample.

    rewards: (N,). orders[ranking]: (N,) episodes, lowest first, ties in the order of the table. means[ranking]:
    (100, 1 + R), the estimate first. kl: (1 + R,), the mean over episodes, NaN if it was not measured.
    """

    rewards: np.ndarray
    orders: dict[Ranking, np.ndarray]
    means: dict[Ranking, np.ndarray]
    kl: np.ndarray

    def tail(self, alpha: float, ranking: Ranking) -> np.ndarray:
        """The ⌈alpha N⌉ lowest episodes, lowest first."""
        return self.orders[ranking][: tail_count(alpha, len(self.rewards))]

    def threshold(self, alpha: float) -> float:
        """VaR_alpha of the rewards (eq. 6), like `risk.var`."""
        return float(self.rewards[self.tail(alpha, "reward")[-1]])

    def resampled(self, alpha: float, ranking: Ranking) -> np.ndarray:
        """The tail mean and its resamples: (1 + R,). By reward it is CVaR."""
        return self.means[ranking][alpha_index(alpha)]


def alpha_index(alpha: float) -> int:
    """The index in `ALPHAS` of the step nearest to alpha."""
    return max(1, round(100 * check_alpha(alpha))) - 1


def measure_tails(episodes: dict[str, pd.DataFrame], resamples: int = 200, seed: int = 0) -> dict[str, Tails]:
    """Measure everything that a move of the slider needs. All methods share the resampled prompts, as in `report`."""
    check_episodes(episodes)
    methods = method_order(episodes)
    positions = prompt_positions(episodes[methods[0]])
    weights = bootstrap_weights(positions.max() + 1, resamples, np.random.default_rng([seed, 0]))[:, positions]
    measured = {}
    for method in methods:
        table = episodes[method]
        rewards, keys = _floats(table, "reward"), {ranking: _floats(table, ranking) for ranking in RANKINGS}
        measured[method] = Tails(
            rewards,
            {ranking: np.argsort(keys[ranking], kind="stable") for ranking in RANKINGS},
            {ranking: tail_means(rewards, keys[ranking], weights, ALPHAS) for ranking in RANKINGS},
            weighted_mean(_floats(table, "kl"), weights) if "kl" in table else np.full(len(weights), np.nan),
        )
    return measured


def _floats(table: pd.DataFrame, column: str) -> np.ndarray:
    return table[column].to_numpy(dtype=np.float64)


def between(evaluated: Mapping[float, Tails], alpha: float) -> Tails:
    """The tails of one policy at `alpha` from those at a few alphas; outside these, those at the nearest one.

    Between two evaluated alphas a < b, with w = log(alpha / a) / log(b / a), the quantile function of the reward is

        Q_alpha(u) = (1 - w) Q_a(u) + w Q_b(u).

    VaR is a value of Q, and mean and CVaR are integrals of it, so they, their resamples, and the KL divergence are
    interpolated with the same weight; they agree with what would be computed from Q_alpha.

    evaluated: alpha -> tails, measured on the same prompts and resamples. The rewards of the answer are sorted, and
    have an order by reward only, since Q does not say which prompt a reward belongs to.
    """
    alphas = sorted(evaluated)
    place = float(np.interp(np.log(alpha), np.log(alphas), range(len(alphas))))
    low, high, weight = evaluated[alphas[math.floor(place)]], evaluated[alphas[math.ceil(place)]], place % 1

    def mixed(at_low: np.ndarray, at_high: np.ndarray) -> np.ndarray:
        return (1 - weight) * at_low + weight * at_high

    quantiles = mixed(np.sort(low.rewards), np.sort(high.rewards))
    return Tails(
        quantiles,
        {"reward": np.arange(len(quantiles))},
        {ranking: mixed(low.means[ranking], high.means[ranking]) for ranking in low.means},
        mixed(low.kl, high.kl),
    )


def steps_between(alphas: list[float], ratio: float = 1.05) -> list[float]:
    """The stops of a slider that looks continuous: at most `ratio` apart, ends included, in ascending order."""
    low, high = min(alphas), max(alphas)
    count = int(np.ceil(np.log(high / low) / np.log(ratio))) + 1
    return np.geomspace(low, high, max(count, 2)).round(4).tolist() if low < high else [low]
