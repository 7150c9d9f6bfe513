"""Each equation against numbers worked by hand; `test_properties` has what holds for every input."""

import pytest
import torch

from rarlhf_nb.ppo import dense_rewards, episode_kl, next_kl_coef, value_losses

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)


def float64(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_dense_rewards_pay_the_environment_at_the_last_real_token():
    log_probs = float64([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]])
    reference = float64([[-2.0, -2.0, -1.0], [-1.5, 0, 7.0]])
    rewards = dense_rewards(float64([5.0, -4.0]), log_probs, reference, MASK, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 0.0, 6.0], [-0.25, -3.5, 0.0]]
    assert episode_kl(log_probs, reference, MASK).tolist() == [-1.0, -0.5]


def test_clipped_value_loss_by_hand():
    values, old, targets = float64([[1.0, 1.1, 0.0]]), float64([[0.0, 1.0, 0.0]]), float64([[2.0, 2.0, -1.0]])
    # clipped values 0.2, 1.1, 0.0 -> the larger of (1, 3.24), (0.81, 0.81), (1, 1), halved
    assert value_losses(values, old, targets, 0.2).flatten().tolist() == pytest.approx([1.62, 0.405, 0.5])


def test_kl_controller_vectors():
    gain = 128 / 10_000
    assert next_kl_coef(0.2, 6.0, 6.0, 128, 10_000) == 0.2
    assert next_kl_coef(0.2, 6.6, 6.0, 128, 10_000) == pytest.approx(0.2 * (1 + 0.1 * gain))
    assert next_kl_coef(0.2, 60.0, 6.0, 128, 10_000) == pytest.approx(0.2 * (1 + 0.2 * gain))
    assert next_kl_coef(0.2, -9.0, 6.0, 128, 10_000) == pytest.approx(0.2 * (1 - 0.2 * gain))


def test_the_mean_of_the_kl_estimate_is_the_closed_form_with_its_sign():
    policy, reference = float64([0.5, 0.3, 0.2]), float64([0.7, 0.2, 0.1])
    closed_form = (policy * (policy / reference).log()).sum().item()
    tokens = torch.multinomial(policy.expand(200_000, 3), 1, generator=torch.Generator().manual_seed(0))
    kl = episode_kl(policy.log()[tokens], reference.log()[tokens], torch.ones_like(tokens, dtype=torch.bool))
    assert closed_form == pytest.approx(0.09203, abs=1e-5)
    assert kl.mean().item() == pytest.approx(closed_form, abs=0.003)
