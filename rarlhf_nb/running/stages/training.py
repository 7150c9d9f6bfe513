"""Notebooks 02, 03 and 04: every method that is trained, or chosen, before it is measured.

All RL methods start from the SFT policy with the same budget, data order and seed.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset

from rarlhf_nb.baselines.prompted import choose_prefix, prompted_policy
from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.core.checkpoint import Checkpoints
from rarlhf_nb.core.errors import UserError
from rarlhf_nb.running.stages.stage import Stage
from rarlhf_nb.running.workspace import EXPERTS
from rarlhf_nb.training.loop import TrainingLoop
from rarlhf_nb.training.sft import train_sft
from rarlhf_nb.training.trainer import CVaRPPOTrainer


class FineTune(Stage):
    """SFT: the base model learns the positive texts."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/sft.parquet",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("policies/sft",)

    def run(self) -> pd.DataFrame:
        """Returns TRL's training log."""
        profile = self.workspace.profile
        texts = self.workspace.data("sft")["text"].tolist()
        policy = self.workspace.base(with_adapter=True)
        log = train_sft(policy, texts, profile.sft, self.workspace.seed, profile.policy.mixed_precision)
        policy.save(self.workspace.run.path("policies", "sft"))
        return pd.DataFrame(log)


@dataclass(frozen=True)
class Train(Stage):
    """CVaR-PPO for `rlhf`, `ra_rlhf` and `ra_rlhf_ru`, with "@alpha" for another tail share; or Quark."""

    method: str

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/train.parquet", "policies/sft", *self.trained_reward)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"policies/{self.method}", f"training/{self.method}.jsonl")

    def run(self) -> pd.DataFrame:
        """Returns the training log, one row per iteration. A training that was interrupted goes on where it stopped."""
        run = self.workspace.run
        checkpoints = Checkpoints(run.path("training", f"{self.method}.checkpoints"))
        trainer = self.trainer(checkpoints=checkpoints)
        log = trainer.train()
        trainer.policy.save(run.path("policies", self.method))
        checkpoints.clear()
        return log

    def trainer(self, **changes: Any) -> TrainingLoop:
        """The trainer before its first iteration; `changes` replace its arguments."""
        workspace, profile = self.workspace, self.workspace.profile
        train = workspace.data("train")
        common = {
            "model": workspace.start(),
            "reward_funcs": workspace.reward(),
            "sampling": profile.sampling,
            "train_dataset": Dataset.from_pandas(train, preserve_index=False),
            "seed": workspace.seed,
            "mixed_precision": profile.policy.mixed_precision,
            "log_file": workspace.run.path("training", f"{self.method}.jsonl"),
        }
        if self.method == "quark":
            return QuarkTrainer(**common | {"args": profile.quark} | changes)
        own = {"args": profile.ppo, "risk": profile.risk.for_method(self.method)}
        return CVaRPPOTrainer(**common | own | changes)


class ChoosePrefix(Stage):
    """Prompting: the profile's instructions are tried on the last training prompts, and the best is kept."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/train.parquet", *self.trained_reward)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("policies/prompted",)

    def run(self) -> pd.DataFrame:
        """Returns each prefix with its mean reward, best first."""
        workspace, profile = self.workspace, self.workspace.profile
        prompts = workspace.data("train")["prompt"].tolist()[-profile.prompted.validation_prompts :]
        base = workspace.base()
        found = choose_prefix(
            base,
            workspace.reward(),
            prompts,
            profile.prompted.prefixes,
            profile.sampling,
            workspace.seed,
            profile.evaluation.batch_size,
        )
        prompted_policy(base, found["prefix"].iloc[0]).save(workspace.run.path("policies", "prompted"))
        return found


class TrainExperts(Stage):
    """DExperts: an expert learns the texts that SFT uses, and an anti-expert the others."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/sft.parquet", "data/anti_expert.parquet")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("policies/dexperts",)

    def run(self) -> dict[str, pd.DataFrame]:
        """Returns their training logs. Raises `UserError` where no text has another label."""
        workspace, profile, logs = self.workspace, self.workspace.profile, {}
        for name, data in zip(EXPERTS, ("sft", "anti_expert"), strict=True):
            texts = workspace.data(data)["text"].tolist()
            if not texts:
                raise UserError(
                    f"dexperts: every training text has label {profile.task.positive_label} or none, but the "
                    "anti-expert learns from texts with another label; add some."
                )
            policy = workspace.base()
            log = train_sft(policy, texts, profile.dexperts.experts, workspace.seed, profile.policy.mixed_precision)
            policy.save(workspace.run.path("policies", "dexperts", name))
            logs[name] = pd.DataFrame(log)
        return logs
