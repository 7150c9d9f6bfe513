"""GRPO and RLOO as methods of a run: their log, their rewards, and their schedule."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from small_run import SMALL
from tiny import PROMPTS, SAMPLING, good_minus_bad, ppo_settings, saved_policy

from rarlhf_nb.baselines.critic_free import train_critic_free
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.glossary import logged_keys
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.policy import Reference
from rarlhf_nb.risk import SoftRiskSchedule
from rarlhf_nb.settings import CriticFreeSettings, RiskSettings

RISK = RiskSettings(alpha=0.5, warm_start=2, rho=0.5)


def train(folder, algorithm="grpo", reward=good_minus_bad, policy=None, risk=RISK, micro=None, own=None, **options):
    """The policy and the log of six iterations of eight episodes, with two epochs."""
    policy = policy or saved_policy(folder)
    settings = {"iterations": 6, "batch_size": 8, "samples_per_prompt": 4, "learning_rate": 1e-2, "kl_coef": 0.1}
    settings |= own or {}
    log = train_critic_free(
        policy,
        reward,
        Dataset.from_dict({"prompt": PROMPTS, "label": range(len(PROMPTS))}),
        CriticFreeSettings(**settings),
        ppo_settings(iterations=12, epochs=2, micro_batch_size=micro),  # whose schedule is twice as long
        risk,
        SAMPLING,
        algorithm,
        seed=1,
        **options,
    )
    return policy, log


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_log_says_what_was_sampled(algorithm, tmp_path):
    calls, sampled = [], []

    def reward(prompts, completions, label, **columns):
        with torch.no_grad():  # the policy at the moment when its completions are rated
            sampled.append({name: p.clone() for name, p in policy.model.named_parameters()})
        assert all(PROMPTS[i] == prompt for i, prompt in zip(label, prompts, strict=True))
        assert all(text.startswith(" ") for text in completions)  # whole texts, as the policy wrote them
        calls.append(good_minus_bad(prompts=prompts, completions=completions))
        return calls[-1]

    policy = saved_policy(tmp_path)
    _, log = train(tmp_path, algorithm, reward, policy, log_file=tmp_path / "log.jsonl")
    assert set(log.columns) == set(logged_keys("log of GRPO and RLOO")) and len(calls) == len(log) == 6
    rewards = torch.tensor(calls)
    assert log["env_reward_mean"].tolist() == pytest.approx(rewards.mean(1).tolist())
    assert log["env_reward_std"].tolist() == pytest.approx(rewards.std(1, correction=0).tolist())
    kept = SoftRiskSchedule(8, 0.5, 12, warm_start=2, rho=0.5).kept_counts()[::2]  # at the first step of each iteration
    assert log["kept"].tolist() == kept and kept[0] == 8 and kept[-1] == 4
    tails = [row.sort().values[:k].mean().item() for row, k in zip(rewards, kept, strict=True)]
    assert log["tail_env_reward_mean"].tolist() == pytest.approx(tails, abs=1e-6)
    assert log["kl"][0] == pytest.approx(0, abs=1e-6) and (log["kl"][1:] != 0).all()
    assert log["gradient_tokens"].between(2 * 8 * 4, 2 * 8 * 12).all()
    pd.testing.assert_frame_equal(log, pd.read_json(tmp_path / "log.jsonl", lines=True), check_dtype=False)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_reward_may_be_async_and_read_the_tokens(algorithm, tmp_path):
    lengths = []

    async def reward(completion_ids, trainer_state, label, **columns):
        assert trainer_state.global_step == 0 and len(label) == len(completion_ids)
        lengths.append([float(len(ids)) for ids in completion_ids])
        return lengths[-1]

    _, log = train(tmp_path, algorithm, reward, stop_after=1)
    assert log["env_reward_mean"].tolist() == [pytest.approx(sum(lengths[0]) / 8)]


def test_the_kl_is_that_of_the_policy_that_sampled(tmp_path):
    for algorithm in ("grpo", "rloo"):
        options = {"algorithm": algorithm, "own": {"batch_size": 256, "samples_per_prompt": 32}}
        policy, log = train(tmp_path, stop_after=1, **options)
        _, longer = train(tmp_path, stop_after=2, **options)
        assert log["kl"].tolist() == longer["kl"][:1].tolist() == [pytest.approx(0, abs=1e-6)]
        many = policy.sample(PROMPTS * 200, SAMPLING, seed=0)
        log_ratios = many.log_probs - Reference(saved_policy(tmp_path)).token_log_probs(many, SAMPLING)
        kl = (log_ratios * many.completion_mask).sum(1).mean()
        assert longer["kl"][1] == pytest.approx(kl.item(), rel=0.25)  # 256 episodes against many


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_without_a_tail_the_estimator_makes_no_difference(algorithm, tmp_path):
    risk = RISK.model_copy(update={"alpha": 1.0})
    one, other = (
        train(tmp_path, algorithm, risk=risk, own={"estimator": estimator}, stop_after=2)[0]
        for estimator in ("rockafellar_uryasev", "cvar_gradient")
    )
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_micro_batches_change_nothing(algorithm, tmp_path):
    risk = RiskSettings(alpha=1.0, warm_start=0, rho=1.0)
    whole, _ = train(tmp_path, algorithm, risk=risk, stop_after=1)
    parts, _ = train(tmp_path, algorithm, risk=risk, stop_after=1, micro=3)  # 2, the next smaller divisor of 8
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


@pytest.fixture
def experiment(checkout):
    experiment = Experiment.open("pocket", overrides=SMALL)
    experiment.prepare_data()
    experiment.train_sft()
    return experiment


def test_only_the_methods_on_the_tail_depend_on_alpha(experiment):
    logs = {method: experiment.train(method) for method in ("grpo", "cvar_grpo", "cvar_grpo@0.75")}
    last = {method: int(log["kept"].iloc[-1]) for method, log in logs.items()}
    assert last == {"grpo": 16, "cvar_grpo": 7, "cvar_grpo@0.75": 12}
    assert experiment.saved("cvar_grpo").model is not None
    with pytest.raises(UserError, match=r"'grpo': TRL trains it as a whole; call experiment.train\('grpo'\)"):
        experiment.trainer("grpo")


def test_samples_that_do_not_fill_the_batch_are_refused():
    with pytest.raises(UserError, match="critic_free.samples_per_prompt = 3 does not divide .* = 128; change one"):
        load_profile("pocket", {"critic_free.samples_per_prompt": 3})
