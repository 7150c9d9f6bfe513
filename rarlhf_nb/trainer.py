"""Algorithm 1: PPO on the tail. RLHF is the same loop with every episode kept (alpha = 1).

Departures from the paper and its authors' code:
1. Dropped episodes cost no forward and no backward pass in the update. The authors' code masks their loss and pays for
   them all the same; the gradient is equal.
2. Exactly kept(m) episodes are updated on. The authors' code also keeps every episode tied with the last of them.
3. `estimator = "rockafellar_uryasev"` is ours: it maximises the CVaR of the environment reward on all episodes (see
   `risk`), or on the tail and a weighted share of those above VaR (`above_share`).
4. Log-probabilities are taken under the masked distribution that the sampler draws from (see `policy`).
"""

from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset

from rarlhf_nb import ppo
from rarlhf_nb.checkpoint import Checkpoint
from rarlhf_nb.conversations import Prompt
from rarlhf_nb.distributed import join
from rarlhf_nb.errors import UserError
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.micro_batches import MicroBatches, Pieces
from rarlhf_nb.monitor import check_advantages, check_completions, check_kl, check_losses
from rarlhf_nb.policy import ActorCritic, Reference, evaluate_tokens
from rarlhf_nb.rewards import Reward
from rarlhf_nb.risk import drawn_above, kept_episodes, rockafellar_uryasev_rewards
from rarlhf_nb.rollout import Batch, Rollout, Targets
from rarlhf_nb.seeding import hash_seed, shuffled_stream, uniforms
from rarlhf_nb.settings import PPOSettings, RiskSettings, SamplingSettings, Section


class CVaRPPOTrainer(TrainingLoop):
    """Fine-tune a policy on the tail of its returns (RA-RLHF, Chaudhary et al. 2024, Algorithm 1).

    `train()` and iterating over it are those of `TrainingLoop`; `step(prompts)` runs one iteration on prompts of your
    own. `rollout` and `targets` hold the last batch.

    On several processes (`accelerate launch`, `torchrun`) B is the size of the global batch, and every rank holds the
    whole of it once it is sampled; a reward function gets a rank's share of it.

    Args:
        model: the actor-critic, trained in place.
        reward_funcs: one callable or several with TRL's signature `(prompts, completions, **columns) -> list[float]`;
            the rewards of several are added up.
        args, risk, sampling: see `settings`.
        train_dataset: has a `prompt` column of texts or of conversations (lists of messages, as TRL has them); its
            other columns are handed to the rewards.
        reference: pi_ref; by default a frozen copy of the policy as it is now.
        options: seed (of the order of the prompts and of the completions), mixed_precision, log_file, checkpoints,
            report_to, project_dir and watch; see `TrainingLoop`.
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
        **options: Any,
    ) -> None:
        self.args, self.risk, self.sampling = args, risk, sampling
        super().__init__(model, reward_funcs, train_dataset, args.iterations, self.sections(), **options)
        self.ranks.check_batch_size("ppo.batch_size", args.batch_size)
        self.micro_batches = MicroBatches(args.micro_batch_size, args.batch_size, self.ranks)
        self.schedule = risk.schedule(args)
        self.reference = reference or Reference(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=args.learning_rate, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.kl_coef = args.kl_coef
        self.rollout: Rollout | None = None
        self.targets: Targets | None = None

    def sections(self) -> dict[str, Section]:
        """By name, the sections of the profile that determine the training."""
        return {"ppo": self.args, "risk": self.risk, "sampling": self.sampling}

    def own_state(self) -> Checkpoint:
        """Beta and the micro-batches: prompts and completions follow from the seed and the iteration's number."""
        return Checkpoint({}, {"kl_coef": self.kl_coef, "micro_batch_size": self.micro_batches.size})

    def load_own_state(self, own: Checkpoint) -> None:
        """Restore beta if a controller has moved it, and the micro-batches if memory has decided them."""
        if self.args.kl_target is not None:
            self.kl_coef = own.state["kl_coef"]
        if not isinstance(self.args.micro_batch_size, int):
            self.micro_batches.size = own.state["micro_batch_size"]

    def step(self, prompts: list[Prompt], **columns: list) -> dict[str, float]:
        """One iteration of Algorithm 1 on B prompts; returns its statistics. `columns` are handed to the rewards.

        Raises `UserError` unless there are exactly B prompts, and for rewards that are not one finite number each, and
        `TrainingStopped` if the training goes wrong (see `monitor`).
        """
        if len(prompts) != self.args.batch_size:
            raise UserError(
                f"prompts holds {len(prompts)}, but the schedule counts in batches of batch_size = "
                f"{self.args.batch_size}; give that many, or set batch_size."
            )
        with self.counted() as stats:
            kept = self.schedule.kept(self.iteration)  # eqs. 8-10
            rollout = self.sample(prompts, columns)  # Alg. 1, lines 1 and 2
            targets = self.shape_rewards(rollout, kept)  # lines 2 and 3
            targets = self.select(rollout, targets, kept)  # line 4
            losses = self.update(rollout, targets)  # line 5
            stats |= self.statistics(rollout, targets, losses)
            self.kl_coef = self.adapted_kl_coef(rollout, targets)  # line 6
            self.rollout, self.targets = rollout, targets
        return stats

    def sample(self, prompts: list[Prompt], columns: dict[str, list]) -> Rollout:
        """Alg. 1, lines 1 and 2: completions, environment rewards, log-probabilities, values and KL.

        Each rank samples and scores its share of the prompts, and gets the whole batch.
        """
        share, seed = self.ranks.share(len(prompts)), hash_seed(self.seed, self.iteration)
        own = {name: column[share] for name, column in columns.items()}
        with self.ranks.summon_full_params(self.wrapped), self.ranks.shared_errors():
            with self.accelerator.autocast():
                rollout = self.policy.sample(prompts[share], self.sampling, seed, share.start, self.alphas(share))
            env_rewards = self.env_rewards(rollout, own).to(self.policy.device, torch.float32)
            rollout = replace(rollout, env_rewards=env_rewards)
            rollout = self.micro_batches.run(len(rollout), lambda pieces: self.read(rollout, pieces))
        rollout = self.ranks.all_gather_rows(rollout)
        rollout = replace(rollout, kl=ppo.episode_kl(rollout.log_probs, rollout.ref_log_probs, rollout.completion_mask))
        self.monitor.notice(check_completions(rollout, self.watch.collapse_bound), rollout)
        self.monitor.notice(check_kl(rollout.kl, self.watch.kl_bound), rollout)
        return rollout

    def alphas(self, share: slice) -> torch.Tensor | None:
        """The tail shares that the policy is told for the prompts of a rank; None, since this policy reads none."""
        return None

    @torch.no_grad()
    def read(self, rollout: Rollout, pieces: Pieces) -> Rollout:
        """The rollout with the reference's log-probabilities, in half precision also read again by the policy.

        There, reading token by token and at once round differently, by more than an update moves a ratio; so the
        episodes are read as the update will read them.
        """
        half = self.mixed_precision != "no" or torch.finfo(self.policy.model.dtype).bits < 32
        parts = []
        with self.accelerator.autocast():
            for part in map(rollout.take, pieces):
                ref_log_probs = self.reference.token_log_probs(part, self.sampling)
                part = evaluate_tokens(self.policy, part, self.sampling) if half else part
                parts.append(replace(part, ref_log_probs=ref_log_probs))
        return join(parts, self.policy.device)

    def shape_rewards(self, rollout: Rollout, kept: int) -> Targets:
        """Lines 2 and 3: the dense rewards of eq. 5, their episode returns, advantages and the critic's targets."""
        mask, env_rewards, scale = rollout.completion_mask, rollout.env_rewards, 1.0
        returns = env_rewards - self.kl_coef * rollout.kl
        if self.risk.estimator == "rockafellar_uryasev":
            # Multiplied by alpha', the objective has the same whitened advantages, but the critic's targets stay on the
            # scale of the rewards. At 1 / alpha' of that scale, the critic's loss would drown the policy's in the
            # shared trunk.
            env_rewards, scale = rockafellar_uryasev_rewards(env_rewards, kept), kept / len(rollout)
        log_probs = rollout.log_probs, rollout.ref_log_probs
        rewards = scale * ppo.dense_rewards(env_rewards, *log_probs, mask, self.kl_coef)
        gae = ppo.generalized_advantages(rewards, rollout.values, mask, self.args.gamma, self.args.lam)
        return Targets(returns, *gae)

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        """Line 4: the kept(m) lowest episodes, and the episodes that the update uses."""
        tail = kept_episodes(targets.returns, kept)
        if self.risk.estimator == "tail_selection":
            return replace(targets, tail=tail, updated=tail, weights=targets.returns.new_ones(kept))
        everyone = torch.arange(len(rollout), device=tail.device)
        weights = self.drawn_weights(rollout, targets.advantages, kept)
        return replace(targets, tail=tail, updated=everyone, weights=weights)

    def drawn_weights(self, rollout: Rollout, advantages: torch.Tensor, kept: int) -> torch.Tensor:
        """The weights of all B episodes if only a share of those above VaR is drawn for the update: (B,).

        An episode's chance is proportional to the sum of its whitened |advantages|; at 0 it would add nothing to the
        policy's gradient.
        """
        mask = rollout.completion_mask
        sizes = ppo.masked_sum(ppo.whiten(advantages, mask).abs(), mask)
        no_episode = self.args.batch_size  # a place past the batch, whose random numbers draw no token
        ((number,),) = uniforms(hash_seed(self.seed, self.iteration), first=no_episode, rows=1, length=1)
        return drawn_above(rollout.env_rewards, sizes, kept, self.risk.above_share, number)

    def update(self, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """Line 5: PPO on the selected episodes, one optimizer step per epoch; returns the mean losses of the epochs.

        The gradients of the micro-batches and of the ranks add up to that of the whole batch, since every loss is
        divided by the number of all selected tokens, drawn or not.
        """
        updated = rollout.take(targets.updated)
        self.monitor.notice(check_advantages(targets.advantages[targets.updated], updated.completion_mask), updated)
        batch, tokens = self.update_batch(rollout, targets), updated.completion_mask.sum()
        rows, counted = self.ranks.shard(len(batch.rollout))
        own = replace(batch.take(rows), weights=batch.weights[rows] * counted)

        def gradient(pieces: Pieces) -> list[dict[str, float]]:
            self.optimizer.zero_grad()
            return [self.backward(own.take(rows), tokens) for rows in pieces]

        epochs = []
        for _ in range(self.args.epochs):
            with self.ranks.average_gradients(self.wrapped):
                terms = self.micro_batches.run(len(own.rollout), gradient)
            epochs.append(self.ranks.sum({key: sum(part[key] for part in terms) for key in terms[0]}))
            bounds = self.watch.value_loss_bound, self.args.ratio_threshold
            self.monitor.notice(check_losses(epochs, self.rows, rollout.env_rewards, *bounds), updated)
            # an overflowing ratio is left to ratio_threshold
            finite = {key: value for key, value in epochs[-1].items() if key != "ratio_mean"}
            if not self.optimizer_step(finite, updated, self.args.max_grad_norm):
                break
        means = {key: sum(losses[key] for losses in epochs) / len(epochs) for key in epochs[0]}
        return means | {"gradient_tokens": batch.rollout.tokens * len(epochs)}

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        """The episodes of the update, with advantages whitened over their tokens or over the whole batch's."""
        rows, mask = targets.updated, rollout.completion_mask
        if self.risk.whitening == "kept":
            advantages = ppo.whiten(targets.advantages[rows], mask[rows])
        else:
            advantages = ppo.whiten(targets.advantages, mask)[rows]
        batch = Batch(rollout.take(rows), advantages, targets.value_targets[rows], targets.weights)
        return batch.take(batch.weights.nonzero().flatten())

    def backward(self, batch: Batch, tokens: torch.Tensor) -> dict[str, float]:
        """Eq. 11 on a micro-batch, its sum over tokens divided by `tokens`: adds the gradient, returns the terms."""
        args, old, weights = self.args, batch.rollout, batch.weights.unsqueeze(1)
        mask = old.completion_mask & (weights > 0)
        with self.accelerator.autocast():
            now = evaluate_tokens(self.policy, old, self.sampling, forward=self.wrapped)
        ratio = (now.log_probs - old.log_probs).detach().exp()
        terms = {
            "policy_loss": ppo.policy_losses(now.log_probs, old.log_probs, batch.advantages, args.cliprange),
            "value_loss": ppo.value_losses(now.values, old.values, batch.value_targets, args.cliprange_value),
            "ratio_mean": ratio,
            "clip_fraction": ((ratio - 1).abs() > args.cliprange).to(ratio.dtype),
        }
        terms = {key: (weights * term).masked_fill(~mask, 0.0).sum() / tokens for key, term in terms.items()}
        # the gradients of the ranks are averaged, but must be summed
        self.accelerator.backward(self.ranks.count * (terms["policy_loss"] + args.vf_coef * terms["value_loss"]))
        return {key: term.item() for key, term in terms.items()}

    def adapted_kl_coef(self, rollout: Rollout, targets: Targets) -> float:
        """Line 6, eq. 12: the next beta, from the mean KL of the updated episodes; fixed without `kl_target`."""
        if self.args.kl_target is None:
            return self.kl_coef
        kl = rollout.kl[targets.updated].mean().item()
        return ppo.next_kl_coef(self.kl_coef, kl, self.args.kl_target, len(rollout), self.args.kl_horizon)

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
            "entropy": ppo.masked_mean(rollout.entropy[updated], mask[updated]),
            "completion_length": mask.sum(1).float().mean(),
        }
        stats = {key: value.item() for key, value in stats.items()}
        return {"kept": len(tail)} | stats | {"kl_coef": self.kl_coef} | losses

    def next_prompts(self) -> dict[str, list]:
        """The batch of the next iteration: B rows from a stream of seeded shuffles of the data set."""
        if self.train_dataset is None:
            raise UserError("train_dataset is missing: give the trainer a data set, or call step(prompts) yourself.")
        batch = self.args.batch_size
        indices = shuffled_stream(len(self.train_dataset), self.seed, self.iteration * batch, batch)
        rows = self.train_dataset[indices]
        return {"prompts": rows.pop("prompt")} | rows
