"""The equations of PPO on episodes, one function each; tensors in, tensors out.

Shapes: B episodes, T completion tokens, padded on the right. `mask` (B, T) is True on real tokens; the contents of
padded positions change no result.
"""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens: (B, T), (B, T) -> ()."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over the real tokens of each episode: (B, T), (B, T) -> (B,)."""
    return values.masked_fill(~mask, 0.0).sum(1)


def episode_kl(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The KL of eq. 3, Sum_t log pi(a_t|s_t) - log pi_ref(a_t|s_t): (B, T) -> (B,), nats per episode.

    Its mean over episodes drawn from pi is an unbiased estimate of KL(pi || pi_ref), so only noise makes it negative.
    """
    return masked_sum(log_probs - ref_log_probs, mask)


def dense_rewards(
    env_rewards: torch.Tensor, log_probs: torch.Tensor, ref_log_probs: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Eq. 5: r_bar_t = r_t - beta log(pi / pi_ref); r is paid at the last completion token: (B,), (B, T) -> (B, T)."""
    rewards = (-kl_coef * (log_probs - ref_log_probs)).masked_fill(~mask, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(rewards)), last] += env_rewards.to(rewards.dtype)
    return rewards


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (Schulman et al. 2016): advantages and the critic's targets, both (B, T), 0 on padding.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  target_t = A_t + V_t.
    An episode ends with its last real token; the value after it is 0.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 over the real tokens: (B, T) -> (B, T), 0 on padding."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return ((values - mean) * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def policy_losses(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """Eq. 11, PPO's clipped surrogate (Schulman et al. 2017), per token: max(-A ratio, -A clip(ratio)): (B, T) each."""
    ratio = (log_probs - old_log_probs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.max(unclipped, clipped)


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, targets: torch.Tensor, cliprange_value: float
) -> torch.Tensor:
    """Eq. 13 with PPO's clipping, per token: max((V - R)^2, (clip(V) - R)^2) / 2: (B, T) -> (B, T).

    The draft leaves out the square. The factor 1/2 is that of TRL's PPO, on which the authors built.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.max((values - targets) ** 2, (clipped - targets) ** 2)


def next_kl_coef(kl_coef: float, kl: float, kl_target: float, batch_size: int, kl_horizon: int) -> float:
    """Eqs. 4 and 12: beta (1 + K_beta e), e = clip((KL - KL_target) / KL_target, -0.2, 0.2), K_beta = B / horizon."""
    error = min(max((kl - kl_target) / kl_target, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / kl_horizon)
