import torch
from tiny import tiny_policy

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.profiles import SFTSettings

TEXTS = ["the film is very good", "the plot was good", "very good film"] * 20
SETTINGS = SFTSettings(learning_rate=1e-2, batch_size=10, epochs=10, max_length=16)


def test_sft_lowers_the_loss_and_says_nothing(capfd):
    policy = tiny_policy()
    before = torch.random.get_rng_state()
    log = train_sft(policy, TEXTS, SETTINGS, seed=1)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert torch.equal(torch.random.get_rng_state(), before) and not policy.training
    assert "loss" not in capfd.readouterr().out


def test_sft_is_seeded():
    one, two, other = (tiny_policy() for _ in range(3))
    for policy, seed in ((one, 1), (two, 1), (other, 2)):
        train_sft(policy, TEXTS, SETTINGS, seed=seed)
    weights = [policy.model.lm_head.weight for policy in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
