"""What carries a batch: what was sampled, what was computed from it, and what is updated on.

Shapes: B sampled episodes, N updated ones, P prompt tokens (padded on the left), T completion tokens (padded on the
right). The numbers of padded tokens are 0.
"""

from dataclasses import dataclass, replace

import torch

from rarlhf_nb.conversations import Prompt


@dataclass(frozen=True)
class Rollout:
    """B sampled episodes: prompts with their completions, and what is known of them before the update.

    A policy's `sample` gives the texts, the tokens, its own numbers and alpha; the trainer adds the rest.
    """

    prompts: list[Prompt]
    completions: list[str]
    prompt_ids: torch.Tensor  # (B, P) int64
    prompt_mask: torch.Tensor  # (B, P) bool
    completion_ids: torch.Tensor  # (B, T) int64
    completion_mask: torch.Tensor  # (B, T) bool, EOS included
    log_probs: torch.Tensor | None = None  # (B, T) of the policy that drew the tokens
    values: torch.Tensor | None = None  # (B, T) of the critic
    entropy: torch.Tensor | None = None  # (B, T) of the distribution that each token was drawn from, nats
    alpha: torch.Tensor | None = None  # (B,) the tail share that a conditioned policy acted for
    ref_log_probs: torch.Tensor | None = None  # (B, T) of the reference
    env_rewards: torch.Tensor | None = None  # (B,) NaN if missing, which only Quark allows
    kl: torch.Tensor | None = None  # (B,) log-ratio of policy and reference, summed over the completion, nats

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """The number of real tokens in prompts and completions together."""
        return int(self.prompt_mask.sum() + self.completion_mask.sum())

    def take(self, rows: torch.Tensor) -> "Rollout":
        """The episodes at `rows` (K,), in that order."""
        return Rollout(**{name: _taken(column, rows) for name, column in vars(self).items()})

    def trimmed(self) -> "Rollout":
        """Ids and masks without the places that are padding in every episode; the numbers stay as they are."""
        prompt, completion = self.prompt_mask.any(0), self.completion_mask.any(0)
        return replace(
            self,
            prompt_ids=self.prompt_ids[:, prompt],
            prompt_mask=self.prompt_mask[:, prompt],
            completion_ids=self.completion_ids[:, completion],
            completion_mask=self.completion_mask[:, completion],
        )


def _taken(column: list[str] | torch.Tensor | None, rows: torch.Tensor) -> list[str] | torch.Tensor | None:
    if column is None:
        return None
    return [column[row] for row in rows.tolist()] if isinstance(column, list) else column[rows]


@dataclass(frozen=True)
class Targets:
    """What is computed from a rollout: returns, advantages and the critic's targets; then the selection."""

    returns: torch.Tensor  # (B,) environment reward - beta KL
    advantages: torch.Tensor  # (B, T)
    value_targets: torch.Tensor  # (B, T) of the critic
    tail: torch.Tensor | None = None  # (kept,) the lowest episodes, as indices into the batch, in batch order
    updated: torch.Tensor | None = None  # (N,) the episodes that the update stands for: the tail, or all of them
    weights: torch.Tensor | None = None  # (N,) of their losses; an episode of weight 0 costs nothing


@dataclass(frozen=True)
class Batch:
    """The N episodes of an update, with every number that their loss depends on."""

    rollout: Rollout
    advantages: torch.Tensor  # (N, T) whitened
    value_targets: torch.Tensor  # (N, T) of the critic
    weights: torch.Tensor  # (N,) of the losses; 0 for an episode that only fills up a rank's share

    def take(self, rows: torch.Tensor) -> "Batch":
        """The episodes at `rows` (K,), in that order."""
        return Batch(self.rollout.take(rows), self.advantages[rows], self.value_targets[rows], self.weights[rows])
