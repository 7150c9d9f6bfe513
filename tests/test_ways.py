"""The ways to train that the studies `ru_cost` and `repairs` compare, on the tiny policy."""

import pytest
import torch
from tiny import ppo_trainer, sampling_settings

from benchmarks import ways
from rarlhf_nb.ppo import whiten
from rarlhf_nb.trainer import CVaRPPOTrainer


def make_trainer(kind=CVaRPPOTrainer, **settings):
    return ppo_trainer(kind=kind, sampling=sampling_settings(), **settings)


def updated_weights(trainer, iterations=2):
    """Policy and critic after the iterations."""
    for _, _ in zip(range(iterations), trainer, strict=False):
        pass
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.parameters()])


def last_batch(trainer):
    """What the update of the last iteration was given."""
    return trainer.update_batch(trainer.rollout, trainer.targets)


@pytest.mark.parametrize("name", ["CriticOnAll", "DroppedHeld", "RankedByPrompt", "LargerBatch"])
def test_where_nothing_is_dropped_a_repair_changes_nothing(name, monkeypatch):
    monkeypatch.setattr(ways, "B", 8)
    plain = updated_weights(make_trainer(alpha=1.0))
    torch.testing.assert_close(updated_weights(make_trainer(getattr(ways, name), alpha=1.0)), plain)


def test_what_the_policy_and_the_critic_learn_from():
    kept_four = {"warm_start": 0, "rho": 0.1}
    first = make_trainer(whitening="batch", **kept_four)  # all of them sample the same in their first iteration
    trainers = {
        name: make_trainer(getattr(ways, name), **kept_four)
        for name in ("CriticOnAll", "DroppedHeld", "CVaRGradient", "RankedByPrompt")
    }
    for trainer in (first, *trainers.values()):
        next(iter(trainer))
    tail, mask, targets = first.targets.tail, first.rollout.completion_mask, first.targets
    dropped = torch.tensor([place for place in range(8) if place not in tail.tolist()])
    on_all, kept_alone = whiten(targets.advantages, mask), whiten(targets.advantages[tail], mask[tail])
    torch.testing.assert_close(last_batch(first).advantages, on_all[tail])

    batch = last_batch(trainers["CriticOnAll"])
    torch.testing.assert_close(batch.advantages[tail], 2 * on_all[tail])  # of twice as many tokens
    assert not batch.advantages[dropped].any()
    assert torch.equal(batch.value_targets, targets.value_targets)

    batch = last_batch(trainers["DroppedHeld"])
    torch.testing.assert_close(batch.advantages[tail], kept_alone)
    assert torch.equal(batch.value_targets[dropped], batch.rollout.values[dropped])
    assert batch.weights.tolist() == [2.0] * 8

    returns = targets.returns[tail]
    by_hand = (returns - returns.max()).repeat_interleave(5).view(4, 5)
    torch.testing.assert_close(last_batch(trainers["CVaRGradient"]).advantages, by_hand)

    ranked = trainers["RankedByPrompt"]
    assert set(ranked.targets.updated.tolist()) == set(ranked.rollout.values[:, 0].argsort()[:4].tolist())


def test_a_dropped_episode_far_from_the_reference_is_pushed_back():
    trainer = make_trainer(ways.DroppedHeld, learning_rate=0.01, kl_coef=0.5, warm_start=0, rho=0.1)
    updated_weights(trainer, iterations=4)
    batch, kl = last_batch(trainer), trainer.rollout.kl
    dropped = [place for place in range(8) if place not in trainer.targets.tail.tolist()]
    ranked = sorted(dropped, key=lambda place: kl[place].item())
    first = batch.advantages[:, 0]  # the KL to go of a whole episode
    assert [place.item() for place in first[dropped].argsort(descending=True)] == [dropped.index(r) for r in ranked]
    assert kl[ranked[-1]] > kl[ranked[0]] + 0.1


def test_a_larger_batch_samples_more_and_updates_on_as_many(monkeypatch):
    monkeypatch.setattr(ways, "B", 8)
    trainer = make_trainer(ways.LargerBatch)
    sizes = [(len(trainer.rollout.env_rewards), stats["kept"]) for stats in trainer]
    assert sizes == [(8, 8), (10, 8), (16, 8), (16, 8), (16, 8), (16, 8)]


def test_a_uniform_draw_is_unbiased():
    trainer = make_trainer(ways.DrawnUniformly, estimator="rockafellar_uryasev", above_share=0.5)
    updated_weights(trainer, iterations=1)
    found = []
    for trainer.seed in range(2000):
        found.append(trainer.select(trainer.rollout, trainer.targets, kept=3).weights)
        assert sorted(found[-1].tolist()) == pytest.approx([0, 0, 1, 1, 1, 5 / 3, 5 / 3, 5 / 3])
    torch.testing.assert_close(torch.stack(found).mean(0), torch.ones(8), atol=0.08, rtol=0)


def test_the_tail_alone_leaves_out_all_above_var():
    trainer = make_trainer(ways.TailAlone, estimator="rockafellar_uryasev")
    updated_weights(trainer, iterations=6)
    lowest = trainer.rollout.env_rewards.sort(stable=True).indices[:4]
    assert trainer.targets.weights.nonzero().flatten().tolist() == sorted(lowest.tolist())
