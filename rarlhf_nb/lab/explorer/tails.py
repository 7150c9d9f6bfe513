"""The tails of several methods' rewards, measured once for every alpha, so that a slider need only look them up."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

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
    (100, 1 + R), the estimate first. kl: (1 + R,), the mean over episodes. kl, perplexity: NaN if not measured.
    """

    rewards: np.ndarray
    orders: dict[Ranking, np.ndarray]
    means: dict[Ranking, np.ndarray]
    kl: np.ndarray
    perplexity: float = float("nan")

    def tail(self, alpha: float, ranking: Ranking) -> np.ndarray:
        """The ⌈alpha N⌉ lowest episodes, lowest first."""
        return self.orders[ranking][: tail_count(alpha, len(self.rewards))]

    def threshold(self, alpha: float) -> float:
        """VaR_alpha of the rewards (eq. 6), like `risk.var`."""
        return float(self.rewards[self.tail(alpha, "reward")[-1]])

    def resampled(self, alpha: float, ranking: Ranking) -> np.ndarray:
        """The tail mean and its resamples: (1 + R,). By reward it is CVaR."""
        return self.means[ranking][alpha_index(alpha)]


class Slot(NamedTuple):
    """What is shown of a method: its tails, and the evaluated method that its texts come from."""

    method: str
    tails: Tails
    source: str


def alpha_index(alpha: float) -> int:
    """The index in `ALPHAS` of the step nearest to alpha."""
    return max(1, round(100 * check_alpha(alpha))) - 1


def measure_tails(
    episodes: dict[str, pd.DataFrame],
    resamples: int = 200,
    seed: int = 0,
    perplexities: dict[str, float] | None = None,
) -> dict[str, Tails]:
    """Measure everything that a move of the slider needs. All methods share the resampled prompts, as in `report`."""
    check_episodes(episodes)
    methods = method_order(episodes)
    positions = prompt_positions(episodes[methods[0]])
    weights = bootstrap_weights(positions.max() + 1, resamples, np.random.default_rng([seed, 0]))[:, positions]
    measured = {}
    for method in methods:
        rewards = episodes[method]["reward"].to_numpy(dtype=np.float64)
        keys = {ranking: episodes[method][ranking].to_numpy(dtype=np.float64) for ranking in RANKINGS}
        measured[method] = Tails(
            rewards,
            {ranking: np.argsort(keys[ranking], kind="stable") for ranking in RANKINGS},
            {ranking: tail_means(rewards, keys[ranking], weights, ALPHAS) for ranking in RANKINGS},
            _mean_kl(episodes[method], weights),
            (perplexities or {}).get(method, float("nan")),
        )
    return measured


def _mean_kl(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return weighted_mean(table["kl"].to_numpy(dtype=float), weights) if "kl" in table else np.full(len(weights), np.nan)
