"""DExperts: two experts steer a base model while it decodes; the base itself is not trained.

Liu et al. 2021, "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts". The experts are
language models with the base's vocabulary, fine-tuned with `train_sft` on wanted and on unwanted texts. Each token is
drawn in four steps:

1. take the base's logits z and mask forbidden tokens;
2. take the base's nucleus: its most likely tokens up to mass top_p, including the token that crosses top_p;
3. compute z + alpha (z+ - z-) from untruncated experts, then mask the tokens outside the nucleus (masked earlier, a
   difference of two infinities would be NaN);
4. draw from the remaining tokens, without a second nucleus.

As in the authors' code, the nucleus is taken at temperature 1, and the sampler's temperature divides the combined
logits. The paper does not say what happens to forbidden tokens, and to EOS before the minimum completion length. Here
they are masked before the nucleus is taken, so that they use none of its mass.
"""

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.profiles import SamplingSettings
from rarlhf_nb.core.seeding import seeded
from rarlhf_nb.training.policy import ActorCritic, Episodes, check_context, sampler_logits, token_log_probs, until_eos


def nucleus_mask(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """True on the nucleus: the tokens before which the more likely tokens have a total mass of at most top_p.

    keep(v) = [ sum_{u more likely than v} softmax(logits)_u <= top_p ]. So the token that crosses top_p is kept, and
    the most likely token always is. top_p = 1 keeps every token. logits: (..., V) -> bool (..., V).
    """
    if top_p >= 1:  # rounding could lift the sum of the more likely ones above 1
        return torch.ones_like(logits, dtype=torch.bool)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1).cumsum(-1)
    kept = torch.ones_like(mass, dtype=torch.bool)
    kept[..., 1:] = mass[..., :-1] <= top_p
    return torch.empty_like(kept).scatter_(-1, order, kept)


def combined_logits(
    base: torch.Tensor, expert: torch.Tensor | None, anti_expert: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """z + alpha (z+ - z-): the logits of P(x) (P+(x) / P-(x))^alpha, all (..., V).

    The base stands in for a missing expert or anti-expert: without an expert the result is (1 + alpha) z - alpha z-.
    No input may be truncated (-inf - -inf is NaN); the nucleus is masked afterwards.
    """
    base = base.to(torch.promote_types(base.dtype, torch.float32))  # a large alpha would amplify bf16's rounding
    expert = base if expert is None else expert.to(base.dtype)
    anti_expert = base if anti_expert is None else anti_expert.to(base.dtype)
    return base + alpha * (expert - anti_expert)


class DExperts:
    """A base policy steered by an expert, an anti-expert or both; a `Policy`, for evaluation only.

    `token_log_probs` describes its own decoding, including the nucleus. Calling it gives the combined logits of the
    whole vocabulary, since most human texts have probability 0 under a nucleus.

    Args:
        base: the model that writes.
        expert: a model of wanted texts; None stands for the base.
        anti_expert: a model of unwanted texts; None stands for the base.
        alpha: the strength of the steering; 0 is none.
        top_p: the mass of the base's nucleus.

    Raises:
        UserError: both experts are missing, or the vocabulary of one differs from the base's.
    """

    def __init__(
        self,
        base: ActorCritic,
        expert: ActorCritic | None,
        anti_expert: ActorCritic | None,
        alpha: float,
        top_p: float = 0.9,
    ) -> None:
        if expert is None and anti_expert is None:
            raise UserError("DExperts has neither expert nor anti_expert: give at least one of them")
        _check_vocabulary(base, expert, "expert")
        _check_vocabulary(base, anti_expert, "anti_expert")
        self.base, self.expert, self.anti_expert = base, expert, anti_expert
        self.alpha, self.top_p = alpha, top_p
        self.prefix_ids: list[int] = []  # each model reads its own

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        return self.base.processing_class

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def forbidden_ids(self) -> list[int]:
        return self.base.forbidden_ids

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Combined logits (B, T, V), not truncated, and values (B, T), all 0 since there is no critic."""
        logits = combined_logits(*self._all_logits(input_ids, attention_mask, completion_length), self.alpha)
        return logits, logits.new_zeros(logits.shape[:2])

    @torch.no_grad()
    def token_log_probs(self, episodes: Episodes, sampling: SamplingSettings) -> torch.Tensor:
        """log pi(a_t | s_t) (B, T) of episodes that it sampled itself; 0 on padding.

        Every completion token is treated as part of the nucleus. It was when it was drawn; but logits round differently
        without the key-value cache, and a token at the edge of the nucleus could get -inf and spoil every mean. Texts
        from elsewhere must therefore be scored with the combined logits.
        """
        mask = episodes.completion_mask
        ids = torch.cat([episodes.prompt_ids, episodes.completion_ids], 1)
        logits = self._all_logits(ids, torch.cat([episodes.prompt_mask, mask], 1), mask.shape[1])
        decoded = self.decoding_logits(*logits, sampling, drawn=episodes.completion_ids)
        return token_log_probs(decoded, episodes.completion_ids).masked_fill(~mask, 0.0)

    @torch.no_grad()
    def sample(self, prompts: list[str], sampling: SamplingSettings, seed: int) -> Episodes:
        """Draw one completion for each prompt. The same prompts, weights and seed give the same completions.

        Raises `UserError` where the longest prompt leaves no room for the completion.
        """
        prompt_ids, prompt_mask = self.base.tokenize(prompts)
        for policy in (self.base, self.expert, self.anti_expert):
            if policy is not None:
                check_context(policy, len(policy.prefix_ids) + prompt_ids.shape[1], sampling.completion_length)
        given, mask = self.base.prefixed(prompt_ids, prompt_mask)
        settings = GenerationConfig(
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=sampling.completion_length,
            pad_token_id=self.processing_class.pad_token_id,
            eos_token_id=self.processing_class.eos_token_id,
        )
        steering = _Steering(self, prompt_ids, prompt_mask, sampling)  # applies masks and temperature as well
        with seeded(seed, self.device):
            ids = self.base.model.generate(
                input_ids=given,
                attention_mask=mask.long(),
                generation_config=settings,
                logits_processor=LogitsProcessorList([steering]),
            )
        completion_ids = ids[:, given.shape[1] :]
        completion_mask = until_eos(completion_ids, self.processing_class.eos_token_id)
        completions = self.base.completion_texts(prompt_ids, prompt_mask, completion_ids, completion_mask)
        return Episodes(list(prompts), completions, prompt_ids, prompt_mask, completion_ids, completion_mask)

    def decoding_logits(
        self,
        base: torch.Tensor,
        expert: torch.Tensor | None,
        anti_expert: torch.Tensor | None,
        sampling: SamplingSettings,
        drawn: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The logits that `sample` draws from, steps 1 to 4 above, given the logits of the models, all (B, T, V).

        drawn: (B, T) token ids that are kept even outside the nucleus.
        """
        forbidden = self.forbidden_ids, self.processing_class.eos_token_id
        kept = nucleus_mask(
            sampler_logits(base, sampling.model_copy(update={"temperature": 1.0}), *forbidden), self.top_p
        )
        if drawn is not None:
            kept.scatter_(-1, drawn.unsqueeze(-1), True)
        logits = sampler_logits(combined_logits(base, expert, anti_expert, self.alpha), sampling, *forbidden)
        return logits.masked_fill(~kept, torch.finfo(logits.dtype).min)

    def _all_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> list[torch.Tensor | None]:
        """Logits (B, T, V) of base, expert and anti-expert; None for a missing one."""
        return [
            None if policy is None else policy(input_ids, attention_mask, completion_length)[0]
            for policy in (self.base, self.expert, self.anti_expert)
        ]


class _Steering(LogitsProcessor):
    """Turns the base's next-token logits into those of DExperts, while the experts read the text so far."""

    def __init__(
        self, method: DExperts, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, sampling: SamplingSettings
    ) -> None:
        self.method, self.sampling = method, sampling
        self.step = 0  # tokens drawn so far
        self.readers = [
            None if policy is None else _CachedReader(policy, prompt_ids, prompt_mask)
            for policy in (method.expert, method.anti_expert)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Next-token logits (B, V). input_ids: (B, P + step), the tokens that the base has read."""
        drawn = input_ids[:, input_ids.shape[1] - self.step :]
        expert, anti_expert = (
            None if reader is None else reader.read(drawn[:, -1:]).unsqueeze(1) for reader in self.readers
        )
        still_without_eos = max(self.sampling.minimum_completion_length - self.step, 0)
        rest = self.sampling.model_copy(update={"minimum_completion_length": still_without_eos})
        self.step += 1
        return self.method.decoding_logits(scores.unsqueeze(1), expert, anti_expert, rest).squeeze(1)


class _CachedReader:
    """A policy that reads B texts token by token and keeps them in its key-value cache."""

    def __init__(self, policy: ActorCritic, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> None:
        self.policy, self.cache = policy, None
        self.unread, self.mask = policy.prefixed(prompt_ids, prompt_mask)

    def read(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits (B, V) after token_ids (B, 0 or 1); the first call reads the prompt before them."""
        ids = torch.cat([self.unread, token_ids], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(token_ids, dtype=torch.bool)], 1)
        positions = (self.mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.policy.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **({"position_ids": positions} if self.policy.takes_positions else {}),
        )
        self.unread, self.cache = ids[:, :0], output.past_key_values
        return output.logits[:, -1]


def _check_vocabulary(base: ActorCritic, other: ActorCritic | None, name: str) -> None:
    if other is None:
        return
    if other.processing_class.get_vocab() != base.processing_class.get_vocab():
        raise UserError(
            f"the {name}'s tokenizer has another vocabulary than the base's "
            f"({len(other.processing_class)} and {len(base.processing_class)} tokens), so their logits cannot be "
            f"added: train the {name} from a model of the base's family"
        )
    sizes = [policy.model.config.get_text_config().vocab_size for policy in (other, base)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the {name} scores a vocabulary of {sizes[0]} tokens, the base one of {sizes[1]}, so their logits cannot "
            "be added: resize the embeddings of one of them"
        )
