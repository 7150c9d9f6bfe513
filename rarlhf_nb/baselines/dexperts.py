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
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, Decoder
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import Completions, sampler_logits
from rarlhf_nb.seeding import uniforms
from rarlhf_nb.settings import SamplingSettings


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

    Calling it gives the combined logits of the whole vocabulary, since most human texts have probability 0 under a
    nucleus.

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
    def sample(self, prompts: list[str], sampling: SamplingSettings, seed: int, first: int = 0) -> Rollout:
        """Draw one completion for each prompt, as `ActorCritic.sample` does.

        Raises `UserError` where the longest prompt leaves no room for the completion.
        """
        prompt_ids, prompt_mask = self.base.tokenize(prompts)
        length = sampling.completion_length
        decoders = [
            None if policy is None else Decoder(policy, prompt_ids, prompt_mask, length)
            for policy in (self.base, self.expert, self.anti_expert)
        ]
        drawn = Completions(uniforms(seed, first, len(prompts), length), self.processing_class, self.device)
        while drawn.growing:
            logits = (None if decoder is None else decoder.read(drawn.last)[0] for decoder in decoders)
            decoded = self.decoding_logits(*logits, sampling, first=drawn.length)
            drawn.append(decoded, decoded.new_zeros(decoded.shape[:2]))
        return self.base.rollout(prompts, prompt_ids, prompt_mask, drawn)

    def decoding_logits(
        self,
        base: torch.Tensor,
        expert: torch.Tensor | None,
        anti_expert: torch.Tensor | None,
        sampling: SamplingSettings,
        first: int = 0,
    ) -> torch.Tensor:
        """The logits that `sample` draws from, steps 1 to 4 above, given the logits of the models, all (B, T, V).

        first: the place of the first of the T tokens in the completion.
        """
        forbidden = self.forbidden_ids, self.processing_class.eos_token_id
        kept = nucleus_mask(
            sampler_logits(base, sampling.model_copy(update={"temperature": 1.0}), *forbidden, first), self.top_p
        )
        logits = sampler_logits(combined_logits(base, expert, anti_expert, self.alpha), sampling, *forbidden, first)
        return logits.masked_fill(~kept, torch.finfo(logits.dtype).min)

    def _all_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> list[torch.Tensor | None]:
        """Logits (B, T, V) of base, expert and anti-expert; None for a missing one."""
        return [
            None if policy is None else policy(input_ids, attention_mask, completion_length)[0]
            for policy in (self.base, self.expert, self.anti_expert)
        ]


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
