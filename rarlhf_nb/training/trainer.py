"""Algorithm 1: PPO on the tail. RLHF is the same loop with every episode kept (alpha = 1).

Departures from the paper, each a setting or a repair:
1. Dropped episodes get no forward and no backward pass in the update; the authors' code masks their loss and pays for
   them. The gradient is the same.
2. Exactly kept(m) episodes are updated on; the authors' code keeps every tie at the boundary.
3. `estimator = rockafellar_uryasev` is ours: CVaR of the environment reward on all episodes (see `risk`).
4. Log-probabilities are those of the sampler's masked distribution (see `policy`).
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.profiles import PPOSettings, RiskSettings, SamplingSettings
from rarlhf_nb.core.seeding import hash_seed, shuffled_stream
from rarlhf_nb.training.policy import ActorCritic, Episodes, Reference, evaluate_tokens
from rarlhf_nb.training.ppo import (
    dense_rewards,
    episode_kl,
    generalized_advantages,
    masked_mean,
    next_kl_coef,
    policy_losses,
    value_losses,
    whiten,
)
from rarlhf_nb.training.risk import SoftRiskSchedule, kept_episodes, rockafellar_uryasev_rewards
from rarlhf_nb.worlds.rewards import check_rewards

Reward = Callable[..., Sequence[float]]


@dataclass
class Rollout:
    """A batch of episodes with what Algorithm 1 computes of them before the update: (B,) or (B, T) each."""

    episodes: Episodes
    env_rewards: torch.Tensor  # (B,)
    log_probs: torch.Tensor  # (B, T), as the three after it
    ref_log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor  # (B,) sum over tokens of the log-ratio
    returns: torch.Tensor = field(init=False)  # (B,) environment reward - beta KL
    advantages: torch.Tensor = field(init=False)  # (B, T)
    targets: torch.Tensor = field(init=False)  # (B, T) of the critic
    tail: torch.Tensor = field(init=False)  # (kept,) indices of the lowest episodes, batch order
    updated: torch.Tensor = field(init=False)  # indices of the episodes in the update


class CVaRPPOTrainer:
    """Fine-tune a policy on the tail of its returns (RA-RLHF, Chaudhary et al. 2024, Algorithm 1).

    model: the actor-critic, trained in place. reward_funcs: a callable or several, TRL's signature
    `(prompts, completions, **columns) -> list[float]`; several are summed. args, risk, sampling: see `profiles`.
    train_dataset: a `prompt` column; its other columns go to the rewards. reference: pi_ref; the policy as it is now
    unless given. log_file: a JSON line an iteration. report_to: accelerate's trackers, none by default.

    `train()` runs all iterations; iterating over the trainer runs them one by one and yields each one's statistics
    (keys in `glossary`); `step(prompts)` runs one on prompts of your own. `rollout` holds the last batch.
    """

    def __init__(
        self,
        model: ActorCritic,
        reward_funcs: Reward | list[Reward],
        args: PPOSettings,
        risk: RiskSettings,
        sampling: SamplingSettings,
        train_dataset: Dataset | None = None,
        reference: Reference | None = None,
        seed: int = 0,
        mixed_precision: str = "no",
        log_file: Path | None = None,
        report_to: Sequence[str] = (),
        project_dir: Path | None = None,
    ) -> None:
        self.args, self.risk, self.sampling, self.seed = args, risk, sampling, seed
        self.schedule = SoftRiskSchedule(args.batch_size, risk.alpha, args.iterations, risk.warm_start, risk.rho)
        self.reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.train_dataset = train_dataset
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision, log_with=list(report_to) or None, project_dir=project_dir
        )
        self.policy = model
        self.reference = reference or Reference(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=args.learning_rate)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.kl_coef = args.kl_coef
        self.iteration = 0
        self.rollout: Rollout | None = None
        self.log_file = log_file
        if report_to:
            self.accelerator.init_trackers("rarlhf_nb", config=args.model_dump() | risk.model_dump())

    def step(self, prompts: list[str], **columns: list) -> dict[str, float]:
        """One iteration of Algorithm 1 on B prompts; returns its statistics. `columns` go to the rewards.

        Raises `UserError` unless there are exactly B prompts, and for rewards that are not one finite number each.
        """
        if len(prompts) != self.args.batch_size:
            raise UserError(
                f"prompts holds {len(prompts)}, but the schedule counts in batches of batch_size = "
                f"{self.args.batch_size}; give that many, or set batch_size."
            )
        started = time.perf_counter()
        self.iteration += 1
        kept = self.schedule.kept(self.iteration)
        rollout = self.sample(prompts, columns)  # Alg. 1, lines 1 and 2
        self.shape_rewards(rollout, kept)  # lines 2 and 3
        self.select(rollout, kept)  # line 4
        losses = self.update(rollout)  # line 5
        stats = self.statistics(rollout, losses)
        self.adapt_kl_coef(rollout)  # line 6
        self.rollout = rollout
        return stats | {"seconds": time.perf_counter() - started}

    def sample(self, prompts: list[str], columns: dict[str, list]) -> Rollout:
        """Alg. 1, lines 1 and 2: completions, environment rewards, log-probabilities, values and KL."""
        with self.accelerator.autocast():
            episodes = self.policy.sample(prompts, self.sampling, seed=hash_seed(self.seed, self.iteration))
        env_rewards = self.env_rewards(episodes, columns)
        with torch.no_grad(), self.accelerator.autocast():
            rows = [episodes.take(indices) for indices in self.micro_batches(torch.arange(len(episodes)))]
            own = [evaluate_tokens(self.policy, part, self.sampling, entropy=True) for part in rows]
            ref_log_probs = torch.cat([self.reference.token_log_probs(part, self.sampling) for part in rows])
        log_probs, values, entropy = (
            torch.cat([getattr(part, name) for part in own]) for name in ("log_probs", "values", "entropy")
        )
        kl = episode_kl(log_probs, ref_log_probs, episodes.completion_mask)
        return Rollout(episodes, env_rewards, log_probs, ref_log_probs, values, entropy, kl)

    def env_rewards(self, episodes: Episodes, columns: dict[str, list]) -> torch.Tensor:
        """The reward functions' sum for each episode, checked: (B,)."""
        rewards = [
            check_rewards(
                reward(prompts=episodes.prompts, completions=episodes.completions, **columns),
                episodes.prompts,
                episodes.completions,
            )
            for reward in self.reward_funcs
        ]
        return torch.tensor(rewards, dtype=torch.float32, device=self.policy.device).sum(0)

    def shape_rewards(self, rollout: Rollout, kept: int) -> None:
        """Lines 2 and 3: eq. 5's dense rewards, their episode return, advantages and the critic's targets."""
        mask = rollout.episodes.completion_mask
        env_rewards = rollout.env_rewards
        rollout.returns = env_rewards - self.kl_coef * rollout.kl
        risk_averse = self.risk.estimator == "rockafellar_uryasev"
        if risk_averse:
            env_rewards = rockafellar_uryasev_rewards(env_rewards, kept)
        rewards = dense_rewards(env_rewards, rollout.log_probs, rollout.ref_log_probs, mask, self.kl_coef)
        if risk_averse:
            # The objective times alpha': whitened advantages are the same, but the critic's targets stay on the scale
            # of the rewards; at 1 / alpha' of it, the critic's loss drowns the policy's in the shared trunk.
            rewards *= kept / len(env_rewards)
        rollout.advantages, rollout.targets = generalized_advantages(
            rewards, rollout.values, mask, self.args.gamma, self.args.lam
        )

    def select(self, rollout: Rollout, kept: int) -> None:
        """Line 4: the kept(m) lowest episodes, and those that the update is made on."""
        rank = rollout.returns if self.risk.rank_by == "return" else rollout.env_rewards
        rollout.tail = kept_episodes(rank, kept)
        everyone = torch.arange(len(rank), device=rank.device)
        rollout.updated = rollout.tail if self.risk.estimator == "tail_selection" else everyone

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Line 5: PPO on the episodes of `rollout.updated`, one optimizer step an epoch; mean losses of the epochs.

        Micro-batches add up to the very gradient of the whole, since every loss is divided by all updated tokens.
        """
        mask = rollout.episodes.completion_mask[rollout.updated]
        rollout.advantages[rollout.updated] = whiten(rollout.advantages[rollout.updated], mask)
        epochs = []
        for _ in range(self.args.epochs):
            self.optimizer.zero_grad()
            parts = [self.backward(rollout, rows, mask.sum()) for rows in self.micro_batches(rollout.updated)]
            epochs.append({key: sum(part[key] for part in parts) for key in parts[0]})
            if epochs[-1]["ratio_mean"] > self.args.ratio_threshold:
                warnings.warn(
                    f"iteration {self.iteration}: mean ratio {epochs[-1]['ratio_mean']:.1f} is above ratio_threshold = "
                    f"{self.args.ratio_threshold}; the rest of this update is skipped. Lower learning_rate or epochs.",
                    stacklevel=2,
                )
                break
            if self.args.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = rollout.episodes.take(rollout.updated).tokens * len(epochs)
        return pd.DataFrame(epochs).mean().to_dict() | {"gradient_tokens": tokens}

    def backward(self, rollout: Rollout, rows: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        """Eq. 11's loss of the episodes `rows`, over `tokens` tokens in all: its gradient added, its parts returned."""
        episodes = rollout.episodes.take(rows)
        mask, old_log_probs = episodes.completion_mask, rollout.log_probs[rows]
        with self.accelerator.autocast():
            now = evaluate_tokens(self.policy, episodes, self.sampling, forward=self.wrapped)
        losses = {
            "policy_loss": policy_losses(now.log_probs, old_log_probs, rollout.advantages[rows], self.args.cliprange),
            "value_loss": value_losses(
                now.values, rollout.values[rows], rollout.targets[rows], self.args.cliprange_value
            ),
        }
        ratio = (now.log_probs - old_log_probs).detach().exp()
        losses["ratio_mean"] = ratio
        losses["clip_fraction"] = ((ratio - 1).abs() > self.args.cliprange).to(ratio.dtype)
        losses = {key: loss.masked_fill(~mask, 0.0).sum() / tokens for key, loss in losses.items()}
        self.accelerator.backward(losses["policy_loss"] + self.args.vf_coef * losses["value_loss"])
        return {key: loss.item() for key, loss in losses.items()}

    def micro_batches(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`indices` in pieces of `micro_batch_size`."""
        return indices.split(self.args.micro_batch_size or len(indices))

    def adapt_kl_coef(self, rollout: Rollout) -> None:
        """Line 6, eq. 12: the KL of the updated episodes, averaged over them or, as the authors' code, over B."""
        if self.args.kl_target is None:
            return
        kl = rollout.kl[rollout.updated]
        average = kl.mean() if self.risk.kl_average == "kept" else kl.sum() / len(rollout.kl)
        self.kl_coef = next_kl_coef(
            self.kl_coef, average.item(), self.args.kl_target, len(rollout.kl), self.args.kl_horizon
        )

    def statistics(self, rollout: Rollout, losses: dict[str, float]) -> dict[str, float]:
        """The iteration's row of the training log; `glossary` gives each key's formula."""
        tail, updated, mask = rollout.tail, rollout.updated, rollout.episodes.completion_mask
        warn_of_negative_kl(rollout.kl, self.iteration)
        stats = {
            "env_reward_mean": rollout.env_rewards.mean(),
            "env_reward_std": rollout.env_rewards.std(correction=0),
            "return_mean": rollout.returns.mean(),
            "tail_return_mean": rollout.returns[tail].mean(),
            "tail_env_reward_mean": rollout.env_rewards[tail].mean(),
            "kl": rollout.kl.mean(),
            "kl_kept": rollout.kl[tail].mean(),
            "entropy": masked_mean(rollout.entropy[updated], mask[updated]),
            "completion_length": mask.sum(1).float().mean(),
        }
        stats = {key: value.item() for key, value in stats.items()}
        return {"iteration": self.iteration, "kept": len(tail)} | stats | {"kl_coef": self.kl_coef} | losses

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Run the remaining iterations one by one, each on the next B prompts of the shuffled data set."""
        with tqdm(total=self.args.iterations, initial=self.iteration, desc="CVaR-PPO", unit="iteration") as bar:
            while self.iteration < self.args.iterations:
                stats = self.step(**self.next_prompts())
                self.log(stats)
                bar.set_postfix(reward=f"{stats['env_reward_mean']:.2f}", kl=f"{stats['kl']:.2f}", kept=stats["kept"])
                bar.update()
                yield stats
        self.accelerator.end_training()

    def train(self) -> pd.DataFrame:
        """Run all iterations; a row of statistics each."""
        return pd.DataFrame(list(self))

    def next_prompts(self) -> dict[str, list]:
        """The batch of the coming iteration: seeded shuffles of the data set, one after the other, cut into Bs."""
        if self.train_dataset is None:
            raise UserError("train_dataset is missing: give the trainer a data set, or call step(prompts) yourself.")
        batch = self.args.batch_size
        indices = shuffled_stream(len(self.train_dataset), self.seed, self.iteration * batch, batch)
        rows = self.train_dataset[indices]
        return {"prompts": rows.pop("prompt")} | rows

    def log(self, stats: dict[str, float]) -> None:
        """Append the row to `log_file` (begun anew by the first iteration) and to the trackers."""
        append_row(self.log_file, stats, anew=self.iteration == 1)
        self.accelerator.log(stats, step=self.iteration)


def append_row(log_file: Path | None, row: dict[str, float], anew: bool) -> None:
    """Write a row to the JSON lines of `log_file`, if there is one; `anew`: in place of what it held."""
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("w" if anew else "a") as file:
            file.write(json.dumps(row) + "\n")


def warn_of_negative_kl(kl: torch.Tensor, iteration: int) -> None:
    """A mean KL clearly below 0 is a fault: the log-probabilities are not those of the sampler."""
    standard_error = kl.std().item() / math.sqrt(len(kl)) if len(kl) > 1 else math.inf
    if kl.mean().item() < -4 * standard_error - 0.01:
        warnings.warn(
            f"iteration {iteration}: the mean KL from the reference is {kl.mean().item():.2f}, clearly negative; the "
            "log-probabilities do not describe the distribution that the completions were drawn from.",
            stacklevel=2,
        )
