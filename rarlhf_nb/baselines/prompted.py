"""The prompted baseline: the untrained base model with an instruction before every prompt.

The paper does not print its instruction. Ours are in the profiles, and validation prompts decide between them.
"""

import copy

import pandas as pd

from rarlhf_nb.conversations import Prompt
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.rewards import Reward, episode_rewards
from rarlhf_nb.settings import SamplingSettings


def prompted_policy(policy: ActorCritic, prefix: str) -> ActorCritic:
    """The same network, reading `prefix` before every prompt instead of any prefix that it had.

    The weights are shared, and the given policy keeps its own prefix. Prefix and prompt are joined without a separator,
    so the prefix must end with its own space or line break. Raises `UserError` if the prefix has no tokens.
    """
    prefix_ids = policy.processing_class(prefix, add_special_tokens=False)["input_ids"]
    if not prefix_ids:
        raise UserError(f"prefix = {prefix!r} has no tokens: give the instruction that goes before every prompt")
    prompted = copy.copy(policy)
    prompted.prefix_ids = prefix_ids
    return prompted


def choose_prefix(
    policy: ActorCritic,
    reward: Reward,
    prompts: list[Prompt],
    prefixes: list[str],
    sampling: SamplingSettings,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """The mean reward of each prefix on validation prompts: columns prefix and reward, best prefix first.

    The reward is that of prompt + completion; the prefix is not part of the rated text. All prefixes are sampled with
    the same seeds. Raises the errors of `prompted_policy` and `episode_rewards`.
    """
    means = []
    for prefix in prefixes:
        prompted, rewards = prompted_policy(policy, prefix), []
        for at in range(0, len(prompts), batch_size):
            episodes = prompted.sample(prompts[at : at + batch_size], sampling, seed, first=at)
            rewards += episode_rewards([reward], episodes).tolist()
        means.append(sum(rewards) / len(rewards))
    table = pd.DataFrame({"prefix": prefixes, "reward": means})
    return table.sort_values("reward", ascending=False, kind="stable", ignore_index=True)
