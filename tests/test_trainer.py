import asyncio
import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny import PROMPTS, SAMPLING, TEXTS, good_minus_bad, ppo_settings, ppo_trainer, sampling_settings, tiny_policy

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.glossary import logged_keys
from rarlhf_nb.policy import evaluate_tokens, load_policy
from rarlhf_nb.ppo import dense_rewards, generalized_advantages, policy_losses, value_losses, whiten
from rarlhf_nb.seeding import hash_seed
from rarlhf_nb.settings import LoraSettings, SFTSettings


@pytest.mark.parametrize("dtype, mixed_precision", [(torch.bfloat16, "no"), (torch.float32, "bf16")])
def test_in_half_precision_the_first_epoch_begins_at_a_ratio_of_one(dtype, mixed_precision):
    """Read token by token, bf16 rounds otherwise than read at once; the update must not take this for a move."""
    log = ppo_trainer(tiny_policy(dtype=dtype), epochs=1, iterations=3, mixed_precision=mixed_precision).train()
    assert log["ratio_mean"].tolist() == [1.0] * 3 and log["clip_fraction"].tolist() == [0.0] * 3


def test_trainers_of_two_precisions_in_one_process_do_not_meet():
    """Neither each other, nor transformers' Trainer, whose precision is accelerate's for the whole process."""
    precisions = ["no", "bf16"]

    def trainer(mixed_precision):
        return ppo_trainer(tiny_policy(), iterations=3, mixed_precision=mixed_precision)

    alone = {precision: trainer(precision).train()["kl"].tolist() for precision in precisions}
    assert alone["no"] != alone["bf16"]
    sft = SFTSettings(learning_rate=1e-3, batch_size=8, epochs=1, max_length=8, max_steps=1)
    together = {precision: trainer(precision) for precision in precisions}
    for _ in zip(*together.values(), strict=True):
        for precision in precisions:
            train_sft(tiny_policy(), TEXTS, sft, 1, precision)
    assert {precision: [row["kl"] for row in one.rows] for precision, one in together.items()} == alone


def gradients(policy):
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def sampled(trainer, kept):
    """All that the trainer's update takes, in float64 all the way."""
    rollout = trainer.sample(PROMPTS, {})
    rollout = replace(rollout, env_rewards=rollout.env_rewards.double())
    return rollout, trainer.select(rollout, trainer.shape_rewards(rollout, kept), kept)


def clip_some(policy):
    """Move the policy so that no ratio is 1 and some are clipped."""
    policy.model.transformer.h[0].mlp.c_fc.bias.data += 0.05


@pytest.mark.parametrize("micro_batch_size, whitening", [(None, "kept"), (2, "kept"), (None, "batch")])
def test_tail_only_gradient_equals_the_masked_loss_over_the_whole_batch(micro_batch_size, whitening):
    """The authors' way, written out slowly: every episode forward and backward, the dropped ones' loss masked."""
    policy = tiny_policy(dtype=torch.float64)
    trainer = ppo_trainer(policy, epochs=1, micro_batch_size=micro_batch_size, whitening=whitening)
    rollout, targets = sampled(trainer, kept=3)
    clip_some(policy)
    mask = rollout.completion_mask.clone()
    mask[[i for i in range(8) if i not in targets.tail.tolist()]] = False
    advantages = whiten(targets.advantages, {"kept": mask, "batch": rollout.completion_mask}[whitening])
    now = evaluate_tokens(policy, rollout, trainer.sampling)
    policy_loss = policy_losses(now.log_probs, rollout.log_probs, advantages, 0.2)[mask].mean()
    value_loss = value_losses(now.values, rollout.values, targets.value_targets, 0.2)[mask].mean()
    (policy_loss + 0.1 * value_loss).backward()
    expected = gradients(policy)
    policy.zero_grad()

    trainer.optimizer.step = lambda: recorded.update(gradients(policy))
    recorded = {}
    losses = trainer.update(rollout, targets)
    assert losses["policy_loss"] == pytest.approx(policy_loss.item())
    assert losses["value_loss"] == pytest.approx(value_loss.item())
    assert recorded.keys() == expected.keys() and len(expected) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(recorded[name], gradient, atol=1e-6, rtol=1e-6)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2


def test_dropped_episodes_never_enter_the_update():
    trainer, rows = ppo_trainer(), []
    rollout, targets = sampled(trainer, kept=3)
    backward = trainer.backward
    trainer.backward = lambda batch, tokens: (
        rows.extend(map(PROMPTS.index, batch.rollout.prompts)) or backward(batch, tokens)
    )
    stats = trainer.update(rollout, targets)
    assert rows == targets.tail.tolist() * 2  # two epochs
    kept = rollout.take(targets.tail)
    assert stats["gradient_tokens"] == 2 * int(kept.prompt_mask.sum() + kept.completion_mask.sum())


def plain_ppo(policy, iterations, args, seed):
    """RLHF by PPO as a textbook has it, with no notion of a tail; shares only the equations with the trainer."""
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate)
    feed = ppo_trainer(seed=seed)
    losses = []
    for m in range(1, iterations + 1):
        feed.iteration = m - 1
        episodes = policy.sample(feed.next_prompts()["prompts"], SAMPLING, hash_seed(seed, m))
        mask = episodes.completion_mask
        rewards = torch.tensor(good_minus_bad(episodes.prompts, episodes.completions))
        with torch.no_grad():
            old = evaluate_tokens(policy, episodes, SAMPLING)
            ref = evaluate_tokens(reference, episodes, SAMPLING).log_probs
        dense = dense_rewards(rewards, old.log_probs, ref, mask, args.kl_coef)
        advantages, targets = generalized_advantages(dense, old.values, mask, args.gamma, args.lam)
        advantages = whiten(advantages, mask)
        for _ in range(args.epochs):
            now = evaluate_tokens(policy, episodes, SAMPLING)
            loss = policy_losses(now.log_probs, old.log_probs, advantages, args.cliprange)[mask].mean()
            value_loss = value_losses(now.values, old.values, targets, args.cliprange_value)[mask].mean()
            optimizer.zero_grad()
            (loss + args.vf_coef * value_loss).backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("estimator", ["tail_selection", "rockafellar_uryasev"])
def test_alpha_one_is_plain_ppo_step_for_step(estimator):
    policy = tiny_policy(dtype=torch.float64)
    trainer = ppo_trainer(copy.deepcopy(policy), epochs=1, alpha=1.0, estimator=estimator)
    stats = trainer.train()
    expected = plain_ppo(policy, 6, ppo_settings(epochs=1), seed=1)
    assert stats["policy_loss"].tolist() == pytest.approx(expected, abs=1e-6)
    for one, other in zip(trainer.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert (stats["kept"] == 8).all()


def test_garbage_in_padding_changes_no_logged_number():
    def stats(garbage):
        trainer = ppo_trainer(sampling=sampling_settings(minimum_completion_length=0))
        sample = trainer.policy.sample

        def dirty_sample(*args, **kwargs):
            episodes = sample(*args, **kwargs)
            assert not episodes.completion_mask.all() and not episodes.prompt_mask.all()
            if garbage:
                episodes.completion_ids[~episodes.completion_mask] = 9
                episodes.prompt_ids[~episodes.prompt_mask] = 4
            return episodes

        trainer.policy.sample = dirty_sample
        return trainer.train().drop(columns="seconds")

    clean, dirty = stats(False), stats(True)
    for key in clean:
        assert dirty[key].tolist() == pytest.approx(clean[key].tolist(), abs=1e-5), key


def test_every_logged_key_is_in_the_glossary():
    assert list(ppo_trainer().step(PROMPTS)) == logged_keys("training log")


def test_the_schedule_decides_how_many_are_kept_and_the_lowest_returns_they_are():
    trainer = ppo_trainer(kl_coef=0.3)
    assert [stats["kept"] for stats in trainer] == trainer.schedule.kept_counts() == [8, 6, 4, 4, 4, 4]
    returns = trainer.rollout.env_rewards - 0.3 * trainer.rollout.kl
    assert set(trainer.targets.tail.tolist()) == set(returns.sort(stable=True).indices[:4].tolist())


def test_rockafellar_uryasev_updates_on_everyone_with_the_clipped_reward():
    trainer = ppo_trainer(estimator="rockafellar_uryasev", gamma=1.0, lam=1.0)
    rollout, targets = sampled(trainer, kept=2)
    assert targets.updated.tolist() == list(range(8)) and len(targets.tail) == 2
    eta = rollout.env_rewards.sort().values[1]
    clipped = eta + (rollout.env_rewards - eta).clamp(max=0) / 0.25
    scaled = 0.25 * (clipped - 0.1 * rollout.kl)  # the objective times alpha' = 2 / 8
    torch.testing.assert_close(targets.value_targets[:, 0], scaled.to(targets.value_targets.dtype))


def test_the_gradient_of_a_share_drawn_above_var_is_that_of_all_on_average():
    """All three draws of one of the three episodes above VaR."""
    policy = tiny_policy(dtype=torch.float64)
    risk = {"estimator": "rockafellar_uryasev", "above_share": 1 / 3}
    trainer = ppo_trainer(policy, epochs=1, micro_batch_size=2, **risk)
    rollout, targets = sampled(trainer, kept=5)
    above, mask = rollout.env_rewards.sort(stable=True).indices[5:], rollout.completion_mask
    sizes = (whiten(targets.advantages, mask).abs() * mask).sum(1)[above]
    chances = sizes / sizes.sum()
    (one,) = targets.weights[above].nonzero().flatten()
    torch.testing.assert_close(targets.weights[above[one]], 1 / chances[one])
    assert (targets.weights == 1).sum() == 5
    clip_some(policy)
    trainer.optimizer.step = lambda: recorded.append(gradients(policy))
    recorded, losses = [], []
    tail = torch.ones(8, dtype=torch.float64).index_fill(0, above, 0)
    draws = [tail.index_fill(0, place, 1 / chance.item()) for place, chance in zip(above, chances, strict=True)]
    for weights in [torch.ones(8, dtype=torch.float64), *draws]:
        losses.append(trainer.update(rollout, replace(targets, weights=weights)))
    whole, *parts = recorded
    for name, gradient in whole.items():
        average = sum(chance * part[name] for chance, part in zip(chances, parts, strict=True))
        torch.testing.assert_close(average, gradient, atol=1e-12, rtol=1e-9)
        assert gradient.abs().max() > 0
    for key in ("policy_loss", "value_loss", "ratio_mean", "clip_fraction"):
        average = sum(chance.item() * part[key] for chance, part in zip(chances, losses[1:], strict=True))
        assert average == pytest.approx(losses[0][key], rel=1e-9), key
    left = rollout.take((weights > 0).nonzero().flatten())
    assert losses[-1]["gradient_tokens"] == left.tokens < losses[0]["gradient_tokens"] == rollout.tokens


def test_the_draw_above_var_depends_on_seed_and_iteration_alone():
    def draws(seed):
        trainer = ppo_trainer(seed=seed, estimator="rockafellar_uryasev", alpha=0.25, above_share=0.5)
        return [trainer.targets.weights.tolist() for _ in trainer]

    found = draws(seed=1)
    assert found == draws(seed=1) != draws(seed=2)
    assert sorted(found[-1])[:6] == [0.0] * 3 + [1.0] * 2 + [pytest.approx(min(w for w in found[-1] if w > 1))]
    assert found[-1] != found[-2]


def test_the_controller_sees_the_kl_of_the_kept_episodes():
    trainer = ppo_trainer(kl_target=2.0, kl_horizon=100, kl_coef=0.2)
    rollout, targets = sampled(trainer, kept=2)
    kl = torch.full((8,), 50.0)
    kl[targets.updated] = torch.tensor([2.0, 2.2])
    kl_coef = trainer.adapted_kl_coef(replace(rollout, kl=kl), targets)
    assert kl_coef == pytest.approx(0.2 * (1 + 0.05 * 8 / 100))


def test_training_raises_the_reward_of_the_tail():
    stats = ppo_trainer(iterations=60, learning_rate=3e-3, kl_coef=0.02, warm_start=5, rho=0.3).train()
    first, last = stats["env_reward_mean"][:5].mean(), stats["env_reward_mean"][-5:].mean()
    assert last > first + 1.5
    assert (stats["kl"][-20:] > 0).all() and stats["kl"][0] == pytest.approx(0, abs=1e-5)


def test_columns_reach_the_reward_and_several_rewards_add_up():
    seen = []

    def by_topic(prompts, completions, topic, **columns):
        seen.append(topic)
        return [1.0] * len(prompts)

    trainer = ppo_trainer(reward=[good_minus_bad, by_topic])
    next(iter(trainer))
    assert sorted(seen[0]) == list("abcdefgh")
    plain = good_minus_bad(trainer.rollout.prompts, trainer.rollout.completions)
    assert trainer.rollout.env_rewards.tolist() == [r + 1 for r in plain]


def test_a_batch_of_another_size_a_missing_data_set_and_a_wrong_reward_are_named():
    with pytest.raises(UserError, match="the reward of episode 2 is nan"):
        ppo_trainer(reward=lambda **texts: [0.0, 0.0, float("nan"), *[0.0] * 5]).step(PROMPTS)
    trainer = ppo_trainer()
    with pytest.raises(UserError, match="prompts holds 3.*batch_size = 8"):
        trainer.step(PROMPTS[:3])
    assert trainer.iteration == 0
    trainer.train_dataset = None
    with pytest.raises(UserError, match="train_dataset is missing"):
        trainer.train()


def test_trackers_come_with_accelerate(tmp_path):
    ppo_trainer(report_to="tensorboard", project_dir=tmp_path).train()
    assert any(b"env_reward_mean" in events.read_bytes() for events in tmp_path.rglob("events.out.tfevents.*"))
    ppo_trainer(project_dir=tmp_path / "none").train()
    assert not (tmp_path / "none").exists()


def test_a_lora_policy_trains_its_adapter_alone(tmp_path):
    tiny_policy().save(tmp_path)
    policy = load_policy(tmp_path, lora=LoraSettings(r=2, alpha=4), seed=1)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    stats = ppo_trainer(policy, learning_rate=1e-2).train()
    changed = {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name or "value_head" in name for name in changed)
    assert stats["kl"][0] == pytest.approx(0, abs=1e-5) and stats["kl"].iloc[-1] > 0.01


def test_a_reward_is_any_function_of_trl():
    """With token ids, the training's state and None for some; async, or without the other columns."""
    seen = {}

    def of_ids(completion_ids, trainer_state, log_metric, **columns):
        log_metric("length", 1.0)
        seen.setdefault("steps", []).append((trainer_state.global_step, trainer_state.max_steps))
        seen["ids"], seen["topic"] = completion_ids, columns["topic"]
        return [float(len(ids)) for ids in completion_ids]

    async def slowly(prompts, completions):
        await asyncio.sleep(0)
        return [None if index % 2 else 0.5 for index in range(len(prompts))]

    trainer = ppo_trainer(reward=[of_ids, slowly], iterations=2, warm_start=0)
    trainer.train()
    rollout = trainer.rollout
    assert seen["steps"] == [(0, 2), (1, 2)] and len(seen["topic"]) == 8
    assert seen["ids"] == [rollout.completion_ids[i][rollout.completion_mask[i]].tolist() for i in range(8)]
    expected = [len(ids) + (0 if index % 2 else 0.5) for index, ids in enumerate(seen["ids"])]
    assert rollout.env_rewards.tolist() == expected
    with pytest.raises(UserError, match="reward of episode 1 is n"):
        ppo_trainer(reward=[slowly, slowly]).step(PROMPTS)  # no function has a reward for it


@pytest.mark.parametrize(
    "data, message",
    [
        (Dataset.from_dict({"text": ["film"]}), "no `prompt` column; it has: text"),
        (Dataset.from_dict({"prompt": []}), "holds no rows"),
        (Dataset.from_dict({"prompt": ["film", None]}), "row 2 has the prompt None"),
        (Dataset.from_dict({"prompt": ["film", " "]}), "row 2 has the prompt ' ', which has no tokens"),
        (Dataset.from_dict({"prompt": ["film"], "prompts": ["bad"]}), "a column 'prompts'.*rename"),
        (Dataset.from_dict({"prompt": ["film"], "completions": ["bad"]}), "a column 'completions'.*rename"),
        (Dataset.from_dict({"prompt": ["film"], "trainer_state": ["bad"]}), "a column 'trainer_state'.*rename"),
        (["film"], "train_dataset is a list; give a Dataset"),
    ],
)
def test_a_data_set_that_does_not_fit_is_named(data, message):
    with pytest.raises(UserError, match=message):
        ppo_trainer(train_dataset=data)


def test_a_reward_gets_a_column_that_the_first_row_of_a_list_lacks():
    rows = [{"prompt": "the film is"}, *({"prompt": "the plot was", "label": 1} for _ in range(7))]
    seen = []

    def reward(completions, label, **columns):
        seen.extend(label)
        return [0.0] * len(completions)

    ppo_trainer(reward=reward, train_dataset=rows, iterations=1, warm_start=0).train()
    assert sorted(seen, key=str) == [1] * 7 + [None]


@pytest.mark.parametrize("kind", [pd.DataFrame, lambda columns: pd.DataFrame(columns).to_dict("records")])
def test_prompts_may_be_a_table_or_a_list(kind):
    expected = ppo_trainer(iterations=1, warm_start=0).train()
    given = ppo_trainer(train_dataset=kind(TEXTS.to_dict()), iterations=1, warm_start=0).train()
    assert given.drop(columns="seconds").equals(expected.drop(columns="seconds"))
