"""One policy pi(. | prompt, alpha) for every tail share: CVaR-PPO in groups, each of which trains for its own alpha.

A batch is cut into G groups of consecutive prompts. The first acts at alpha = 1, the last at alpha_min, and those
between at shares that are drawn anew in each iteration, log-uniformly, one from each of G - 2 equal intervals of
log alpha: the ends are always trained, and everything between them in time.

A group is a batch of its own in all that concerns the tail: it has its own VaR, its Rockafellar-Uryasev rewards are
whitened alone, and the soft-risk schedule falls for it as for the others until it reaches the group's alpha. The VaR is
that of the group's own rewards. An implicit quantile network (Dabney et al. 2018) would instead learn the quantiles of
the return from all groups, but would be one more network to train and to be wrong; and a group's quantile has the error
that the quantile of any batch of its size has. Then one update of policy and critic uses all episodes, and each episode
is read with its alpha. The reference is the SFT policy, which reads none.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, Reference
from rarlhf_nb.ppo import whiten
from rarlhf_nb.rewards import Reward
from rarlhf_nb.risk import kept_episodes, tail_count
from rarlhf_nb.risk_embedding import RiskEmbedding
from rarlhf_nb.rollout import Rollout, Targets
from rarlhf_nb.seeding import hash_seed
from rarlhf_nb.settings import ConditionedSettings, PPOSettings, RiskSettings, SamplingSettings, Section
from rarlhf_nb.trainer import CVaRPPOTrainer

DRAWS = 1  # tells this stream of random numbers from others with the same seed and iteration


class AlphaConditionedTrainer(CVaRPPOTrainer):
    """Fine-tune one policy for every tail share in [alpha_min, 1]; see the module.

    After `train()`, `policy.sample(prompts, sampling, seed, alpha=0.13)` acts for a tail share, and `policy.at(0.13)`
    is an ordinary policy that does so always.

    Args:
        model: gets a risk embedding, and from then on reads alpha.
        conditioned: see `settings`; its iterations and kl_coef replace those of `args`.
        risk: its schedule; alpha and the estimator are replaced by alpha_min and "rockafellar_uryasev".
        Others: see `CVaRPPOTrainer`.
    """

    title = "Conditioned PPO"

    def __init__(
        self,
        model: ActorCritic,
        reward_funcs: Reward | list[Reward],
        args: PPOSettings,
        risk: RiskSettings,
        sampling: SamplingSettings,
        conditioned: ConditionedSettings,
        reference: Reference | None = None,
        **options: Any,
    ) -> None:
        self.conditioned = conditioned
        if args.batch_size < 2 * conditioned.groups:
            raise UserError(
                f"conditioned.groups = {conditioned.groups} with ppo.batch_size = {args.batch_size}: a group of fewer "
                "than two episodes has no tail; lower the former or raise the latter."
            )
        reference = reference or Reference(model)
        size = model.model.get_input_embeddings().embedding_dim
        model.risk = RiskEmbedding(size, conditioned.alpha_min).to(model.value_head.weight)
        args = conditioned.training(args)
        risk = risk.model_copy(update={"alpha": conditioned.alpha_min, "estimator": "rockafellar_uryasev"})
        super().__init__(model, reward_funcs, args, risk, sampling, reference=reference, **options)
        self.groups = torch.arange(args.batch_size, device=model.device).tensor_split(conditioned.groups)

    def sections(self) -> dict[str, Section]:
        """Those of `CVaRPPOTrainer`, and `conditioned`."""
        return super().sections() | {"conditioned": self.conditioned}

    def group_alphas(self) -> list[float]:
        """The tail share of each group in the iteration under way, from 1 down to alpha_min."""
        between = len(self.groups) - 2
        draws = np.random.default_rng(hash_seed(self.seed, self.iteration, DRAWS)).random(between)
        places = [0.0, *((np.arange(between) + draws) / max(between, 1)), 1.0]
        return [float(self.conditioned.alpha_min**place) for place in places]

    def alphas(self, share: slice) -> torch.Tensor:
        """The tail share of each prompt in a rank's share of the batch, that of its group: (N,)."""
        sizes = torch.tensor([len(rows) for rows in self.groups])
        return torch.tensor(self.group_alphas()).repeat_interleave(sizes)[share]

    def group_kept(self, kept: int) -> list[int]:
        """The episodes in each group's tail while the schedule keeps `kept` of the whole batch."""
        shares = (max(alpha, kept / self.args.batch_size) for alpha in self.group_alphas())
        return [tail_count(share, len(rows)) for share, rows in zip(shares, self.groups, strict=True)]

    def shape_rewards(self, rollout: Rollout, kept: int) -> Targets:
        """Lines 2 and 3 for each group as for a batch of its own, its advantages whitened.

        All groups together then have mean 0 and variance 1 as well: the whitening of the whole batch changes nothing.
        """
        parts = []
        for rows, count in zip(self.groups, self.group_kept(kept), strict=True):
            group = rollout.take(rows)
            part = super().shape_rewards(group, count)
            parts.append(replace(part, advantages=whiten(part.advantages, group.completion_mask)))
        columns = zip(*((part.returns, part.advantages, part.value_targets) for part in parts), strict=True)
        return Targets(*map(torch.cat, columns))

    def statistics(self, rollout: Rollout, targets: Targets, losses: dict[str, float]) -> dict[str, float]:
        """Those of `CVaRPPOTrainer`, with `kept` of all groups' tails together, and the means of both end groups."""
        ends = {"alpha_1": self.groups[0], "alpha_min": self.groups[-1]}
        means = {f"env_reward_{end}": rollout.env_rewards[rows].mean().item() for end, rows in ends.items()}
        means |= {f"kl_{end}": rollout.kl[rows].mean().item() for end, rows in ends.items()}
        return super().statistics(rollout, targets, losses) | means

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        """Line 4: the lowest episodes of each group; the update uses all episodes."""
        tails, weights = [], []
        for rows, count in zip(self.groups, self.group_kept(kept), strict=True):
            tails.append(rows[kept_episodes(targets.returns[rows], count)])
            weights.append(self.drawn_weights(rollout.take(rows), targets.advantages[rows], count))
        return replace(targets, tail=torch.cat(tails), updated=torch.cat(self.groups), weights=torch.cat(weights))
