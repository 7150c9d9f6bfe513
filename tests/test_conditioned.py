"""One policy for every alpha: its embedding, its folder, and its training in groups."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny import PROMPTS, SAMPLING, good_minus_bad, ppo_trainer, sampling_settings, tiny_policy
from transformers import AutoModelForCausalLM

from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.explorer.live_training import ESTIMATORS
from rarlhf_nb.lab.glossary import logged_keys
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.policy import Reference, evaluate_tokens, load_policy
from rarlhf_nb.ppo import dense_rewards, generalized_advantages
from rarlhf_nb.risk import rockafellar_uryasev_rewards
from rarlhf_nb.risk_embedding import RiskEmbedding
from rarlhf_nb.sampling import sampler_logits, token_log_probs
from rarlhf_nb.settings import ConditionedSettings, LoraSettings


def conditioned_policy(architecture="gpt2"):
    policy = tiny_policy(architecture=architecture)
    policy.risk = RiskEmbedding(16, alpha_min=0.1)
    policy.risk.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(7))
    return policy


def conditioned_trainer(policy=None, own=None, **changes):
    conditioned = ConditionedSettings(**{"alpha_min": 0.25} | (own or {}))
    return ppo_trainer(policy, kind=AlphaConditionedTrainer, conditioned=conditioned, **changes)


# The policy


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_each_episode_is_read_with_its_own_alpha(architecture):
    """Row by row, without padding or cache, the embedding written out."""
    policy = conditioned_policy(architecture)
    alphas = torch.tensor([1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1])
    batch = policy.sample(PROMPTS, sampling_settings(), seed=1, alpha=alphas)
    read = evaluate_tokens(policy, batch, sampling_settings())
    torch.testing.assert_close(read.log_probs, batch.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(read.values, batch.values, atol=1e-5, rtol=0)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.cat([policy.tokenize([prompt])[0], batch.completion_ids[i : i + 1]], 1)
        embeddings = policy.model.get_input_embeddings()(ids) - 3 * np.log(alphas[i].item()) * policy.risk.weight
        logits = policy.model(inputs_embeds=embeddings).logits[:, -6:-1]
        logits = sampler_logits(logits, sampling_settings(), policy.forbidden_ids, policy.eos_ids)
        slow = token_log_probs(logits, batch.completion_ids[i : i + 1])[0]
        torch.testing.assert_close(read.log_probs[i], slow, atol=1e-5, rtol=0)


def test_an_untrained_embedding_changes_nothing_and_alpha_one_never_does():
    plain, policy = tiny_policy(), conditioned_policy()
    batch = plain.sample(PROMPTS, SAMPLING, seed=2)
    assert policy.sample(PROMPTS, SAMPLING, seed=2, alpha=1.0).completions == batch.completions
    assert policy.sample(PROMPTS, SAMPLING, seed=2, alpha=0.1).completions != batch.completions
    policy.risk.weight.data.zero_()
    again = policy.sample(PROMPTS, SAMPLING, seed=2, alpha=0.1)
    assert again.completions == batch.completions
    assert torch.equal(again.log_probs, batch.log_probs)


def test_the_reference_reads_no_alpha():
    policy = conditioned_policy()
    batch = policy.sample(PROMPTS, SAMPLING, seed=2, alpha=0.2)
    expected = tiny_policy().token_log_probs(replace(batch, alpha=None), SAMPLING)
    torch.testing.assert_close(Reference(policy).token_log_probs(batch, SAMPLING), expected)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_saved_policy_samples_as_it_did_and_with_alpha_fixed_it_loads_with_transformers_alone(architecture, tmp_path):
    policy = conditioned_policy(architecture)
    episodes = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.13)
    policy.save(tmp_path / "any")
    loaded = load_policy(tmp_path / "any")
    assert loaded.risk.alpha_min == 0.1 and type(loaded.model) is type(policy.model)
    assert torch.equal(loaded.sample(PROMPTS, SAMPLING, seed=1, alpha=0.13).log_probs, episodes.log_probs)
    fixed = policy.at(0.13)
    assert fixed.sample(PROMPTS, SAMPLING, seed=1).completions == episodes.completions
    fixed.save(tmp_path)
    ids = torch.tensor([[3, 6, 5, 7, 4]])
    embeddings = policy.model.get_input_embeddings()(ids) - 3 * np.log(0.13) * policy.risk.weight
    expected = policy.model(inputs_embeds=embeddings).logits
    found = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - policy.model(ids).logits).abs().max() > 0.1
    assert load_policy(tmp_path).sample(PROMPTS, SAMPLING, seed=1).completions == episodes.completions
    assert policy.risk is not None  # it stays as it was
    assert policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.13).completions == episodes.completions


def test_a_lora_policy_is_conditioned_fixed_and_saved(tmp_path):
    tiny_policy().save(tmp_path / "base")
    trainer = conditioned_trainer(load_policy(tmp_path / "base", LoraSettings(r=2, alpha=4), seed=1))
    trainer.train()
    policy = trainer.policy
    assert policy.risk.weight.abs().max() > 0
    policy.save(tmp_path / "any")
    expected = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.3).completions
    assert load_policy(tmp_path / "any").sample(PROMPTS, SAMPLING, seed=1, alpha=0.3).completions == expected
    assert policy.at(0.3).sample(PROMPTS, SAMPLING, seed=1).completions == expected


def test_what_alpha_it_gets_is_checked():
    policy = conditioned_policy()
    for alpha in (0, -0.2, 1.5, float("nan"), torch.tensor([0.5, 0.0])):
        with pytest.raises(UserError, match=r"alpha = .*must lie in \(0, 1\]"):
            policy.sample(PROMPTS[:2], SAMPLING, seed=1, alpha=alpha)
    with pytest.warns(UserWarning, match=r"alpha = 0.05 is below alpha_min = 0.1.*extrapolates"):
        policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.05)
    policy.risk.alpha_min = 0.35  # which float32 rounds down
    policy.sample(PROMPTS[:2], SAMPLING, seed=1, alpha=torch.tensor([1.0, 0.35]))
    policy.risk.alpha_min = 0.1
    with pytest.raises(UserError, match=r"alpha is missing: .*from 0.1 to 1"):
        policy.sample(PROMPTS, SAMPLING, seed=1)
    with pytest.raises(UserError, match=r"alpha is missing"):
        policy.at(None)
    for ask in (lambda: tiny_policy().sample(PROMPTS, SAMPLING, seed=1, alpha=0.2), lambda: tiny_policy().at(0.2)):
        with pytest.raises(UserError, match="alpha = 0.2: this policy has no risk embedding"):
            ask()


def test_nothing_but_this_version_loads_its_folder_and_only_the_whole(tmp_path):
    conditioned_policy().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["risk_embedding"] == {"format": 1, "form": "log_alpha", "alpha_min": 0.1}
    # what an older version of this package does, which would otherwise run the network without its alpha
    with pytest.raises(ValueError, match="model type `gpt2-conditioned-on-alpha`"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    for change in ({"format": 2}, {"form": "tokens"}):
        newer = config | {"risk_embedding": config["risk_embedding"] | change}
        (tmp_path / "config.json").write_text(json.dumps(newer))
        with pytest.raises(UserError, match="has a risk embedding of format .*update the package"):
            load_policy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "risk_embedding.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no readable risk_embedding.safetensors"):
        load_policy(tmp_path)


# The trainer


def test_each_group_has_its_alpha_and_the_ends_are_always_there():
    trainer, seen = conditioned_trainer(own={"groups": 5}, batch_size=11), []
    for iteration in range(1, 200):
        trainer.iteration = iteration
        seen.append(trainer.group_alphas())
    found = np.log(np.array(seen)) / np.log(0.25)  # 0 at alpha = 1, and 1 at alpha_min
    assert (found[:, 0] == 0).all() and (found[:, 4] == 1).all()
    for place in range(3):  # one in each third, spread evenly over it
        inside = found[:, place + 1] * 3 - place
        assert 0 <= inside.min() < 0.05 and 0.95 < inside.max() <= 1
        assert inside.mean() == pytest.approx(0.5, abs=0.08)
    trainer.iteration = 7
    expected = [alpha for alpha, size in zip(seen[6], (3, 2, 2, 2, 2), strict=True) for _ in range(size)]
    torch.testing.assert_close(trainer.sample((PROMPTS * 2)[:11], {}).alpha, torch.tensor(expected))
    assert torch.equal(trainer.alphas(slice(5, 9)), torch.tensor(expected[5:9]))


def test_var_rewards_and_whitening_are_each_groups_own():
    """Every group written out slowly: 8 episodes in two groups of 4, half of the batch kept by the schedule."""
    trainer = conditioned_trainer(tiny_policy(dtype=torch.float64), {"groups": 2})
    trainer.iteration = 1
    rollout = trainer.sample(PROMPTS, {})
    rewards = torch.tensor([3.0, -1, 2, 0, 5, 1, -4, 1.5], dtype=torch.float64)
    rollout = replace(rollout, env_rewards=rewards)
    found = trainer.select(rollout, trainer.shape_rewards(rollout, kept=4), kept=4)
    mask, beta = rollout.completion_mask, trainer.kl_coef
    # the first group, at alpha 1, keeps all; the second, at alpha 0.25, still the schedule's half
    shaped = torch.cat([rewards[:4], rockafellar_uryasev_rewards(rewards[4:], 2)])
    assert shaped[4:].tolist() == [1.0, 1.0, 1.0 - 2 * 5, 1.0]
    dense = dense_rewards(shaped, rollout.log_probs, rollout.ref_log_probs, mask, beta)
    dense[4:] *= 2 / 4
    advantages, targets = generalized_advantages(dense, rollout.values, mask, 1.0, 0.95)
    torch.testing.assert_close(found.value_targets, targets)
    for rows in (slice(0, 4), slice(4, 8)):
        real = advantages[rows][mask[rows]]
        expected = (real - real.mean()) / (real.var(correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(found.advantages[rows][mask[rows]], expected)
    batch = trainer.update_batch(rollout, found)
    torch.testing.assert_close(batch.advantages, found.advantages, atol=1e-6, rtol=0)
    lowest = found.returns[4:].sort().indices[:2] + 4
    assert found.tail.tolist() == [0, 1, 2, 3, *sorted(lowest.tolist())]
    assert found.updated.tolist() == list(range(8))


def test_the_schedule_falls_for_all_groups_until_each_reaches_its_alpha():
    trainer = conditioned_trainer(own={"groups": 2}, batch_size=40)
    assert [trainer.group_kept(kept) for kept in (40, 30, 10)] == [[20, 20], [20, 15], [20, 5]]
    assert trainer.schedule.alpha == 0.25 and trainer.iterations == 12  # twice those of ppo
    assert conditioned_trainer(kl_coef=0.3).kl_coef == 0.3
    trainer = conditioned_trainer(own={"groups": 2, "iterations": 3, "kl_coef": 0.0}, kl_coef=0.3)
    assert (trainer.kl_coef, trainer.iterations) == (0.0, 3)  # its own go before those of ppo
    with pytest.raises(UserError, match=r"conditioned.groups = 5 with ppo.batch_size = 8"):
        conditioned_trainer(own={"groups": 5})


def test_it_learns_from_alpha():
    """The reward of a completion counts what alpha asks for: "good" above alpha 0.5, "bad" below."""

    def asked(prompts, completions, **columns):
        sign = np.where(np.arange(64) < 32, 1.0, -1.0)
        return list(sign * np.array(good_minus_bad(prompts, completions)))

    prompts = Dataset.from_dict({"prompt": PROMPTS * 8})
    settings = {"learning_rate": 2e-2, "kl_coef": 0.0, "batch_size": 64}
    trainer = conditioned_trainer(own={"groups": 2}, reward=asked, train_dataset=prompts, **settings)
    log = trainer.train()
    drawn = [trainer.policy.sample(PROMPTS * 8, SAMPLING, seed=3, alpha=alpha).completions for alpha in (1.0, 0.25)]
    good, bad = (np.mean(good_minus_bad([], completions)) for completions in drawn)
    assert good > bad + 1
    assert set(log) == {*logged_keys("training log"), *logged_keys("conditioned log")}
    batch = trainer.rollout
    assert log["env_reward_alpha_1"].iloc[-1] == pytest.approx(batch.env_rewards[:32].mean().item())
    assert log["kl_alpha_min"].iloc[-1] == pytest.approx(batch.kl[32:].mean().item())


def test_live_training_offers_it_beside_the_estimators(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "start", lambda _: tiny_policy())
    monkeypatch.setattr(Experiment, "reward", lambda _: good_minus_bad)
    monkeypatch.setattr(Experiment, "data", lambda _, name: pd.DataFrame({"prompt": PROMPTS * 16}))
    profile = load_profile("pocket", {"ppo.batch_size": 16, "conditioned.iterations": 3})
    experiment = Experiment(profile, Run(tmp_path), seed=1)
    for estimator in ESTIMATORS.values():
        trainer = experiment.live_trainer(alpha=0.25, estimator=estimator, warm_start=2, rho=0.5, seed=7)
        assert isinstance(trainer, AlphaConditionedTrainer) == (estimator == "conditioned")
        schedule = trainer.schedule
        assert (trainer.iterations, trainer.seed, schedule.alpha, schedule.warm_start) == (40, 7, 0.25, 2)
        trainer.step(**trainer.next_prompts())
        assert 0 < len(trainer.targets.tail) <= len(trainer.rollout.env_rewards) == 16
    assert trainer.policy.risk.alpha_min == 0.25 and not list(tmp_path.iterdir())
