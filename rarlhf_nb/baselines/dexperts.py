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

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from rarlhf_nb.conversations import Prompt
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, check_vocabulary
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


def combined_logits(base: torch.Tensor, expert: torch.Tensor, anti_expert: torch.Tensor, alpha: float) -> torch.Tensor:
    """z + alpha (z+ - z-): the logits of P(x) (P+(x) / P-(x))^alpha, all (..., V).

    No input may be truncated (-inf - -inf is NaN); the nucleus is masked afterwards.
    """
    base = base.to(torch.promote_types(base.dtype, torch.float32))  # a large alpha would amplify bf16's rounding
    return base + alpha * (expert.to(base.dtype) - anti_expert.to(base.dtype))


class DExperts:
    """A base policy steered by an expert and an anti-expert; a `Policy`, for evaluation only.

    Calling it gives the combined logits of the whole vocabulary, since most human texts have probability 0 under a
    nucleus.

    Args:
        base: the model that writes.
        expert: a model of wanted texts.
        anti_expert: a model of unwanted texts.
        alpha: the strength of the steering; 0 is none.
        top_p: the mass of the base's nucleus.

    Raises:
        UserError: the vocabulary of one of the experts differs from the base's.
    """

    def __init__(
        self, base: ActorCritic, expert: ActorCritic, anti_expert: ActorCritic, alpha: float, top_p: float = 0.9
    ) -> None:
        for name, policy in (("expert", expert), ("anti_expert", anti_expert)):
            check_vocabulary(policy, base, name, "their logits cannot be added")
            sizes = [each.model.config.get_text_config().vocab_size for each in (policy, base)]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"the {name} scores a vocabulary of {sizes[0]} tokens, the base one of {sizes[1]}, so their logits "
                    "cannot be added: resize the embeddings of one of them"
                )
        self.base, self.policies = base, (base, expert, anti_expert)
        self.alpha, self.top_p = alpha, top_p
        self.processing_class, self.device = base.processing_class, base.device
        self.prefix_ids: list[int] = []  # each model reads its own

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Combined logits (B, T, V), not truncated, and values (B, T), all 0 since there is no critic."""
        each = (policy(input_ids, attention_mask, completion_length)[0] for policy in self.policies)
        logits = combined_logits(*each, self.alpha)
        return logits, logits.new_zeros(logits.shape[:2])

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], sampling: SamplingSettings, seed: int, first: int = 0) -> Rollout:
        """Draw one completion for each prompt, as `ActorCritic.sample` does.

        Raises `UserError` if the longest prompt leaves no room for the completion.
        """
        prompt_ids, prompt_mask = self.base.tokenize(prompts)
        length = sampling.completion_length
        reading = [(policy, *policy.start(prompt_ids, prompt_mask, length)) for policy in self.policies]
        numbers = uniforms(seed, first, len(prompts), length)
        drawn = Completions(numbers, self.base.eos_ids, self.processing_class.pad_token_id, self.device)
        while drawn.growing:
            logits = [policy.logits_and_values(ids, mask, 1, cache=cache)[0] for policy, ids, mask, cache in reading]
            decoded = self.decoding_logits(logits, sampling, first=drawn.length)
            drawn.append(decoded, decoded.new_zeros(decoded.shape[:2]))
            reading = [(policy, drawn.last, pad(mask, (0, 1), value=True), cache) for policy, _, mask, cache in reading]
        return self.base.rollout(prompts, prompt_ids, prompt_mask, drawn)

    def decoding_logits(self, each: Sequence[torch.Tensor], sampling: SamplingSettings, first: int = 0) -> torch.Tensor:
        """The logits that `sample` draws from, steps 1 to 4 above, given those of each model, all (B, T, V).

        first: the place of the first of the T tokens in the completion.
        """
        forbidden = self.base.forbidden_ids, self.base.eos_ids
        untempered = sampling.model_copy(update={"temperature": 1.0})
        kept = nucleus_mask(sampler_logits(each[0], untempered, *forbidden, first), self.top_p)
        logits = sampler_logits(combined_logits(*each, self.alpha), sampling, *forbidden, first)
        return logits.masked_fill(~kept, torch.finfo(logits.dtype).min)
