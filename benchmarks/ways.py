"""Ways to train that depart from the paper's in one place each: trainers of the studies `repairs` and `ru_cost`."""

from dataclasses import replace

import torch

from rarlhf_nb.ppo import dense_rewards, generalized_advantages, masked_mean, whiten
from rarlhf_nb.risk import kept_episodes, tail_count
from rarlhf_nb.rollout import Batch, Rollout, Targets
from rarlhf_nb.seeding import hash_seed, uniforms
from rarlhf_nb.trainer import CVaRPPOTrainer

B = 128  # of both pocket profiles


class UpdatedOnAll(CVaRPPOTrainer):
    """All episodes go through the update, and `update_batch` decides what the dropped ones do there."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        return replace(
            super().select(rollout, targets, kept),
            updated=torch.arange(len(rollout.env_rewards)),
            weights=torch.ones_like(rollout.env_rewards),
        )


class CriticOnAll(UpdatedOnAll):
    """Advantages whitened over the whole batch, the critic trained on it, and the policy on the kept episodes."""

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        advantages = torch.zeros_like(batch.advantages)
        # the policy's loss stays the mean over the kept tokens, since all completions are of one length here
        advantages[targets.tail] = batch.advantages[targets.tail] * len(advantages) / len(targets.tail)
        return replace(batch, advantages=advantages)


class DroppedHeld(UpdatedOnAll):
    """A dropped episode is pulled back by its KL to go, on the scale of the kept advantages; the rest is the paper's.

    The critic is held at its own values there.
    """

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        tail, mask = targets.tail, rollout.completion_mask
        advantages, critic = self.kl_advantages(rollout, targets), batch.rollout.values.clone()
        advantages[tail] = whiten(targets.advantages[tail], mask[tail])
        critic[tail] = batch.value_targets[tail]
        # as in the paper, the losses of the kept are divided by their own number
        weights = batch.weights * len(mask) / len(tail)
        return replace(batch, advantages=advantages, value_targets=critic, weights=weights)

    def kl_advantages(self, rollout: Rollout, targets: Targets) -> torch.Tensor:
        """- beta times the log-ratio to go, less its mean over the dropped episodes: (B, T)."""
        tail, mask = targets.tail, rollout.completion_mask
        dropped = torch.ones(len(mask), dtype=torch.bool).index_fill(0, tail, False)
        if not dropped.any():
            return torch.zeros_like(targets.advantages)
        nothing = torch.zeros_like(rollout.env_rewards)
        rewards = dense_rewards(nothing, rollout.log_probs, rollout.ref_log_probs, mask, self.kl_coef)
        to_go, _ = generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
        mean = masked_mean(to_go[dropped], mask[dropped])
        return (to_go - mean) / targets.advantages[tail][mask[tail]].std()


class CVaRGradient(CVaRPPOTrainer):
    """Eq. 7: the advantage of each token of a kept episode is its return less VaR, the highest kept return."""

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        returns = targets.returns[targets.tail]
        return replace(batch, advantages=(returns - returns.max()).unsqueeze(1).expand_as(batch.advantages))


class RankedByPrompt(CVaRPPOTrainer):
    """Episodes are ranked by the critic's value at the last token of the prompt: hard prompts, not bad luck."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        tail = kept_episodes(rollout.values[:, 0], kept)
        return replace(super().select(rollout, targets, kept), tail=tail, updated=tail)


class LargerBatch(CVaRPPOTrainer):
    """The work that an update saves buys episodes: B² / kept(m) are sampled, and the B lowest of them are updated."""

    def next_prompts(self) -> dict[str, list]:
        whole = replace(self.schedule, batch_size=B)
        size = sampled_for(whole.kept(self.iteration + 1), B)
        self.schedule = replace(whole, batch_size=size)
        self.args = self.args.model_copy(update={"batch_size": size})
        return super().next_prompts()


def sampled_for(kept: int, batch_size: int) -> int:
    """How many episodes are sampled, so that the same share of them as `kept` of B is B."""
    return batch_size**2 // kept


def with_share(share: float, kept: int, batch_size: int) -> int:
    """The episodes in an update that draws a share of those above VaR."""
    above = batch_size - kept
    return kept + (tail_count(share, above) if share and above else 0)


def above(rollout: Rollout, kept: int) -> torch.Tensor:
    """The episodes above VaR."""
    return rollout.env_rewards.sort(stable=True).indices[kept:]


class TailAlone(CVaRPPOTrainer):
    """Every episode above VaR is left out, after its advantage was whitened with the others: the share 0."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        targets = super().select(rollout, targets, kept)
        return replace(targets, weights=targets.weights.index_fill(0, above(rollout, kept), 0))


class DrawnUniformly(CVaRPPOTrainer):
    """Every episode above VaR is drawn with the same probability, whatever its advantages."""

    def drawn_weights(self, rollout: Rollout, advantages: torch.Tensor, kept: int) -> torch.Tensor:
        """The k lowest of independent uniform numbers."""
        weights, others = torch.ones_like(rollout.env_rewards), above(rollout, kept)
        if len(others) > 0:
            size = len(weights)
            (numbers,) = uniforms(hash_seed(self.seed, self.iteration), first=size, rows=1, length=size)
            drawn = torch.from_numpy(numbers)[others].argsort()[: tail_count(self.risk.above_share, len(others))]
            weights[others] = 0
            weights[others[drawn]] = len(others) / len(drawn)
        return weights
