"""The tail: VaR, CVaR, the soft-risk schedule, and the choice of the episodes that an iteration keeps.

Higher is better throughout, so the tail is the *lowest* share of the values. `alpha` is a fraction in (0, 1]; `kept`
is a count of episodes (the paper's draft calls both alpha').
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import ArrayLike

from rarlhf_nb.errors import UserError

LARGEST_DENOMINATOR = 10**7  # a float distinguishes all fractions with denominators up to this


def check_alpha(alpha: float) -> float:
    """Return `alpha`; raise `UserError` unless it lies in (0, 1]."""
    if not 0 < alpha <= 1:
        raise UserError(
            f"alpha = {alpha}: the tail share must lie in (0, 1]; 1 is plain RLHF, 0.4 is the paper's IMDB."
        )
    return alpha


def exact(share: float) -> Fraction:
    """The fraction that a float stands for: 0.2 is 1/5, though in binary it is a little more; 1 / 3 is a third."""
    share = float(share)
    return Fraction(share).limit_denominator(LARGEST_DENOMINATOR) or Fraction(share)


def tail_count(alpha: float, n: int) -> int:
    """⌈alpha n⌉ without round-off, at least one: the number of episodes in the tail of `n`."""
    return max(1, math.ceil(exact(check_alpha(alpha)) * n))


def _finite_sorted(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("values is empty: a tail needs at least one value")
    if np.isnan(values).any():
        raise ValueError("values holds NaN: an episode without a value has no rank; drop it or repair its value")
    return np.sort(values)


def var(values: ArrayLike, alpha: float) -> float:
    """Value at risk. Eq. 6: q_alpha(R) = inf{z : F_R(z) >= alpha}, the ⌈alpha N⌉-th lowest of the N values.

    values: (N,), higher is better. Ties need no rule, since tied values are equal. Raises `ValueError` for NaN and for
    an empty array, `UserError` for alpha outside (0, 1].
    """
    values = _finite_sorted(values)
    return float(values[tail_count(alpha, len(values)) - 1])


def cvar(values: ArrayLike, alpha: float) -> float:
    """Conditional value at risk: the mean of the lowest alpha share. Eq. 6: E[R | R <= q_alpha(R)].

    If alpha N is not whole, the boundary value counts with the remaining fraction. CVaR is then continuous in alpha and
    equal to max_eta eta - E[(eta - R)_+] / alpha (Rockafellar and Uryasev 2000). The order of ties cannot matter.
    values: (N,). Raises the errors of `var`.
    """
    values = _finite_sorted(values)
    kept = tail_count(alpha, len(values))
    boundary = alpha * len(values) - (kept - 1)
    return float((values[: kept - 1].sum() + boundary * values[kept - 1]) / (alpha * len(values)))


@dataclass(frozen=True)
class SoftRiskSchedule:
    """The number of episodes that each iteration keeps (eqs. 8-10): all, then fewer at a constant rate, then ⌈alpha B⌉.

    batch_size: B. alpha: the final tail share. iterations: M. warm_start: n, the number of first iterations that keep
    every episode. rho: the share of M at which alpha is reached. Raises `UserError` if these do not fit together.
    """

    batch_size: int
    alpha: float
    iterations: int
    warm_start: int
    rho: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not 0 < self.rho <= 1:
            raise UserError(f"rho = {self.rho}: the share of iterations at which alpha is reached must lie in (0, 1].")
        if not 0 <= self.warm_start < self.reached_at:
            raise UserError(
                f"warm_start = {self.warm_start}: n must be at least 0 and below ⌈rho M⌉ = {self.reached_at} "
                f"(rho = {self.rho}, iterations = {self.iterations}); lower warm_start or run more iterations."
            )

    @property
    def reached_at(self) -> int:
        """⌈rho M⌉, the first iteration that keeps ⌈alpha B⌉."""
        return math.ceil(exact(self.rho) * self.iterations)

    def kept(self, iteration: int) -> int:
        """kept(m), eqs. 8-10, for the iteration m counted from 1."""
        if iteration <= self.warm_start:
            return self.batch_size
        if iteration >= self.reached_at:
            return tail_count(self.alpha, self.batch_size)
        slope = (1 - exact(self.alpha)) / (self.reached_at - self.warm_start)
        return math.ceil(self.batch_size * (1 - slope * (iteration - self.warm_start)))

    def kept_counts(self) -> list[int]:
        """kept(1) ... kept(M)."""
        return [self.kept(iteration) for iteration in range(1, self.iterations + 1)]


def kept_episodes(returns: torch.Tensor, kept: int) -> torch.Tensor:
    """Alg. 1, line 4: the indices of the `kept` lowest returns, exactly that many, in batch order.

    returns: (B,) -> (kept,) int64. Of episodes that tie at the boundary the earlier ones are kept (stable order); the
    authors' code keeps them all. Raises `ValueError` for NaN.
    """
    if torch.isnan(returns).any():
        raise ValueError("returns holds NaN: an episode without a return has no rank")
    return torch.sort(returns, stable=True).indices[:kept].sort().values


def rockafellar_uryasev_rewards(rewards: torch.Tensor, kept: int) -> torch.Tensor:
    """Rewards whose plain mean is the batch's CVaR at alpha' = kept / B (Rockafellar and Uryasev 2000).

    r~ = eta + min(r - eta, 0) / alpha', and eta is the VaR of the batch at alpha'. rewards: (B,) -> (B,).
    Every episode counts in the update: a reward above eta counts as eta, and a shortfall below it is multiplied by
    1 / alpha'. The added constant eta changes no gradient of the policy; with it the mean is CVaR itself, and at
    alpha' = 1 r~ is r, so that the same code runs plain PPO.
    """
    if kept == rewards.shape[0]:
        return rewards
    eta = rewards.sort().values[kept - 1]
    return eta + (rewards - eta).clamp(max=0) * (rewards.shape[0] / kept)


def drawn_above(rewards: torch.Tensor, sizes: torch.Tensor, kept: int, share: float, number: float) -> torch.Tensor:
    """The weights of a batch in an update for which only a `share` of the episodes above VaR is drawn: (B,).

    The `kept` lowest rewards have weight 1. Of the n others, k = ⌈share n⌉ are drawn with probabilities in proportion
    to their sizes. A drawn one has the inverse of its probability as weight (Horvitz and Thompson 1952) and the rest 0:
    a weighted sum over the batch is unbiased, and less noisy the better the sizes predict what each adds. The draw is
    systematic: `number`, uniform in [0, 1), moves on in steps of 1 along the summed probabilities.
    rewards, sizes: (B,).
    """
    weights = torch.ones_like(rewards)
    above = rewards.sort(stable=True).indices[kept:]
    count = tail_count(share, len(above)) if len(above) > 0 else 0
    if count < len(above):
        chances = inclusion_probabilities(sizes[above], count)
        passed = (chances.cumsum(0) + number).floor().diff(prepend=chances.new_zeros(1))
        weights[above] = torch.where(passed > 0, 1 / chances, 0).to(weights.dtype)
    return weights


def inclusion_probabilities(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Probabilities in proportion to the sizes, at most 1, that add up to `count` < N: (N,) -> (N,) float64."""
    sizes = sizes.double().clamp(min=1e-300)  # if all are 0, all are alike
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while True:
        chances = (count - certain.sum()) * sizes / sizes[~certain].sum()
        if not (chances > 1 + 1e-9)[~certain].any():
            return chances.masked_fill(certain, 1).clamp(max=1)
        certain |= chances > 1
