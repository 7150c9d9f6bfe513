"""Best-of-n: a policy writes n completions of each prompt, and the one with the highest reward is kept.

Nothing is trained (Stiennon et al. 2020, "Learning to summarize from human feedback"). The price is paid at every use:
n completions and n rewards for each one that is kept.
"""

import math

import torch

from rarlhf_nb.conversations import Prompt
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.rewards import Reward, episode_rewards
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.settings import SamplingSettings


def best_of_n_kl(samples: int) -> float:
    """KL(best-of-n || policy) in nats per episode: log n - (n - 1) / n.

    It is exact if no two completions have the same reward, and an upper bound otherwise (Beirami et al. 2024,
    "Theoretical guarantees on the best-of-n alignment policy").
    """
    return math.log(samples) - (samples - 1) / samples


class BestOfN:
    """The best of n completions of a policy, by a reward; a `Policy`, for evaluation only.

    Calling it gives the logits of the policy, since the choice among whole completions changes the probability of no
    single next token.

    Args:
        policy: the model that writes.
        reward: TRL's signature; it gets no other columns of the data set.
        samples: n, completions per prompt.
    """

    def __init__(self, policy: ActorCritic, reward: Reward, samples: int) -> None:
        self.policy, self.reward, self.samples = policy, reward, samples
        self.processing_class, self.device, self.prefix_ids = policy.processing_class, policy.device, policy.prefix_ids

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ActorCritic.forward`."""
        return self.policy(input_ids, attention_mask, completion_length)

    def sample(self, prompts: list[Prompt], sampling: SamplingSettings, seed: int, first: int = 0) -> Rollout:
        """Draw n completions for each prompt and keep the best; of equal rewards, the first.

        The probability that an episode is chosen is not known token by token. Its log-ratio to the policy is, on
        average over episodes, `best_of_n_kl`, which is added to the log-probability of the last token. Raises
        `UserError` for rewards that are not one finite number each, and if a prompt leaves no room.
        """
        repeated = [prompt for prompt in prompts for _ in range(self.samples)]
        episodes = self.policy.sample(repeated, sampling, seed, first * self.samples)
        rewards = episode_rewards([self.reward], episodes)
        best = rewards.view(len(prompts), self.samples).argmax(1)
        chosen = episodes.take(torch.arange(len(prompts)) * self.samples + best)
        last = chosen.completion_mask.sum(1) - 1
        chosen.log_probs[torch.arange(len(chosen)), last] += best_of_n_kl(self.samples)
        return chosen
