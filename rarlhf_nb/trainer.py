"""Algorithm 1: PPO on the tail. RLHF is the same loop with every episode kept (alpha = 1).

Departures from the paper and its authors' code:
1. Dropped episodes cost no forward and no backward pass in the update. The authors' code masks their loss and pays for
   them all the same; the gradient is equal.
2. Exactly kept(m) episodes are updated on. The authors' code also keeps every episode tied with the last of them.
3. `estimator = "rockafellar_uryasev"` is ours: it maximises the CVaR of the environment reward on all episodes (see
   `risk`), or on the tail and a weighted share of those above VaR (`above_share`).
4. Log-probabilities are taken under the masked distribution that the sampler draws from (see `policy`).
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset

from rarlhf_nb.checkpoint import Checkpoint, Checkpoints
from rarlhf_nb.errors import UserError
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.micro_batches import MicroBatches, Pieces
from rarlhf_nb.policy import ActorCritic, Reference, evaluate_tokens
from rarlhf_nb.ppo import (
    dense_rewards,
    episode_kl,
    generalized_advantages,
    masked_mean,
    masked_sum,
    next_kl_coef,
    policy_losses,
    value_losses,
    whiten,
)
from rarlhf_nb.rewards import Reward, check_rewards
from rarlhf_nb.risk import drawn_above, kept_episodes, rockafellar_uryasev_rewards
from rarlhf_nb.rollout import Batch, Rollout, Targets
from rarlhf_nb.seeding import hash_seed, shuffled_stream, uniforms
from rarlhf_nb.settings import PPOSettings, RiskSettings, SamplingSettings, Section, WatchSettings


class CVaRPPOTrainer(TrainingLoop):
    """Fine-tune a policy on the tail of its returns (RA-RLHF, Chaudhary et al. 2024, Algorithm 1).

    `train()` runs all iterations. Iterating over the trainer runs them one at a time and yields the statistics of each
    (`glossary` explains the keys). `step(prompts)` runs one iteration on prompts of your own. `rollout` and `targets`
    hold the last batch.

    On several processes (`accelerate launch`, `torchrun`) B is the size of the global batch, and every rank holds the
    whole of it once it is sampled; a reward function gets a rank's share of it.

    Args:
        model: the actor-critic, trained in place.
        reward_funcs: one callable or several with TRL's signature `(prompts, completions, **columns) -> list[float]`;
            the rewards of several are added up.
        args, risk, sampling: see `settings`.
        train_dataset: has a `prompt` column; its other columns are handed to the rewards.
        reference: pi_ref; by default a frozen copy of the policy as it is now.
        seed: for the order of the prompts and the completions. log_file: gets one JSON line per iteration.
        checkpoints: where to save them; none by default.
        report_to: trackers of accelerate, such as "tensorboard", which write into project_dir; none by default.
        watch: what is done when the training goes wrong, by default that of the profiles; its incidents are written
            beside `log_file`.
    """

    title = "CVaR-PPO"
    progress = {"reward": "env_reward_mean", "kl": "kl", "kept": "kept"}

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
        checkpoints: Checkpoints | None = None,
        report_to: Sequence[str] = (),
        project_dir: Path | None = None,
        watch: WatchSettings | None = None,
    ) -> None:
        self.args, self.risk, self.sampling = args, risk, sampling
        options = (mixed_precision, log_file, checkpoints, report_to, project_dir)
        super().__init__(model, reward_funcs, train_dataset, args.iterations, self.sections(), watch, seed, *options)
        if args.batch_size < self.ranks.count:
            raise UserError(
                f"ppo.batch_size = {args.batch_size}: each of the {self.ranks.count} processes must sample an episode; "
                "raise it, or start fewer processes."
            )
        self.micro_batches = MicroBatches(args.micro_batch_size, args.batch_size, self.ranks)
        self.schedule = risk.schedule(args)
        self.reference = reference or Reference(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=args.learning_rate, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.kl_coef = args.kl_coef
        self.rollout: Rollout | None = None
        self.targets: Targets | None = None
        if report_to:
            self.accelerator.init_trackers("rarlhf_nb", config=args.model_dump() | risk.model_dump())

    def sections(self) -> dict[str, Section]:
        """By name, the sections of the profile that determine the training."""
        return {"ppo": self.args, "risk": self.risk, "sampling": self.sampling}

    def own_state(self) -> Checkpoint:
        """Beta and the micro-batches: prompts and completions follow from the seed and the iteration's number."""
        return Checkpoint({}, {"kl_coef": self.kl_coef, "micro_batch_size": self.micro_batches.size})

    def load_own_state(self, own: Checkpoint) -> None:
        """Restore beta where a controller has moved it, and the micro-batches that "auto" has found."""
        if self.args.kl_target is not None:
            self.kl_coef = own.state["kl_coef"]
        if self.args.micro_batch_size == "auto":
            self.micro_batches.size, self.micro_batches.unknown = own.state["micro_batch_size"], False

    def run_iteration(self) -> dict[str, float]:
        """One iteration on the next B prompts of the shuffled data set."""
        return self.step(**self.next_prompts())

    def step(self, prompts: list[str], **columns: list) -> dict[str, float]:
        """One iteration of Algorithm 1 on B prompts; returns its statistics. `columns` are handed to the rewards.

        Raises `UserError` unless there are exactly B prompts, and for rewards that are not one finite number each, and
        `TrainingStopped` where the training goes wrong (see `watch`).
        """
        if len(prompts) != self.args.batch_size:
            raise UserError(
                f"prompts holds {len(prompts)}, but the schedule counts in batches of batch_size = "
                f"{self.args.batch_size}; give that many, or set batch_size."
            )
        started = time.perf_counter()
        self.iteration += 1
        self.watch.begin(self.iteration)
        kept = self.schedule.kept(self.iteration)
        rollout = self.sample(prompts, columns)  # Alg. 1, lines 1 and 2
        targets = self.shape_rewards(rollout, kept)  # lines 2 and 3
        targets = self.select(rollout, targets, kept)  # line 4
        losses = self.update(rollout, targets)  # line 5
        stats = self.statistics(rollout, targets, losses)
        self.kl_coef = self.adapted_kl_coef(rollout, targets)  # line 6
        self.rollout, self.targets = rollout, targets
        stats |= {"seconds": time.perf_counter() - started}
        self.watch.conclude(stats)
        return stats

    def sample(self, prompts: list[str], columns: dict[str, list]) -> Rollout:
        """Alg. 1, lines 1 and 2: completions, environment rewards, log-probabilities, values and KL."""
        share = self.ranks.share(len(prompts))
        own = {name: column[share] for name, column in columns.items()}
        with self.ranks.summon_full_params(self.wrapped), self.watch.sampling(), self.ranks.shared_errors():
            rollout = self.sample_share(prompts[share], own, first=share.start)
        rollout = self.ranks.all_gather_rows(rollout)
        self.watch.completions(rollout)
        self.watch.kl(rollout)
        return rollout

    def sample_share(self, prompts: list[str], columns: dict[str, list], first: int) -> Rollout:
        """The part of the rollout that this process samples and scores; `first` is its place in the batch."""
        seed = hash_seed(self.seed, self.iteration)
        with self.accelerator.autocast():
            episodes = self.draw(prompts, seed, first)
        env_rewards = self.env_rewards(episodes, columns)
        with torch.no_grad(), self.accelerator.autocast():
            ref_log_probs, log_probs, values = self.micro_batches.run(
                len(episodes), lambda pieces: self.read(episodes, pieces)
            )
        kl = episode_kl(log_probs, ref_log_probs, episodes.completion_mask)
        read = {"log_probs": log_probs, "values": values, "ref_log_probs": ref_log_probs}
        return replace(episodes, env_rewards=env_rewards, kl=kl, **read)

    def draw(self, prompts: list[str], seed: int, first: int) -> Rollout:
        """Line 1: a completion of each prompt."""
        return self.policy.sample(prompts, self.sampling, seed, first)

    def read(self, episodes: Rollout, pieces: Pieces) -> tuple[torch.Tensor, ...]:
        """The reference's log-probabilities, and those and the values of the policy that drew them: (B, T) each."""
        parts = [episodes.take(rows) for rows in pieces]
        ref_log_probs = [self.reference.token_log_probs(part, self.sampling) for part in parts]
        own = [self.behaviour(part) for part in parts]
        columns = (ref_log_probs, [part.log_probs for part in own], [part.values for part in own])
        return tuple(torch.cat(column) for column in columns)

    def behaviour(self, episodes: Rollout) -> Rollout:
        """Log-probabilities and values under the policy that drew the episodes: the sampler's own numbers.

        In half precision, reading token by token and at once round differently, by more than an update moves a
        ratio; so there the episodes are read again, as the update will read them.
        """
        full = self.accelerator.mixed_precision == "no" and torch.finfo(self.policy.model.dtype).bits >= 32
        return episodes if full else evaluate_tokens(self.policy, episodes, self.sampling)

    def env_rewards(self, episodes: Rollout, columns: dict[str, list]) -> torch.Tensor:
        """The sum of the reward functions for each episode, checked: (B,)."""
        rewards = [
            check_rewards(
                reward(prompts=episodes.prompts, completions=episodes.completions, **columns),
                episodes.prompts,
                episodes.completions,
            )
            for reward in self.reward_funcs
        ]
        return torch.tensor(rewards, dtype=torch.float32, device=self.policy.device).sum(0)

    def shape_rewards(self, rollout: Rollout, kept: int) -> Targets:
        """Lines 2 and 3: the dense rewards of eq. 5, their episode returns, advantages and the critic's targets."""
        mask, env_rewards = rollout.completion_mask, rollout.env_rewards
        returns = env_rewards - self.kl_coef * rollout.kl
        risk_averse = self.risk.estimator == "rockafellar_uryasev"
        if risk_averse:
            env_rewards = rockafellar_uryasev_rewards(env_rewards, kept)
        rewards = dense_rewards(env_rewards, rollout.log_probs, rollout.ref_log_probs, mask, self.kl_coef)
        if risk_averse:
            # Multiplied by alpha', the objective has the same whitened advantages, but the critic's targets stay on the
            # scale of the rewards. At 1 / alpha' of that scale, the critic's loss would drown the policy's in the
            # shared trunk.
            rewards *= kept / len(env_rewards)
        return Targets(returns, *generalized_advantages(rewards, rollout.values, mask, self.args.gamma, self.args.lam))

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        """Line 4: the kept(m) lowest episodes, and the episodes that the update uses."""
        tail = kept_episodes(targets.returns, kept)
        if self.risk.estimator == "tail_selection":
            return replace(targets, tail=tail, updated=tail, weights=targets.returns.new_ones(kept))
        everyone = torch.arange(len(rollout), device=tail.device)
        weights = self.drawn_weights(rollout, targets, kept)
        return replace(targets, tail=tail, updated=everyone, weights=weights)

    def drawn_weights(self, rollout: Rollout, targets: Targets, kept: int) -> torch.Tensor:
        """The weights of all B episodes where only a share of those above VaR is drawn for the update: (B,).

        An episode's chance is proportional to the sum of its whitened |advantages|; at 0 it would add nothing to the
        policy's gradient.
        """
        mask = rollout.completion_mask
        sizes = masked_sum(whiten(targets.advantages, mask).abs(), mask)
        no_episode = self.args.batch_size  # a place past the batch, whose random numbers draw no token
        ((number,),) = uniforms(hash_seed(self.seed, self.iteration), first=no_episode, rows=1, length=1)
        return drawn_above(rollout.env_rewards, sizes, kept, self.risk.above_share, number)

    def update(self, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """Line 5: PPO on the selected episodes, one optimizer step per epoch; returns the mean losses of the epochs.

        The gradients of the micro-batches and of the ranks add up to that of the whole batch, since every loss is
        divided by the number of all selected tokens, drawn or not.
        """
        batch = self.update_batch(rollout, targets)
        scored = rollout.take(targets.updated)
        self.watch.advantages(targets.advantages[targets.updated], batch.rollout.completion_mask, scored)
        tokens, epochs = batch.rollout.completion_mask.sum(), []
        batch = batch.take(batch.weights.nonzero().flatten())
        rows, counted = self.ranks.shard(len(batch.rollout))
        own = batch.take(rows)
        own = replace(own, weights=own.weights * counted.to(own.weights.device))
        self.micro_batches.settle(len(rows), lambda few: self.rehearse(own.take(few), tokens), self.moment_bytes)
        for _ in range(self.args.epochs):
            losses = self.micro_batches.run(len(rows), lambda pieces: self.gradient(own, pieces, tokens), joint=True)
            epochs.append(self.ranks.sum(losses))
            # without a limit nothing is clipped, and the norm tells whether the gradient is finite
            norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.args.max_grad_norm or math.inf)
            self.watch.losses(epochs[-1], scored, self.args.ratio_threshold)
            if not self.watch.allows_step(epochs[-1], norm.item(), scored):
                break
            self.optimizer.step()
        self.optimizer.zero_grad()
        return pd.DataFrame(epochs).mean().to_dict() | {"gradient_tokens": batch.rollout.tokens * len(epochs)}

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        """The selected episodes, with advantages whitened over their tokens or over the whole batch's."""
        rows, updated = targets.updated, rollout.take(targets.updated)
        if self.risk.whitening == "kept":
            advantages = whiten(targets.advantages[rows], updated.completion_mask)
        else:
            advantages = whiten(targets.advantages, rollout.completion_mask)[rows]
        return Batch(updated, advantages, targets.value_targets[rows], targets.weights)

    def gradient(self, batch: Batch, pieces: Pieces, tokens: torch.Tensor) -> dict[str, float]:
        """The gradient of one epoch, begun anew; returns this rank's part of the losses."""
        self.optimizer.zero_grad()
        losses = []
        for rows in pieces:
            # the ranks' gradients are added up once, with those of the last micro-batch
            with nullcontext() if rows is pieces[-1] else self.accelerator.no_sync(self.wrapped):
                losses.append(self.backward(batch.take(rows), tokens))
        return {key: sum(part[key] for part in losses) for key in losses[0]}

    def rehearse(self, batch: Batch, tokens: torch.Tensor) -> dict[str, float]:
        """A micro-batch's passes on this rank alone, to see if they fit into memory; the epoch drops their gradient."""
        with self.accelerator.no_sync(self.wrapped):
            return self.backward(batch, tokens)

    @property
    def moment_bytes(self) -> int:
        """What Adam will hold from its first step on; 0 once it holds it."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        return 0 if self.optimizer.state else 2 * sum(weight.nbytes for weight in trained)

    def backward(self, batch: Batch, tokens: torch.Tensor) -> dict[str, float]:
        """Eq. 11 on a micro-batch, its sum over tokens divided by `tokens`: adds the gradient, returns the terms."""
        args, weights = self.args, batch.weights.unsqueeze(1)
        mask = batch.rollout.completion_mask & (weights > 0)
        with self.accelerator.autocast():
            now = evaluate_tokens(self.policy, batch.rollout, self.sampling, forward=self.wrapped)
        ratio = (now.log_probs - batch.rollout.log_probs).detach().exp()
        terms = {
            "policy_loss": policy_losses(now.log_probs, batch.rollout.log_probs, batch.advantages, args.cliprange),
            "value_loss": value_losses(now.values, batch.rollout.values, batch.value_targets, args.cliprange_value),
            "ratio_mean": ratio,
            "clip_fraction": ((ratio - 1).abs() > args.cliprange).to(ratio.dtype),
        }
        terms = {key: (weights * term).masked_fill(~mask, 0.0).sum() / tokens for key, term in terms.items()}
        # accelerate averages the gradients of the ranks, which must be summed
        self.accelerator.backward(self.ranks.count * (terms["policy_loss"] + args.vf_coef * terms["value_loss"]))
        return {key: term.item() for key, term in terms.items()}

    def adapted_kl_coef(self, rollout: Rollout, targets: Targets) -> float:
        """Line 6, eq. 12: the next beta, from the mean KL of the updated episodes; fixed without `kl_target`."""
        if self.args.kl_target is None:
            return self.kl_coef
        kl = rollout.kl[targets.updated].mean().item()
        return next_kl_coef(self.kl_coef, kl, self.args.kl_target, len(rollout), self.args.kl_horizon)

    def statistics(self, rollout: Rollout, targets: Targets, losses: dict[str, float]) -> dict[str, float]:
        """The row of the training log for this iteration; `glossary` gives the formula of each key."""
        tail, updated, mask = targets.tail, targets.updated, rollout.completion_mask
        stats = {
            "env_reward_mean": rollout.env_rewards.mean(),
            "env_reward_std": rollout.env_rewards.std(correction=0),
            "return_mean": targets.returns.mean(),
            "tail_return_mean": targets.returns[tail].mean(),
            "tail_env_reward_mean": rollout.env_rewards[tail].mean(),
            "kl": rollout.kl.mean(),
            "kl_kept": rollout.kl[tail].mean(),
            "entropy": masked_mean(rollout.entropy[updated], mask[updated]),
            "completion_length": mask.sum(1).float().mean(),
        }
        stats = {key: value.item() for key, value in stats.items()}
        return {"iteration": self.iteration, "kept": len(tail)} | stats | {"kl_coef": self.kl_coef} | losses

    def next_prompts(self) -> dict[str, list]:
        """The batch of the next iteration: B rows from a stream of seeded shuffles of the data set."""
        if self.train_dataset is None:
            raise UserError("train_dataset is missing: give the trainer a data set, or call step(prompts) yourself.")
        batch = self.args.batch_size
        indices = shuffled_stream(len(self.train_dataset), self.seed, self.iteration * batch, batch)
        rows = self.train_dataset[indices]
        return {"prompts": rows.pop("prompt")} | rows
