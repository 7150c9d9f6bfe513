"""Any method on the same test prompts with the same seeds: generate, score, one table of episodes."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pandas as pd
import torch
from accelerate import Accelerator

from rarlhf_nb.policy import Policy, Reference, token_log_probs
from rarlhf_nb.ppo import episode_kl
from rarlhf_nb.profiles import EvaluationSettings, SamplingSettings
from rarlhf_nb.rewards import check_rewards
from rarlhf_nb.trainer import Reward, hash_seed


@torch.no_grad()
def evaluate(
    policy: Policy,
    reference: Reference,
    reward: Reward,
    prompts: pd.DataFrame,
    sampling: SamplingSettings,
    settings: EvaluationSettings,
    seed: int,
    mixed_precision: str = "no",
) -> pd.DataFrame:
    """The episodes table: a row per test prompt and sample.

    prompts: columns prompt, prompt_score, label, group. Returns these and completion, reward, kl (nats per episode,
    from `reference`) and seed (of the sample). A batch of prompts is sampled with the same seed by every method, and
    rows come in the same order, so the tables of two methods pair row by row.
    """
    autocast = Accelerator(mixed_precision=mixed_precision).autocast
    batches = [prompts.iloc[at : at + settings.batch_size] for at in range(0, len(prompts), settings.batch_size)]
    return pd.concat(
        [
            _evaluate_batch(
                policy, reference, reward, batch, sampling, hash_seed(seed, sample, index), autocast
            ).assign(seed=sample)
            for sample in range(settings.samples_per_prompt)
            for index, batch in enumerate(batches)
        ],
        ignore_index=True,
    )


def _evaluate_batch(
    policy: Policy,
    reference: Reference,
    reward: Reward,
    batch: pd.DataFrame,
    sampling: SamplingSettings,
    batch_seed: int,
    autocast: Callable[[], AbstractContextManager],
) -> pd.DataFrame:
    with autocast():
        episodes = policy.sample(batch["prompt"].tolist(), sampling, batch_seed)
        log_probs = policy.token_log_probs(episodes, sampling)
        ref_log_probs = reference.token_log_probs(episodes, sampling)
    kl = episode_kl(log_probs, ref_log_probs, episodes.completion_mask)
    columns = {name: batch[name].tolist() for name in ("label", "group")}
    rewards = reward(prompts=episodes.prompts, completions=episodes.completions, **columns)
    return batch.assign(
        completion=episodes.completions,
        reward=check_rewards(rewards, episodes.prompts, episodes.completions),
        kl=kl.tolist(),
    )


@torch.no_grad()
def held_out_log_likelihoods(policy: Policy, texts: list[str], length: int, batch_size: int) -> pd.DataFrame:
    """How likely the policy finds human texts, by teacher forcing on their first `length` tokens.

    Columns text, log_likelihood (nats, summed over the scored tokens), tokens (how many were scored). BOS is prepended
    where the tokenizer has one; without one the first token is not scored, as it has no context.
    """
    tokenizer = policy.processing_class
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [bos + tokens[: length - len(bos)] for tokens in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    rows = [
        row
        for at in range(0, len(ids), batch_size)
        for row in _log_likelihoods(policy, [tokens for tokens in ids[at : at + batch_size]])
    ]
    table = pd.DataFrame(rows, columns=["log_likelihood", "tokens"])
    table.insert(0, "text", texts)
    return table


def _log_likelihoods(policy: Policy, ids: list[list[int]]) -> list[tuple[float, int]]:
    batch = policy.processing_class.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    input_ids, mask = batch["input_ids"].to(policy.device), batch["attention_mask"].bool().to(policy.device)
    logits, _ = policy(input_ids, mask, input_ids.shape[1] - 1)
    log_probs = token_log_probs(logits.float(), input_ids[:, 1:]).masked_fill(~mask[:, 1:], 0.0)
    return list(zip(log_probs.sum(1).tolist(), mask[:, 1:].sum(1).tolist(), strict=True))
