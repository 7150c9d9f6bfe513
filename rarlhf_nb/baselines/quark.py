"""Quark (Lu et al. 2022): label completions with the quantile of their reward, and train the policy on the labels.

A pool of scored completions is cut into K quantiles. The policy learns each completion, given its prompt and, before
the prompt, a token that names the completion's quantile. It then explores under the token of the best quantile, the
pool grows, and its quantiles are computed again.

Departures from the paper or, if so stated, from the authors' code:
1. Log-likelihood, KL and entropy are taken under the sampler's distribution (tempered, without special tokens, without
   EOS before the minimum length), as everywhere in this package; the authors take them from the bare logits.
2. The pool keeps token ids. The authors' code keeps text, tokenises it again, and so loses EOS.
3. There are no adaptive controllers of beta and lambda; the authors' code has them, switched off.
4. An exploration may use fewer than all prompts (`exploration_prompts`); each takes the next ones of a seeded shuffle.
5. With a LoRA adapter, the embeddings of the reward tokens are trained too; all other embeddings stay frozen.

Shapes: N scored completions in the pool, K quantiles; B episodes, T completion tokens, V tokens in the vocabulary.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import peft
import torch
from datasets import Dataset
from transformers import get_linear_schedule_with_warmup

from rarlhf_nb.checkpoint import Checkpoint
from rarlhf_nb.distributed import join
from rarlhf_nb.errors import UserError
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.monitor import check_completions, check_kl
from rarlhf_nb.policy import ActorCritic, check_context
from rarlhf_nb.ppo import masked_sum
from rarlhf_nb.rewards import Reward
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import sampler_logits, token_entropy, token_log_probs
from rarlhf_nb.seeding import hash_seed, seeded, shuffled_stream
from rarlhf_nb.settings import QuarkSettings, SamplingSettings


def quantile_bins(rewards: torch.Tensor, quantiles: int) -> torch.Tensor:
    """Section 2.1: the quantile of each completion, 0 = best: (N,) -> (N,) int64.

    The completions are sorted by reward, highest first, ties in their order in the pool. They fall into K - 1 bins of
    floor(N / K) and a last, worst bin with the rest. Rewards are finite, since the pool has no missing ones.

    Raises `UserError` if there are fewer completions than quantiles.
    """
    check_pool(len(rewards), quantiles)
    order = rewards.argsort(descending=True, stable=True)
    bins = torch.empty_like(order)
    rank = torch.arange(len(rewards), device=rewards.device)
    bins[order] = (rank // (len(rewards) // quantiles)).clamp(max=quantiles - 1)
    return bins


def check_pool(completions: int, quantiles: int) -> None:
    """Raise `UserError` if a pool has fewer scored completions than quantiles."""
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


def quark_terms(
    logits: torch.Tensor, ref_logits: torch.Tensor, token_ids: torch.Tensor, kl_coef: float, entropy_coef: float
) -> dict[str, torch.Tensor]:
    """Eq. 2 as a loss, with the entropy bonus of the authors' code, per token, and its terms:

    L_t = -log p_theta(y_t | x, y_<t, r_k) + beta KL_t - lambda H(p_theta(. | x, y_<t, r_k)),
    KL_t = KL(p_0(. | x, y_<t) || p_theta(. | x, y_<t, r_k)); the authors' code computes KL(p_theta || p_0).

    logits, ref_logits: (B, T, V) of p_theta and p_0, over the same V tokens; token_ids: (B, T). Gives loss,
    log_likelihood, kl_per_token and entropy, all (B, T), padding not yet masked.
    """
    policy, reference = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    kl = kl_divergence(reference, policy)
    log_likelihood, entropy = token_log_probs(logits, token_ids), token_entropy(logits)
    loss = -log_likelihood + kl_coef * kl - entropy_coef * entropy
    return {"loss": loss, "log_likelihood": log_likelihood, "kl_per_token": kl, "entropy": entropy}


def add_reward_tokens(policy: ActorCritic, quantiles: int, seed: int) -> list[int]:
    """Give the policy K special tokens, best quantile first, and return their ids.

    They are added to a copy of its tokenizer, as special tokens, which are never sampled. Each embedding is drawn from
    a normal distribution with the mean and standard deviation of the existing embeddings, dimension by dimension.
    Raises `UserError` for a policy that already has such tokens.
    """
    tokenizer, model = copy.deepcopy(policy.processing_class), policy.model
    names = [f"<|quantile_{k}|>" for k in range(quantiles)]
    rows = model.get_input_embeddings().num_embeddings
    tokens = sorted(i for i in tokenizer.get_vocab().values() if i < rows)
    added = tokenizer.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
    if added < quantiles:
        raise UserError("the policy already has reward tokens: start Quark from a policy that it did not train.")
    ids = tokenizer.convert_tokens_to_ids(names)
    old = model.get_input_embeddings().weight.detach()[tokens]
    mean, std = old.float().mean(0), old.float().std(0)
    with seeded(seed, policy.device):
        # some models have more rows than their tokenizer has tokens: spare rows are used first
        model.resize_token_embeddings(max(rows, *(i + 1 for i in ids)), mean_resizing=False)
        drawn = mean + std * torch.randn(quantiles, len(mean)).to(mean.device)
    model.get_input_embeddings().weight.data[ids] = drawn.to(old.dtype)
    policy.processing_class = tokenizer
    return ids


class QuarkTrainer(TrainingLoop):
    """Quantised reward conditioning (Lu et al. 2022, Algorithm 1).

    An iteration is a gradient step. `pool` holds every explored completion that has a reward, and `bins` (N,) their
    quantiles, which may change as the pool grows.

    On several processes each explores a share of the prompts and learns on a share of every batch; all hold the whole
    pool.

    Args:
        model: trained in place. It gets K reward tokens and from then on reads that of the best quantile before every
            prompt (`prefix_ids`), even after it is saved and loaded.
        reward_funcs, train_dataset, seed, options: see `TrainingLoop`. Here a reward may be missing (None or NaN).
        reference: p_0, which reads no reward token; by default a frozen copy of the model as it is now.

    Raises:
        UserError: an exploration has fewer prompts than there are quantiles, or than processes.
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
        **options: Any,
    ) -> None:
        explored = args.exploration_prompts or len(train_dataset)
        check_pool(explored, args.quantiles)
        settings = {"quark": args, "sampling": sampling}
        super().__init__(model, reward_funcs, train_dataset, args.steps, settings, seed=seed, **options)
        self.ranks.check_batch_size("quark.exploration_prompts", explored)
        if self.ranks.sharded:
            raise UserError("Quark cannot be sharded by FSDP: start its processes without it.")
        self.args, self.sampling = args, sampling
        self.reference = reference or copy.deepcopy(model).requires_grad_(False)
        self.vocabulary = model.model.get_input_embeddings().num_embeddings  # V, before the reward tokens
        self.reward_ids = add_reward_tokens(model, args.quantiles, hash_seed(seed, 0))
        # if a model has more rows than its tokenizer has tokens, the reward tokens are among these V
        self.forbidden_ids = [i for i in model.forbidden_ids if i < self.vocabulary]
        model.prefix_ids = self.reward_ids[:1]
        if isinstance(model.model, peft.PeftModel):
            weight = model.model.get_input_embeddings().weight.requires_grad_(True)
            trained = torch.zeros_like(weight[:, :1], dtype=torch.bool)
            trained[self.reward_ids] = True
            weight.register_hook(lambda gradient: gradient.where(trained, 0))
        trainable = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=args.learning_rate, eps=args.adam_epsilon, fused=True)
        self.schedule = get_linear_schedule_with_warmup(optimizer, args.warmup_steps, args.steps)
        # several processes would wait for the gradient of the value head, on which the loss does not depend
        model.value_head.requires_grad_(False)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        model.value_head.requires_grad_(True)
        self.pool: Rollout | None = None
        self.bins = torch.empty(0, dtype=torch.int64)
        self.explored: dict[str, float] = {}  # statistics of the last exploration

    def own_state(self) -> Checkpoint:
        """The pool, the statistics of the last exploration, and where the learning rate's schedule is."""
        columns = vars(self.pool).items()
        tensors = {f"pool.{name}": column for name, column in columns if isinstance(column, torch.Tensor)}
        texts = {name: column for name, column in columns if isinstance(column, list)}
        return Checkpoint(tensors, {"texts": texts, "explored": self.explored, "step": self.schedule.last_epoch})

    def load_own_state(self, own: Checkpoint) -> None:
        """Restore them; the quantiles follow from the pool, and the learning rate from the step."""
        columns = {name.removeprefix("pool."): own.tensors[name] for name in own.tensors if name.startswith("pool.")}
        tensors = {name: column.to(self.policy.device) for name, column in columns.items()}
        self.pool = Rollout(**own.state["texts"], **tensors)
        self.bins = quantile_bins(self.pool.env_rewards, self.args.quantiles)
        self.explored = own.state["explored"]
        steps = (self.args.warmup_steps, self.args.steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, *steps, last_epoch=own.state["step"] - 1)

    def step(self) -> dict[str, float]:
        """One gradient step; before the first of every `sample_interval` steps, an exploration and new quantiles."""
        with self.counted() as stats:
            exploration, place = divmod(self.iteration - 1, self.args.sample_interval)
            if place == 0:
                self.explored = self.explore(exploration)
                self.bins = quantile_bins(self.pool.env_rewards, self.args.quantiles)
            episodes, bins = self.batch(exploration, place)
            stats |= self.update(episodes, bins)
            stats |= {"gradient_examples": self.iteration * self.args.batch_size, "gradient_tokens": episodes.tokens}
            stats |= {"pool_size": len(self.pool)} | self.explored
        return stats

    def explore(self, exploration: int) -> dict[str, float]:
        """Add one completion of each of the next prompts to the pool: first p_0's, later those under the best token."""
        size = len(self.train_dataset)
        count = self.args.exploration_prompts or size
        indices = shuffled_stream(size, self.seed, exploration * count, count)
        share = self.ranks.share(count)
        with self.ranks.shared_errors():
            episodes = self.explore_share(indices[share], exploration, share.start)
        episodes = self.ranks.all_gather_rows(episodes)
        scored = episodes.take((~episodes.env_rewards.isnan()).nonzero().squeeze(1))
        self.pool = join([self.pool, scored], self.policy.device) if self.pool else scored
        self.monitor.notice(check_completions(episodes, self.watch.collapse_bound), episodes)
        lengths = episodes.completion_mask.sum(1).float()
        return {
            "env_reward_mean": pd.Series(episodes.env_rewards.tolist()).mean(),
            "completion_length": lengths.mean().item(),
        }

    def explore_share(self, indices: np.ndarray, exploration: int, first: int) -> Rollout:
        """The completions of the prompts at `indices`, this process's part; `first` is its place in the exploration."""
        sampler, parts = self.policy if exploration else self.reference, []
        for at in range(0, len(indices), self.args.batch_size):
            columns = self.train_dataset[indices[at : at + self.args.batch_size]]
            prompts = columns.pop("prompt")
            with self.accelerator.autocast():
                episodes = sampler.sample(prompts, self.sampling, hash_seed(self.seed, exploration), first=first + at)
            # the policy will read one token more than p_0
            check_context(self.policy, 1 + episodes.prompt_ids.shape[1], self.sampling.completion_length)
            rewards = self.env_rewards(episodes, columns, missing=True)
            # the loss reads the tokens anew
            parts.append(replace(episodes, log_probs=None, values=None, entropy=None, env_rewards=rewards))
        return join(parts, self.policy.device)

    def batch(self, exploration: int, place: int) -> tuple[Rollout, torch.Tensor]:
        """The B completions of a step, the `place`-th after an exploration, and their quantiles (B,).

        They come from a stream of seeded shuffles of the pool.
        """
        batch = self.args.batch_size
        indices = shuffled_stream(len(self.pool), hash_seed(self.seed, exploration), place * batch, batch)
        return self.pool.take(torch.from_numpy(indices)).trimmed(), self.bins[indices]

    def update(self, episodes: Rollout, bins: torch.Tensor) -> dict[str, float]:
        """Make one gradient step on B completions with their quantiles (B,); returns the terms of the loss."""
        rows, counted = self.ranks.shard(len(episodes))
        own, tokens = episodes.take(rows), episodes.completion_mask.sum()
        terms = self.terms(own, bins[rows])
        kl = masked_sum(terms["kl_per_token"].detach(), own.completion_mask)
        episodes = replace(episodes, kl=self.ranks.unshard(kl, len(episodes)))
        self.monitor.notice(check_kl(episodes.kl, self.watch.kl_bound), episodes)
        mask = own.completion_mask & counted.unsqueeze(1)
        means = {key: value.masked_fill(~mask, 0.0).sum() / tokens for key, value in terms.items()}
        learning_rate = self.schedule.get_last_lr()[0]
        # accelerate averages the gradients of the processes, which must be summed
        self.accelerator.backward(self.ranks.count * means["loss"])
        stats = self.ranks.sum({key: value.item() for key, value in means.items()})
        if self.optimizer_step({"loss": stats["loss"]}, episodes, self.args.max_grad_norm):
            self.schedule.step()
        return stats | {"learning_rate": learning_rate}

    def terms(self, episodes: Rollout, bins: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of every completion token, each episode read after the token of its quantile."""
        reward_ids = torch.tensor(self.reward_ids, device=self.policy.device)[bins].unsqueeze(1)
        ids = torch.cat([episodes.prompt_ids, episodes.completion_ids], 1)
        mask = torch.cat([episodes.prompt_mask, episodes.completion_mask], 1)
        length = episodes.completion_ids.shape[1]
        with self.accelerator.autocast():
            with torch.no_grad():
                ref_logits, _ = self.reference(ids, mask, length)
            logits, _ = self.wrapped(ids, mask, length, prefix_ids=reward_ids)
        logits, ref_logits = self.sampled(logits), self.sampled(ref_logits)
        return quark_terms(logits, ref_logits, episodes.completion_ids, self.args.kl_coef, self.args.entropy_coef)

    def sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """The sampler's logits without the reward tokens: (B, T, V + K) or (B, T, V) -> (B, T, V)."""
        return sampler_logits(logits[..., : self.vocabulary], self.sampling, self.forbidden_ids, self.policy.eos_ids)
