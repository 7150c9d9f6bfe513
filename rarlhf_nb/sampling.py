"""Drawing completions token by token, and the distribution that they are drawn from.

The sampler forbids some tokens and divides the logits by a temperature. Each token is drawn by inverting the
distribution function at a uniform number that is fixed beforehand by the seed and the episode's place in the batch, so
that a batch may be cut into parts without a change of any completion.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rarlhf_nb.settings import SamplingSettings

if TYPE_CHECKING:
    from rarlhf_nb.policy import ActorCritic

ReadToken = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def draw_completions(
    read: ReadToken, uniforms: torch.Tensor, eos_id: int | None, pad_id: int
) -> tuple[torch.Tensor, ...]:
    """Completion ids and mask, and the log-probability, value and entropy of each token, 0 on padding: (B, T) each.

    read: takes the token that was drawn last (B, 1), nothing (B, 0) at first, and the number of tokens drawn so far;
    gives the logits of the next one (B, V) and the value (B,) of the state in which it is drawn.
    uniforms: (B, most tokens) in [0, 1). It ends when every episode has drawn EOS. Raises `FloatingPointError` where
    the logits are not finite.
    """
    last = uniforms.new_zeros(len(uniforms), 0, dtype=torch.int64)
    going = torch.ones(len(uniforms), dtype=torch.bool, device=uniforms.device)
    columns = []
    for step, uniform in enumerate(uniforms.unbind(1)):
        logits, values = read(last, step)
        log_probs = logits.log_softmax(-1)
        probabilities = log_probs.exp()
        ids = invert_distribution(probabilities, uniform).masked_fill(~going, pad_id)
        entropy = -torch.linalg.vecdot(probabilities, log_probs)
        last = ids.unsqueeze(1)
        columns.append((ids, going, log_probs.gather(1, last).squeeze(1), values, entropy))
        going = going & (ids != eos_id) if eos_id is not None else going
        if not going.any():
            break
    ids, mask, *numbers = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    return ids, mask, *(number.masked_fill(~mask, 0.0) for number in numbers)


def invert_distribution(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first token up to which the probabilities add up to more than u: (B, V), (B,) in [0, 1) -> (B,).

    Raises `FloatingPointError` for probabilities that are not finite.
    """
    mass = probabilities.cumsum(-1, dtype=torch.float64)
    if not mass[:, -1].isfinite().all():
        raise FloatingPointError("the policy's probabilities are not finite")
    return torch.searchsorted(mass, (uniforms * mass[:, -1]).unsqueeze(1), right=True).squeeze(1)


class Reader:
    """A policy that reads B prompts and then, token by token, up to `length` more; it keeps them in its cache.

    alpha: (B,) the tail share that a conditioned policy acts for.
    """

    def __init__(
        self,
        policy: "ActorCritic",
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        length: int,
        alpha: torch.Tensor | None = None,
    ) -> None:
        self.policy, self.length, self.alpha, self.cache = policy, length, alpha, None
        self.unread, self.mask = policy.prefixed(prompt_ids, prompt_mask)

    def read(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next-token logits (B, V) and values (B,) after token_ids (B, 0 or 1); the first call reads the prompt too."""
        ids = torch.cat([self.unread, token_ids], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(token_ids, dtype=torch.bool)], 1)
        output = self.policy.run(ids, self.mask, 1, self.alpha, past_key_values=self.cache, use_cache=True)
        if self.cache is None:
            self.cache = with_room(output.past_key_values, self.length)
        self.unread = ids[:, :0]
        return output.logits[:, -1], self.policy.values(output.hidden_states[-1][:, -1])


def with_room(cache: Cache, length: int) -> Cache:
    """The cache of a prompt, its growing layers replaced by ones with room for `length` more tokens."""
    if isinstance(cache, DynamicCache):
        cache.layers = [RoomyLayer(layer, length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """A layer of the cache that writes new keys and values behind the old ones, instead of copying all at each step."""

    def __init__(self, layer: DynamicLayer, length: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.whole = [torch.nn.functional.pad(part, (0, 0, 0, length)) for part in (layer.keys, layer.values)]
        self.keys, self.values = layer.keys, layer.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DynamicLayer.update`."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for part, new in zip(self.whole, (key_states, value_states), strict=True):
            part[..., start:end, :] = new
        self.keys, self.values = (part[..., :end, :] for part in self.whole)
        return self.keys, self.values


def sampler_logits(
    logits: torch.Tensor, sampling: SamplingSettings, forbidden_ids: list[int], eos_id: int | None, first: int = 0
) -> torch.Tensor:
    """The logits of the sampler's distribution: divided by the temperature, forbidden tokens masked.

    logits: (B, T, V) of the tokens at the places first ... first + T - 1 of the completion. `forbidden_ids` are masked
    everywhere, EOS before the minimum completion length.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
    masked = forbidden_tokens(logits, sampling, forbidden_ids, eos_id, first)
    # the lowest finite number, not -inf: probability 0 and a contribution of 0, not NaN, to the entropy
    return logits.masked_fill(masked, torch.finfo(logits.dtype).min)


def forbidden_tokens(
    logits: torch.Tensor, sampling: SamplingSettings, forbidden_ids: list[int], eos_id: int | None, first: int = 0
) -> torch.Tensor:
    """True where the sampler never draws the token: (T, V) for logits (B, T, V)."""
    masked = torch.zeros(logits.shape[1:], dtype=torch.bool, device=logits.device)
    masked[:, forbidden_ids] = True
    if eos_id is not None:
        masked[: max(sampling.minimum_completion_length - first, 0), eos_id] = True
    return masked


def token_log_probs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[token]: (B, T, V), (B, T) -> (B, T)."""
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: torch.Tensor) -> torch.Tensor:
    """H(softmax(logits)) in nats: (B, T, V) -> (B, T)."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def sampled_log_probs(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    sampling: SamplingSettings,
    forbidden_ids: list[int],
    eos_id: int | None,
) -> torch.Tensor:
    """`token_log_probs` of `sampler_logits`, (B, T, V), (B, T) -> (B, T), in the memory of the logits.

    The logits are a model's output that nobody else needs: they are overwritten, in the backward pass by their
    gradient. Written plainly, the same would hold six further tensors of their size, the largest of the whole update.
    """
    masked = forbidden_tokens(logits, sampling, forbidden_ids, eos_id)
    return _SampledLogProbs.apply(logits, token_ids, masked, sampling.temperature)


class _SampledLogProbs(torch.autograd.Function):
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
