import math

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PROMPTS, good_minus_bad, sampling_settings, tiny_policy

from rarlhf_nb.baselines.best_of_n import BestOfN, best_of_n_kl
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.evaluate import evaluate
from rarlhf_nb.lab.profiles import EvaluationSettings
from rarlhf_nb.policy import Reference

SAMPLING = sampling_settings(minimum_completion_length=2)


def test_the_kl_by_hand_and_by_counting():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    # 2,000 equally likely completions with different rewards; the k-th worst is the best of 3 with this probability
    k, size = np.arange(1, 2001), 2000
    chosen = (k / size) ** 3 - ((k - 1) / size) ** 3
    assert best_of_n_kl(3) == pytest.approx((chosen * np.log(chosen * size)).sum(), abs=2e-3)


def test_the_kept_completion_is_the_best_of_those_that_the_policy_draws():
    policy, seen = tiny_policy(), []

    def reward(prompts, completions):
        seen.append((prompts, completions))
        return good_minus_bad(prompts, completions)

    episodes = BestOfN(policy, reward, samples=5).sample(PROMPTS, SAMPLING, seed=3)
    ((prompts, completions),) = seen
    assert episodes.prompts == PROMPTS and prompts == [prompt for prompt in PROMPTS for _ in range(5)]
    rewards = np.reshape(good_minus_bad(prompts, completions), (8, 5))
    assert good_minus_bad(PROMPTS, episodes.completions) == rewards.max(1).tolist()
    first_best = [completions[5 * row + best] for row, best in enumerate(rewards.argmax(1))]
    assert episodes.completions == first_best
    assert (rewards.max(1) > rewards.min(1)).sum() > 4  # there was something to choose
    again = BestOfN(policy, reward, samples=5).sample(PROMPTS, SAMPLING, seed=3)
    assert again.completions == episodes.completions


def test_one_sample_is_the_policy_itself():
    policy = tiny_policy()
    alone, plain = BestOfN(policy, good_minus_bad, 1).sample(PROMPTS, SAMPLING, 3), policy.sample(PROMPTS, SAMPLING, 3)
    assert alone.completions == plain.completions


def test_evaluation_pays_the_kl_of_the_choice_and_padding_stays_zero():
    policy = tiny_policy()
    method = BestOfN(policy, good_minus_bad, samples=4)
    prompts = pd.DataFrame({"prompt": PROMPTS, "prompt_score": 0.0, "label": 1, "group": "all"})
    settings = EvaluationSettings(held_out_texts=1, held_out_length=8, batch_size=3)
    table = evaluate(method, Reference(policy), good_minus_bad, prompts, SAMPLING, settings, seed=1)
    assert table["kl"].tolist() == pytest.approx([best_of_n_kl(4)] * 8, abs=1e-5)
    free = sampling_settings(minimum_completion_length=0)
    episodes = method.sample(PROMPTS * 4, free, seed=5)
    mask = episodes.completion_mask
    assert not mask.all()
    difference = episodes.log_probs - policy.token_log_probs(episodes, free).detach()
    assert (difference[~mask] == 0).all()
    torch.testing.assert_close(difference.sum(1), torch.full((32,), best_of_n_kl(4)), atol=1e-5, rtol=0)


def test_a_wrong_reward_names_the_episode():
    method = BestOfN(tiny_policy(), lambda prompts, completions: [float("nan")] * len(prompts), samples=2)
    with pytest.raises(UserError, match="episode 0 is nan"):
        method.sample(PROMPTS, SAMPLING, seed=1)
