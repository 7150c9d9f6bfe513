"""The equations of Quark (Lu et al. 2022), one function each, and its pool of completions.

Shapes: N scored completions in the pool, K quantiles; B episodes, T completion tokens, V tokens in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rarlhf_nb.errors import UserError
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import token_entropy, token_log_probs


def quantile_bins(rewards: torch.Tensor, quantiles: int) -> torch.Tensor:
    """Section 2.1: the quantile of each completion, 0 = best: (N,) -> (N,) int64.

    The completions are sorted by reward, highest first, ties in their order in the pool. They fall into K - 1 bins of
    floor(N / K) and a last, worst bin with the rest. Rewards are finite, since `Pool` drops missing ones.

    Raises `UserError` where there are fewer completions than quantiles.
    """
    check_pool(len(rewards), quantiles)
    order = rewards.argsort(descending=True, stable=True)
    bins = torch.empty_like(order)
    rank = torch.arange(len(rewards), device=rewards.device)
    bins[order] = (rank // (len(rewards) // quantiles)).clamp(max=quantiles - 1)
    return bins


def check_pool(completions: int, quantiles: int) -> None:
    """Raise `UserError` where a pool has fewer scored completions than quantiles."""
    if completions < quantiles:
        raise UserError(
            f"quark.quantiles = {quantiles}, but the pool holds {completions} scored completions, fewer than one per "
            "quantile; lower quark.quantiles or raise quark.exploration_prompts."
        )


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v)), exact, in nats: log-probabilities (..., V), (..., V) -> (...).

    The expectation is under p. Tokens that both forbid (`sampler_logits`) have probability 0 and contribute nothing.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass
class QuarkTerms:
    """The loss of each completion token and its terms; all (B, T), padding not yet masked."""

    loss: torch.Tensor
    log_likelihood: torch.Tensor
    kl_per_token: torch.Tensor
    entropy: torch.Tensor


def quark_terms(
    logits: torch.Tensor,
    ref_logits: torch.Tensor,
    token_ids: torch.Tensor,
    kl_coef: float,
    entropy_coef: float,
) -> QuarkTerms:
    """Eq. 2 as a loss, with the entropy bonus of the authors' code, per token:

    L_t = -log p_theta(y_t | x, y_<t, r_k) + beta KL_t - lambda H(p_theta(. | x, y_<t, r_k)),
    KL_t = KL(p_0(. | x, y_<t) || p_theta(. | x, y_<t, r_k)); the authors' code computes KL(p_theta || p_0).

    logits, ref_logits: (B, T, V) of p_theta and p_0, over the same V tokens; token_ids: (B, T).
    """
    policy, reference = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = kl_divergence(reference, policy)
    log_likelihood, entropy = token_log_probs(logits, token_ids), token_entropy(logits)
    return QuarkTerms(-log_likelihood + kl_coef * kl - entropy_coef * entropy, log_likelihood, kl, entropy)


class Pool:
    """Every explored completion with its reward; `quantise` computes the quantiles of all of them again."""

    def __init__(self) -> None:
        self.episodes: list[tuple[str, str, torch.Tensor, torch.Tensor]] = []  # texts, then ids without padding
        self.rewards: list[float] = []
        self.bins = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rewards)

    def add(self, episodes: Rollout, rewards: Sequence[float]) -> None:
        """Add B episodes, except those whose reward is missing (NaN)."""
        for i, reward in enumerate(rewards):
            if not np.isnan(reward):
                prompt = episodes.prompt_ids[i][episodes.prompt_mask[i]]
                completion = episodes.completion_ids[i][episodes.completion_mask[i]]
                self.episodes.append((episodes.prompts[i], episodes.completions[i], prompt, completion))
                self.rewards.append(reward)

    def quantise(self, quantiles: int) -> None:
        """Label the whole pool; the quantile of a completion may change as the pool grows."""
        self.bins = quantile_bins(torch.tensor(self.rewards, dtype=torch.float64), quantiles)

    def take(self, indices: Sequence[int], pad_id: int) -> Rollout:
        """The completions at `indices` (B,), padded to the longest one."""
        prompts, completions, prompt_ids, completion_ids = zip(*(self.episodes[i] for i in indices), strict=True)
        prompt_batch, completion_batch = _padded(prompt_ids, pad_id, "left"), _padded(completion_ids, pad_id, "right")
        return Rollout(list(prompts), list(completions), *prompt_batch, *completion_batch)

    def state(self) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        """The pool for a checkpoint: ids one after the other with their lengths, rewards; and the texts."""
        tensors = {"pool.rewards": torch.tensor(self.rewards, dtype=torch.float64)}
        for name, column in (("prompt", 2), ("completion", 3)):
            rows = [episode[column].cpu() for episode in self.episodes]
            tensors[f"pool.{name}_ids"] = torch.cat(rows)
            tensors[f"pool.{name}_lengths"] = torch.tensor([len(row) for row in rows])
        return tensors, [[prompt, completion] for prompt, completion, *_ in self.episodes]

    def load_state(self, tensors: dict[str, torch.Tensor], texts: list[list[str]], device: torch.device) -> None:
        """Restore what `state` gave, on the device of the policy."""
        prompts, completions = (
            tensors[f"pool.{name}_ids"].to(device).split(tensors[f"pool.{name}_lengths"].tolist())
            for name in ("prompt", "completion")
        )
        self.episodes = [(*pair, *ids) for pair, *ids in zip(texts, prompts, completions, strict=True)]
        self.rewards = tensors["pool.rewards"].tolist()


def _padded(rows: Sequence[torch.Tensor], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (B, L)."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(rows), batch_first=True, padding_value=pad_id, padding_side=side)
    # the mask is made from the lengths, since a tokenizer may pad with EOS
    ones = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return ids, pad(ones, batch_first=True, padding_value=False, padding_side=side)
