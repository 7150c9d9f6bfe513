"""Drawing completions token by token, and the distribution that they are drawn from.

The sampler forbids some tokens and divides the logits by a temperature. Each token is drawn by inverting the
distribution function at a uniform number that is fixed beforehand by the seed and the episode's place in the batch, so
that a batch may be cut into parts without a change of any completion.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from rarlhf_nb.settings import SamplingSettings


class Completions:
    """The completions of B prompts, which grow by one token at a time until each has ended with EOS.

    uniforms: (B, most tokens) in [0, 1), see `seeding.uniforms`. eos_ids: each ends a completion. `last` is the token
    that came last, (B, 1); `length` is the number of tokens so far.
    """

    last: torch.Tensor

    def __init__(self, uniforms: np.ndarray, eos_ids: list[int], pad_id: int, device: torch.device) -> None:
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.eos_ids, self.pad_id = eos_ids, pad_id
        self.unfinished = torch.ones(len(uniforms), 1, dtype=torch.bool, device=device)
        self.columns = []

    @property
    def length(self) -> int:
        return len(self.columns)

    @property
    def growing(self) -> bool:
        return self.length < self.uniforms.shape[1] and bool(self.unfinished.any())

    def append(self, logits: torch.Tensor, values: torch.Tensor) -> None:
        """Draw the next token of each episode.

        logits: (B, 1, V) of the sampler's distribution. values: (B, 1) of the states in which the tokens are drawn.
        Raises `FloatingPointError` if the logits are not finite.
        """
        log_probs = logits.squeeze(1).log_softmax(-1)
        probabilities = log_probs.exp()
        ids = invert_distribution(probabilities, self.uniforms[:, self.length]).unsqueeze(1)
        self.last = ids.masked_fill(~self.unfinished, self.pad_id)
        entropy = -torch.linalg.vecdot(probabilities, log_probs).unsqueeze(1)
        self.columns.append((self.last, self.unfinished, log_probs.gather(1, self.last), values, entropy))
        for eos_id in self.eos_ids:
            self.unfinished = self.unfinished & (self.last != eos_id)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Ids, mask, log-probabilities, values and entropies, (B, T) each; the last three are 0 on padding."""
        ids, mask, *numbers = (torch.cat(column, 1) for column in zip(*self.columns, strict=True))
        return ids, mask, *(number.masked_fill(~mask, 0.0) for number in numbers)


def invert_distribution(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first token up to which the probabilities add up to more than u: (B, V), (B,) in [0, 1) -> (B,).

    Raises `FloatingPointError` for probabilities that are not finite.
    """
    mass = probabilities.cumsum(-1, dtype=torch.float64)
    if not mass[:, -1].isfinite().all():
        raise FloatingPointError("the policy's probabilities are not finite")
    return torch.searchsorted(mass, (uniforms * mass[:, -1]).unsqueeze(1), right=True).squeeze(1)


def roomy_cache(config: PreTrainedConfig, length: int) -> DynamicCache:
    """An empty cache for the causal LM of `config`, whose growing layers have room for `length` tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """A layer of the cache that writes new keys and values behind the old ones, instead of copying all at each step."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DynamicLayer.update`."""
        start, new = self.get_seq_length(), (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self.whole = [part.new_empty(*part.shape[:-2], self.length, part.shape[-1]) for part in new]
        end = start + key_states.shape[-2]
        for whole, part in zip(self.whole, new, strict=True):
            whole[..., start:end, :] = part
        self.keys, self.values = (whole[..., :end, :] for whole in self.whole)
        return self.keys, self.values


def sampler_logits(
    logits: torch.Tensor, sampling: SamplingSettings, forbidden_ids: list[int], eos_ids: list[int], first: int = 0
) -> torch.Tensor:
    """The logits of the sampler's distribution: divided by the temperature, forbidden tokens masked.

    logits: (B, T, V) of the tokens at the places first ... first + T - 1 of the completion. `forbidden_ids` are masked
    everywhere, EOS before the minimum completion length.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
    masked = forbidden_tokens(logits, sampling, forbidden_ids, eos_ids, first)
    # the lowest finite number, not -inf: probability 0 and a contribution of 0, not NaN, to the entropy
    return logits.masked_fill(masked, torch.finfo(logits.dtype).min)


def forbidden_tokens(
    logits: torch.Tensor, sampling: SamplingSettings, forbidden_ids: list[int], eos_ids: list[int], first: int = 0
) -> torch.Tensor:
    """True on the tokens that the sampler never draws: (T, V) for logits (B, T, V)."""
    masked = torch.zeros(logits.shape[1:], dtype=torch.bool, device=logits.device)
    masked[:, forbidden_ids] = True
    masked[: max(sampling.minimum_completion_length - first, 0), eos_ids] = True
    return masked


def token_log_probs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[token]: (B, T, V), (B, T) -> (B, T)."""
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: torch.Tensor) -> torch.Tensor:
    """H(softmax(logits)) in nats: (B, T, V) -> (B, T)."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


class SampledLogProbs(torch.autograd.Function):
    """`token_log_probs` of `sampler_logits`, (B, T, V), (B, T) -> (B, T), in the memory of the logits.

    The logits are a model's output that nobody else needs: they are overwritten, in the backward pass by their
    gradient. Written plainly, the same would hold six further tensors of their size, the largest of the whole update.
    masked: (T, V), see `forbidden_tokens`.
    """

    @staticmethod
    def forward(ctx, logits, token_ids, masked, temperature):
        work = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        if temperature != 1:
            work.div_(temperature)
        work.masked_fill_(masked, torch.finfo(work.dtype).min)
        # one episode at a time: what logsumexp holds besides stays in the processor's cache
        normaliser = torch.stack([row.logsumexp(-1) for row in work])
        ctx.save_for_backward(token_ids, normaliser)
        ctx.work, ctx.temperature, ctx.dtype = work, temperature, logits.dtype
        return work.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - normaliser

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        token_ids, normaliser = ctx.saved_tensors
        work, ctx.work = ctx.work, None
        gradient = gradient / ctx.temperature
        for row, norm, slope in zip(work, normaliser, gradient, strict=True):
            row.sub_(norm.unsqueeze(-1)).exp_().mul_(-slope.unsqueeze(-1))
        work.scatter_add_(-1, token_ids.unsqueeze(-1), gradient.unsqueeze(-1))
        return work.to(ctx.dtype), None, None, None
