"""Episodes: prompts with their completions, and what the policy that drew them knew of each token."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch


class Rows:
    """A dataclass of things with one row per episode."""

    def take(self, indices: torch.Tensor) -> Self:
        """The episodes at `indices` (K,), in that order."""
        return replace(self, **{field.name: _taken(getattr(self, field.name), indices) for field in fields(self)})


def _taken(value: list | torch.Tensor | Rows | None, indices: torch.Tensor) -> list | torch.Tensor | Rows | None:
    if isinstance(value, list):
        return [value[i] for i in indices.tolist()]
    return value.take(indices) if isinstance(value, Rows) else value if value is None else value[indices]


@dataclass
class TokenEvaluation(Rows):
    """The policy's and the critic's numbers for each completion token; all (B, T), 0 on padding."""

    log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor | None = None


@dataclass
class Episodes(Rows):
    """B prompts with their completions, as text and as tokens."""

    prompts: list[str]
    completions: list[str]
    prompt_ids: torch.Tensor  # (B, P) int64, left-padded
    prompt_mask: torch.Tensor  # (B, P) bool
    completion_ids: torch.Tensor  # (B, T) int64, right-padded
    completion_mask: torch.Tensor  # (B, T) bool, EOS included
    drawn: TokenEvaluation | None = None  # by the policy that drew them, at the moment it drew each token
    alpha: torch.Tensor | None = None  # (B,) the tail share that a conditioned policy acted for

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """The number of real tokens in prompts and completions together."""
        return int(self.prompt_mask.sum() + self.completion_mask.sum())
