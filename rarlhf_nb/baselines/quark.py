"""Quark (Lu et al. 2022): sort what the policy says by its reward, and teach it to say what it is told to.

A pool of scored completions is cut into K quantiles. The policy learns each completion after its prompt and, before
the prompt, a token that names the completion's quantile; it then explores under the best quantile's token, the pool
grows, and is cut anew.

Departures, from the paper unless it says otherwise:
1. Log-likelihood, KL and entropy are those of the sampler's distribution (tempered, special tokens out, EOS out before
   the minimum length), as everywhere in this package; the authors' are of the bare logits.
2. The pool keeps token ids. The authors' code keeps text, tokenises it again, and loses EOS in doing so.
3. No adaptive controllers of beta and lambda, which the authors' code offers and leaves off.
4. An exploration may be on some of the prompts (`exploration_prompts`), each on the next ones of a seeded shuffle.
5. Under a LoRA adapter the reward tokens' embeddings learn with it; all other embeddings stay frozen.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import torch
from datasets import Dataset
from transformers import get_linear_schedule_with_warmup

from rarlhf_nb.baselines.quark_math import Pool, QuarkTerms, check_pool, quark_terms
from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.profiles import QuarkSettings, SamplingSettings
from rarlhf_nb.core.seeding import hash_seed, seeded, shuffled_stream
from rarlhf_nb.training.loop import TrainingLoop
from rarlhf_nb.training.policy import ActorCritic, Episodes, check_context, sampler_logits
from rarlhf_nb.training.ppo import masked_mean
from rarlhf_nb.worlds.rewards import Reward, check_rewards


def add_reward_tokens(policy: ActorCritic, quantiles: int, seed: int) -> list[int]:
    """Give the policy K special tokens, best quantile first, and return their ids.

    A copy of its tokenizer gets them, so that they are never sampled. Each one's embedding is drawn from a Normal with
    the mean and standard deviation of the existing embeddings, dimension by dimension. Raises `UserError` for a policy
    that has such tokens.
    """
    tokenizer, model = copy.deepcopy(policy.processing_class), policy.model
    names = [f"<|quantile_{k}|>" for k in range(quantiles)]
    tokens_before = len(tokenizer)
    added = tokenizer.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
    if added < quantiles:
        raise UserError("the policy already has reward tokens: Quark starts from a policy that it did not train.")
    old = model.get_input_embeddings().weight.detach()[:tokens_before]
    mean, std = old.float().mean(0), old.float().std(0)
    with seeded(seed, policy.device):
        # some models have more rows than their tokenizer has tokens: those suffice, or are added to
        model.resize_token_embeddings(max(len(tokenizer), _rows(model)), mean_resizing=False)
        drawn = mean + std * torch.randn(quantiles, len(mean)).to(mean.device)
    ids = tokenizer.convert_tokens_to_ids(names)
    model.get_input_embeddings().weight.data[ids] = drawn.to(old.dtype)
    policy.processing_class = tokenizer
    return ids


def _rows(model: torch.nn.Module) -> int:
    return len(model.get_input_embeddings().weight)


def train_these_rows(weight: torch.nn.Parameter, rows: list[int]) -> None:
    """Make a frozen matrix learn in `rows` alone: the others' gradient is 0."""

    def kept(gradient: torch.Tensor) -> torch.Tensor:
        masked = torch.zeros_like(gradient)
        masked[rows] = gradient[rows]
        return masked

    weight.requires_grad_(True).register_hook(kept)


class QuarkTrainer(TrainingLoop):
    """Quantised reward conditioning (Lu et al. 2022, Algorithm 1).

    model: trained in place; it gets K reward tokens, and reads the best one's before every prompt (`prefix_ids`) from
    then on, saved and loaded too. reward_funcs, train_dataset, log_file: as `CVaRPPOTrainer`'s, but that a reward may
    be missing (None or NaN). reference: p_0, which reads no reward token; the model as it is now unless given.

    `train()` runs all steps; iterating over the trainer runs them one by one and yields each one's statistics (keys in
    `glossary.QUARK_GLOSSARY`). `pool` holds what was explored.

    Raises `UserError` where an exploration has fewer prompts than there are quantiles.
    """

    title, unit = "Quark", "step"
    progress = {"reward": "env_reward_mean", "kl": "kl_per_token"}

    def __init__(
        self,
        model: ActorCritic,
        reward_funcs: Reward | list[Reward],
        args: QuarkSettings,
        sampling: SamplingSettings,
        train_dataset: Dataset,
        reference: ActorCritic | None = None,
        seed: int = 0,
        mixed_precision: str = "no",
        log_file: Path | None = None,
    ) -> None:
        check_pool(args.exploration_prompts or len(train_dataset), args.quantiles)
        super().__init__(model, args.steps, mixed_precision, log_file)
        self.args, self.sampling, self.seed = args, sampling, seed
        self.reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.train_dataset = train_dataset
        self.reference = reference or copy.deepcopy(model).requires_grad_(False)
        self.vocabulary = _rows(model.model)  # V, before the reward tokens
        self.reward_ids = add_reward_tokens(model, args.quantiles, hash_seed(seed, 0))
        # where a model has more rows than its tokenizer has tokens, the reward tokens are among the V
        self.forbidden_ids = [i for i in model.forbidden_ids if i < self.vocabulary]
        model.prefix_ids = self.reward_ids[:1]
        if isinstance(model.model, peft.PeftModel):
            train_these_rows(model.model.get_input_embeddings().weight, self.reward_ids)
        trainable = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=args.learning_rate, eps=args.adam_epsilon)
        self.schedule = get_linear_schedule_with_warmup(optimizer, args.warmup_steps, args.steps)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.pool = Pool()
        self.explored: dict[str, float] = {}  # statistics of the last exploration

    def run_iteration(self) -> dict[str, float]:
        """One gradient step; every `sample_interval` of them, before it, an exploration and new quantiles."""
        started = time.perf_counter()
        if self.iteration % self.args.sample_interval == 0:
            self.explored = self.explore()
            self.pool.quantise(self.args.quantiles)
        episodes, bins = self.next_batch()
        stats = self.update(episodes, bins)
        self.iteration += 1
        return {
            "step": self.iteration,
            **stats,
            "gradient_examples": self.iteration * self.args.batch_size,
            "gradient_tokens": episodes.tokens,
            "pool_size": len(self.pool),
            **self.explored,
            "seconds": time.perf_counter() - started,
        }

    def explore(self) -> dict[str, float]:
        """One completion of each of the next prompts into the pool: p_0's at first, then those under the best token."""
        exploration = self.iteration // self.args.sample_interval
        sampler = self.policy if exploration else self.reference
        size = len(self.train_dataset)
        count = self.args.exploration_prompts or size
        indices = shuffled_stream(size, self.seed, exploration * count, count)
        rewards, lengths = [], []
        for part, at in enumerate(range(0, count, self.args.batch_size)):
            columns = self.train_dataset[indices[at : at + self.args.batch_size]]
            prompts = columns.pop("prompt")
            with self.accelerator.autocast():
                episodes = sampler.sample(prompts, self.sampling, hash_seed(self.seed, exploration, part))
            # p_0 reads one token less than the policy will
            check_context(self.policy, 1 + episodes.prompt_ids.shape[1], self.sampling.completion_length)
            rewards.append(self.env_rewards(episodes, columns))
            lengths.append(episodes.completion_mask.sum(1))
            self.pool.add(episodes, rewards[-1])
        scored = pd.Series(np.concatenate(rewards))
        return {"env_reward_mean": scored.mean(), "completion_length": torch.cat(lengths).float().mean().item()}

    def env_rewards(self, episodes: Episodes, columns: dict[str, list]) -> np.ndarray:
        """The reward functions' sum for each episode (B,), NaN where one of them is missing."""
        texts = {"prompts": episodes.prompts, "completions": episodes.completions}
        return np.sum([check_scores(reward(**texts, **columns), **texts) for reward in self.reward_funcs], axis=0)

    def next_batch(self) -> tuple[Episodes, torch.Tensor]:
        """The coming mini-batch of the pool, in seeded shuffles cut into Bs, and its completions' quantiles (B,)."""
        exploration, at = divmod(self.iteration, self.args.sample_interval)
        batch = self.args.batch_size
        indices = shuffled_stream(len(self.pool), hash_seed(self.seed, exploration), at * batch, batch)
        return self.pool.take(indices, self.policy.processing_class.pad_token_id), self.pool.bins[indices]

    def update(self, episodes: Episodes, bins: torch.Tensor) -> dict[str, float]:
        """One gradient step on B completions and their quantiles (B,); the terms of its loss."""
        terms = self.terms(episodes, bins)
        means = {key: masked_mean(value, episodes.completion_mask) for key, value in vars(terms).items()}
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.zero_grad()
        self.accelerator.backward(means["loss"])
        if self.args.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return {key: value.item() for key, value in means.items()} | {"learning_rate": learning_rate}

    def terms(self, episodes: Episodes, bins: torch.Tensor) -> QuarkTerms:
        """The loss of every completion token, each episode read after its quantile's token."""
        reward_ids = torch.tensor(self.reward_ids, device=self.policy.device)[bins].unsqueeze(1)
        ids = torch.cat([episodes.prompt_ids, episodes.completion_ids], 1)
        mask = torch.cat([episodes.prompt_mask, episodes.completion_mask], 1)
        length = episodes.completion_ids.shape[1]
        with self.accelerator.autocast():
            with torch.no_grad():
                ref_logits, _ = self.reference(ids, mask, length)
            with without_prefix(self.policy):  # each episode has its own
                given = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
                logits, _ = self.wrapped(torch.cat([reward_ids, ids], 1), given, length)
        return quark_terms(
            self.sampled(logits),
            self.sampled(ref_logits),
            episodes.completion_ids,
            self.args.kl_coef,
            self.args.entropy_coef,
            self.args.kl_direction,
        )

    def sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """The sampler's logits, reward tokens cut off: (B, T, V + K) or (B, T, V) -> (B, T, V)."""
        eos_id = self.policy.processing_class.eos_token_id
        return sampler_logits(logits[..., : self.vocabulary], self.sampling, self.forbidden_ids, eos_id)


@contextmanager
def without_prefix(policy: ActorCritic) -> Iterator[None]:
    """The policy reads no prefix inside, and the one it had again outside."""
    prefix_ids, policy.prefix_ids = policy.prefix_ids, []
    try:
        yield
    finally:
        policy.prefix_ids = prefix_ids


def check_scores(rewards: Any, prompts: list[str], completions: list[str]) -> np.ndarray:
    """As `check_rewards`, but a score may be missing, None or NaN, and comes back as NaN: (B,)."""
    values = rewards.tolist() if hasattr(rewards, "tolist") else rewards
    if not isinstance(values, Iterable):
        return np.array(check_rewards(values, prompts, completions))  # says what is wrong
    values = list(values)
    missing = np.array([value is None or value != value for value in values])
    given = [0.0 if gone else value for value, gone in zip(values, missing, strict=True)]
    return np.where(missing, np.nan, check_rewards(given, prompts, completions))
