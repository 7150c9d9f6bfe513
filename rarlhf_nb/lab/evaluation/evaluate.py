"""Evaluates any method on the same test prompts with the same seeds, into one table of episodes."""

import os
from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.conversations import Prompt, is_conversation, prompts_of, templated, transcript
from rarlhf_nb.distributed import Ranks, autocast, connect
from rarlhf_nb.lab.profiles import EvaluationSettings
from rarlhf_nb.policy import Policy, Reference, leading_ids
from rarlhf_nb.ppo import episode_kl
from rarlhf_nb.rewards import ClassifierReward, Reward, completions_for_rewards, episode_rewards
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import token_log_probs
from rarlhf_nb.seeding import hash_seed
from rarlhf_nb.settings import SamplingSettings


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
    base: Policy | None = None,
) -> pd.DataFrame:
    """Returns the episodes table: one row per test prompt and sample.

    prompts: columns prompt, prompt_score, label, group, and `messages` if the prompts are conversations. The table has
    these columns and completion, reward, kl (nats per episode, from `reference`), completion_length (tokens) and seed
    (of the sample). A `ClassifierReward` adds normalised_reward (its probability, in [0, 1]); `base` adds
    base_log_likelihood (log-likelihood of the completion after its prompt under the base model, in nats). Every method
    samples a prompt with the same random numbers, whatever `settings.batch_size`, and the tables of two methods pair
    row by row.

    Several processes (see `distributed`), all of which must call it, share the batches; each gets the whole table,
    identical to the last digit to that of one process. Raises the errors of `Policy.sample` and `episode_rewards`.
    """
    ranks = Ranks(connect())

    def batch(at: int) -> pd.DataFrame:
        return prompts.iloc[at : at + settings.batch_size]

    def measured(part: tuple[int, int]) -> dict[str, list]:
        sample, at = part
        with autocast(policy.device, mixed_precision):
            episodes = policy.sample(prompts_of(batch(at)), sampling, hash_seed(seed, sample), at)
            ref_log_probs = reference.token_log_probs(episodes, sampling)
            likelihood = {} if base is None else {"base_log_likelihood": completion_log_likelihoods(base, episodes)}
        return {
            "completion": episodes.completions,
            **_rewards(reward, episodes, batch(at)),
            "kl": episode_kl(episodes.log_probs, ref_log_probs, episodes.completion_mask).tolist(),
            "completion_length": episodes.completion_mask.sum(1).tolist(),
            **likelihood,
        }

    parts = list(product(range(settings.samples_per_prompt), range(0, len(prompts), settings.batch_size)))
    found = zip(parts, ranks.map(measured, parts), strict=True)
    return pd.concat([batch(at).assign(**columns, seed=sample) for (sample, at), columns in found], ignore_index=True)


def _rewards(reward: Reward, episodes: Rollout, batch: pd.DataFrame) -> dict[str, list[float]]:
    if isinstance(reward, ClassifierReward):
        texts = [p + c for p, c in zip(episodes.prompts, completions_for_rewards(episodes), strict=True)]
        rewards, normalised = reward.rate(texts)
        return {"reward": rewards, "normalised_reward": normalised}
    columns = {name: [None if pd.isna(value) else value for value in batch[name]] for name in ("label", "group")}
    return {"reward": episode_rewards([reward], episodes, columns).tolist()}


def completion_log_likelihoods(base: Policy, episodes: Rollout) -> list[float]:
    """log p(completion | prompt) of each of the B episodes under `base`, in nats, with no token forbidden."""
    mask = episodes.completion_mask
    ids = torch.cat([episodes.prompt_ids, episodes.completion_ids], 1)
    logits, _ = base(ids, torch.cat([episodes.prompt_mask, mask], 1), mask.shape[1])
    return token_log_probs(logits.float(), episodes.completion_ids).masked_fill(~mask, 0.0).sum(1).tolist()


@torch.no_grad()
def held_out_log_likelihoods(policy: Policy, texts: list[Prompt], length: int, batch_size: int) -> pd.DataFrame:
    """Log-likelihoods of human texts under the policy, by teacher forcing on their first `length` tokens.

    Columns text, log_likelihood (nats, summed over the scored tokens), tokens (the number of scored tokens). A text
    begins as the tokenizer begins every text, or with BOS if it has one; without BOS the first token has no context and
    is not scored. A policy with a prefix reads it in place of a BOS that the tokenizer does not add by itself, and the
    same tokens are scored. Of a conversation, the first `length` tokens of its answer are scored. Several processes
    share the work, as in `evaluate`.
    """
    tokenizer = policy.processing_class
    if any(map(is_conversation, texts)):
        return _scored(policy, texts, _answers(texts, tokenizer, length), batch_size)
    leading = leading_ids(tokenizer)
    bos = leading or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
    ids = [tokens[: length - len(bos)] for tokens in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    context = leading if policy.prefix_ids else bos
    first = len(context) if bos else 1  # the first token that is scored
    return _scored(policy, texts, [(context + tokens, first) for tokens in ids], batch_size)


def _answers(conversations: list[Prompt], tokenizer: PreTrainedTokenizerBase, length: int) -> list[tuple[list, int]]:
    """The ids of each conversation up to `length` tokens of its answer, and the place of the answer's first token."""
    texts = [templated(each[:-1], tokenizer) for each in conversations]
    texts += [templated(each, tokenizer, answer=False) for each in conversations]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = zip(ids[: len(conversations)], ids[len(conversations) :], strict=True)
    found = [(whole, len(os.path.commonprefix([before, whole]))) for before, whole in pairs]
    return [(whole[: first + length], max(first, 1)) for whole, first in found]


def _scored(policy: Policy, texts: list[Prompt], found: list[tuple[list, int]], batch_size: int) -> pd.DataFrame:
    """The table of `held_out_log_likelihoods`; of each text, its ids and the place of the first that is scored."""
    batches = [found[at : at + batch_size] for at in range(0, len(found), batch_size)]
    scored = Ranks(connect()).map(lambda batch: _log_likelihoods(policy, *zip(*batch, strict=True)), batches)
    table = pd.DataFrame([row for rows in scored for row in rows], columns=["log_likelihood", "tokens"])
    table.insert(0, "text", [*map(transcript, texts)])
    return table


def _log_likelihoods(policy: Policy, ids: Sequence[list[int]], firsts: Sequence[int]) -> list[tuple[float, int]]:
    """(log-likelihood, scored tokens) of each text; its tokens are scored from its place in `firsts`."""
    batch = policy.processing_class.pad({"input_ids": list(ids)}, padding_side="right", return_tensors="pt")
    input_ids, mask = batch["input_ids"].to(policy.device), batch["attention_mask"].bool().to(policy.device)
    first = min(firsts)
    logits, _ = policy(input_ids, mask, input_ids.shape[1] - first)
    scored = mask & (torch.arange(mask.shape[1]) >= torch.tensor(firsts).unsqueeze(1)).to(mask.device)
    log_probs = token_log_probs(logits.float(), input_ids[:, first:]).masked_fill(~scored[:, first:], 0.0)
    return list(zip(log_probs.sum(1).tolist(), scored[:, first:].sum(1).tolist(), strict=True))
