import pytest
import torch
from tiny import tiny_policy

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.settings import SFTSettings

TEXTS = ["the film is very good", "the plot was good", "very good film"] * 20
SETTINGS = SFTSettings(learning_rate=1e-2, batch_size=10, epochs=10, max_length=16)


def test_sft_lowers_the_loss_and_says_nothing(capfd):
    policy = tiny_policy()
    before = torch.random.get_rng_state()
    log = train_sft(policy, TEXTS, SETTINGS, seed=1)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert torch.equal(torch.random.get_rng_state(), before) and not policy.training
    assert "loss" not in capfd.readouterr().out


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_logged_loss_is_the_mean_over_the_tokens_that_are_predicted(architecture):
    policy = tiny_policy(architecture=architecture)
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses = []
    for text in TEXTS[:3]:
        ids = torch.tensor(policy.processing_class(text)["input_ids"] + [2])  # TRL appends EOS
        losses += torch.nn.functional.cross_entropy(policy.model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    log = train_sft(policy, TEXTS[:3], settings(batch_size=3, max_steps=1), seed=1)
    assert log[0]["loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_sft_is_seeded():
    one, two, other = (train_sft(tiny_policy(), TEXTS, settings(epochs=2), seed) for seed in (1, 1, 2))
    losses = [[row["loss"] for row in log] for log in (one, two, other)]
    assert losses[0] == losses[1] != losses[2]
    large = [train_sft(tiny_policy(), TEXTS, settings(max_steps=2), seed)[-1]["loss"] for seed in (2**32, 2**64 + 1)]
    assert large[0] != large[1]


def settings(**changes) -> SFTSettings:
    return SFTSettings(**SETTINGS.model_dump() | changes)


def test_accumulated_batches_train_like_one_large_batch():
    """Texts differ in length, so a mean of the batches' means would not do."""
    whole, halves = (tiny_policy(architecture="llama") for _ in range(2))  # no dropout, which batches draw anew
    log = train_sft(whole, TEXTS, settings(epochs=2), seed=1)
    halves_log = train_sft(halves, TEXTS, settings(epochs=2, batch_size=5, gradient_accumulation_steps=2), seed=1)
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in halves_log], abs=1e-3)
    assert len(log) == 12
    for one, other in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_max_steps_ends_the_training_early_and_none_does_not():
    assert [row["step"] for row in train_sft(tiny_policy(), TEXTS, settings(max_steps=3), seed=1)] == [1, 2, 3]
    assert len(train_sft(tiny_policy(), TEXTS, settings(epochs=1, max_steps=8), seed=1)) == 8  # and outlasts epochs
    assert len(train_sft(tiny_policy(), TEXTS, settings(epochs=1), seed=1)) == 6


def test_packed_training_counts_blocks_and_learns_across_them(capfd):
    # 20 times 6 + 5 + 4 tokens are 18 blocks of 16 and one of 12: five batches of four an epoch, and unpacked fifteen
    policy = tiny_policy()
    log = train_sft(policy, TEXTS, settings(batch_size=4, packing=True), seed=1)
    assert log[-1]["step"] == 50 and log[-1]["loss"] < 0.5 * log[0]["loss"]
    ids = torch.tensor([policy.processing_class(TEXTS[0])["input_ids"] + [2]])
    assert policy.model(ids).logits[0, -1].argmax() == 6  # after EOS "the" of the next text: only blocks teach that
    assert "warn" not in capfd.readouterr().err.lower()


def test_a_large_learning_set_is_cut_before_it_is_packed():
    log = train_sft(tiny_policy(), TEXTS, settings(batch_size=1, epochs=1, packing=True, texts=7), seed=1)
    assert len(log) == 3 and log[-1]["num_tokens"] == 15 * 2 + 6  # two blocks and the rest
