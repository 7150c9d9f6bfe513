"""One policy at every alpha: what its evaluations at a few alphas say about the alphas between them.

Between two evaluated alphas a < b, with w = log(alpha / a) / log(b / a), the quantile function of the reward is

    Q_alpha(u) = (1 - w) Q_a(u) + w Q_b(u).

VaR is a value of Q, and mean and CVaR are integrals of it, so they, their resamples, and the KL divergence are
interpolated with the same weight; they agree with what would be computed from Q_alpha.
"""

import bisect
from collections.abc import Mapping

import numpy as np

from rarlhf_nb.lab.explorer.tails import Tails


def between(evaluated: Mapping[float, Tails], alpha: float) -> Tails:
    """The tails at `alpha`; outside the evaluated alphas, those of the nearest one.

    evaluated: alpha -> tails, measured on the same prompts and resamples. The rewards of the answer are sorted, and
    have an order by reward only, since Q does not say which prompt a reward belongs to.
    """
    (low, high), weight = neighbours(sorted(evaluated), alpha)
    first, second = evaluated[low], evaluated[high]

    def mixed(at_low: np.ndarray, at_high: np.ndarray) -> np.ndarray:
        return (1 - weight) * at_low + weight * at_high

    quantiles = mixed(np.sort(first.rewards), np.sort(second.rewards))
    return Tails(
        quantiles,
        {"reward": np.arange(len(quantiles))},
        {ranking: mixed(first.means[ranking], second.means[ranking]) for ranking in first.means},
        mixed(first.kl, second.kl),
        float(mixed(first.perplexity, second.perplexity)),
    )


def neighbours(alphas: list[float], alpha: float) -> tuple[tuple[float, float], float]:
    """The evaluated alphas around `alpha`, and the weight w of the upper one. alphas: in ascending order."""
    alpha = min(max(alpha, alphas[0]), alphas[-1])
    place = min(bisect.bisect_right(alphas, alpha), len(alphas) - 1)
    low, high = alphas[max(place - 1, 0)], alphas[place]
    return (low, high), float(np.log(alpha / low) / np.log(high / low)) if low < high else 0.0


def steps_between(alphas: list[float], ratio: float = 1.05) -> list[float]:
    """The stops of a slider that looks continuous: at most `ratio` apart, ends included, in ascending order."""
    low, high = min(alphas), max(alphas)
    count = int(np.ceil(np.log(high / low) / np.log(ratio))) + 1
    return np.geomspace(low, high, max(count, 2)).round(4).tolist() if low < high else [low]
