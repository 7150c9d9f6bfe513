"""Notebooks 02, 03 and 04: every method that is trained, or chosen, before it is measured.

All RL methods start from the SFT policy with the same budget, data order and seed.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from rarlhf_nb.baselines.prompted import choose_prefix, prompted_policy
from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import json_lines
from rarlhf_nb.lab.methods import BASELINES_NOTEBOOK, CONDITIONED, SFT_NOTEBOOK, MethodKey
from rarlhf_nb.lab.profiles import risk_of_method
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import EXPERTS
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.settings import Section, SFTSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

LOG, PREFIXES = "training_log.jsonl", "prefixes.jsonl"  # beside a policy that TRL trained, and beside the prompted one
LINE_EVERY = 5.0  # seconds between two lines of a training on several processes


class SupervisedStage(Stage):
    """A stage that trains with TRL's `SFTTrainer`."""

    modules = ("baselines.sft",)

    def common_settings(self) -> dict[str, Any]:
        """What determines every supervised training besides its own settings."""
        return {"policy": self.workspace.profile.policy.model_dump(mode="json"), "models": self.workspace.models()}

    def fine_tune(self, policy: ActorCritic, data: str, settings: SFTSettings, training: str, target: str) -> None:
        """Train the policy on the texts of a table of data/, and save it with its log in `target`."""
        workspace = self.workspace
        texts = workspace.data(data)["text"].tolist()
        mixed_precision, checkpoints = workspace.profile.policy.mixed_precision, self.checkpoints(training)
        log = train_sft(policy, texts, settings, workspace.seed, mixed_precision, checkpoints)

        def write(folder: Path) -> None:
            policy.save(folder)
            (folder / LOG).write_text(json_lines(log))

        workspace.run.write_folder(target, write)


class FineTune(SupervisedStage):
    """SFT: the base model learns the positive texts."""

    name, notebook, trainings = "sft", SFT_NOTEBOOK, ("sft",)
    reads, writes = ("data/sft.parquet",), ("policies/sft",)

    @property
    def settings(self) -> dict[str, Any]:
        return self.common_settings() | {"sft": self.workspace.profile.sft.model_dump(mode="json")}

    def work(self) -> None:
        policy = self.workspace.base(with_adapter=True)
        self.fine_tune(policy, "sft", self.workspace.profile.sft, "sft", "policies/sft")

    def result(self) -> pd.DataFrame:
        """TRL's training log."""
        return self.workspace.run.read_rows(f"policies/sft/{LOG}")


@dataclass(frozen=True)
class Train(Stage):
    """CVaR-PPO for `rlhf`, `ra_rlhf` and `ra_rlhf_ru`, with "@alpha" for another tail share; `conditioned`; Quark."""

    method: str

    @property
    def name(self) -> str:
        return f"train {self.method}"

    @property
    def notebook(self) -> str:
        return MethodKey.parse(self.method).method.notebook

    @property
    def modules(self) -> tuple[str, ...]:
        own = {"quark": "baselines.quark", CONDITIONED: "conditioned"}
        return (own.get(self.method, "trainer"),)

    @property
    def trainings(self) -> tuple[str, ...]:
        return (self.method,)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/train.parquet", "policies/sft", *self.trained_reward)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"policies/{self.method}", f"training/{self.method}.jsonl")

    @property
    def settings(self) -> dict[str, Any]:
        settings = self._with_common(watch=self.workspace.profile.watch, **self._own_settings())
        if settings.get("risk", {}).get("alpha") == 1:
            settings["risk"] = None  # every episode is kept: whatever the estimator and the schedule, this is RLHF
        return settings | {"processes": self.processes}

    def _with_common(self, **own: Section) -> dict[str, Any]:
        """What determines every RL training, and its own sections of the profile, as JSON."""
        profile = self.workspace.profile
        sections = {"policy": profile.policy, "reward": profile.reward, "sampling": profile.sampling, **own}
        settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
        return settings | {"models": self.workspace.models()}

    def _own_settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        if self.method == "quark":
            return {"args": profile.quark}
        if self.method == CONDITIONED:
            schedule = profile.risk.model_copy(update={"alpha": profile.conditioned.alpha_min})
            return {"args": profile.ppo, "risk": schedule, "conditioned": profile.conditioned}
        return {"args": profile.ppo, "risk": risk_of_method(profile.risk, self.method)}

    @property
    def processes(self) -> int:
        return self.workspace.profile.compute.processes

    def work(self, iterations: int | None = None) -> None:
        """Train and save the policy; a training that was interrupted goes on where it stopped.

        iterations: train only so many, and save no policy.
        """
        trainer = self.trainer(checkpoints=self.checkpoints(self.method))
        for _ in islice(with_progress_lines(trainer, self.method), iterations):
            pass
        if trainer.ranks.main and iterations is None:
            self.workspace.run.write_folder(f"policies/{self.method}", trainer.policy.save)

    def result(self) -> pd.DataFrame:
        """The training log, one row per iteration."""
        return self.workspace.run.read_rows(f"training/{self.method}.jsonl")

    def trainer(self, **changes: Any) -> TrainingLoop:
        """The trainer before its first iteration; `changes` replace its arguments."""
        workspace, profile = self.workspace, self.workspace.profile
        arguments = {
            "model": workspace.start(),
            "reward_funcs": workspace.reward(),
            "sampling": profile.sampling,
            "train_dataset": Dataset.from_pandas(workspace.data("train"), preserve_index=False),
            "seed": workspace.seed,
            "mixed_precision": profile.policy.mixed_precision,
            "watch": profile.watch,
            "log_file": workspace.run.path("training", f"{self.method}.jsonl"),
            **self._own_settings(),
        }
        kinds = {"quark": QuarkTrainer, CONDITIONED: AlphaConditionedTrainer}
        kind = kinds.get(self.method, CVaRPPOTrainer)
        return kind(**arguments | changes)


def with_progress_lines(trainer: TrainingLoop, method: str) -> Iterator[dict[str, float]]:
    """The iterations of a trainer; with several processes, which show no bar, one prints a line every few seconds."""
    last = time.monotonic()
    for stats in trainer:
        late = time.monotonic() - last > LINE_EVERY or trainer.iteration == trainer.iterations
        if trainer.ranks.count > 1 and trainer.ranks.main and late:
            shown = ", ".join(f"{name} {stats[key]:.3g}" for name, key in trainer.progress.items())
            print(f"{method}: {trainer.unit} {trainer.iteration} of {trainer.iterations}, {shown}", flush=True)
            last = time.monotonic()
        yield stats


class ChoosePrefix(Stage):
    """Prompting: the profile's instructions are tried on the last training prompts, and the best is kept."""

    name, notebook, modules = "choose prefix", BASELINES_NOTEBOOK, ("baselines.prompted",)
    writes = ("policies/prompted",)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/train.parquet", *self.trained_reward)

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        sections = ("prompted", "policy", "reward", "sampling")
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in sections}
        return settings | {"batch_size": profile.evaluation.batch_size, "models": self.workspace.models()}

    def work(self) -> None:
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

        def write(folder: Path) -> None:
            prompted_policy(base, found["prefix"].iloc[0]).save(folder)
            (folder / PREFIXES).write_text(json_lines(found.to_dict("records")))

        workspace.run.write_folder("policies/prompted", write)

    def result(self) -> pd.DataFrame:
        """Each prefix with its mean reward, best first."""
        return self.workspace.run.read_rows(f"policies/prompted/{PREFIXES}")


class TrainExperts(SupervisedStage):
    """DExperts: an expert learns the texts that SFT uses, and an anti-expert the others."""

    name, notebook, trainings = "train dexperts", BASELINES_NOTEBOOK, EXPERTS
    reads = ("data/sft.parquet", "data/anti_expert.parquet")
    writes = tuple(f"policies/dexperts/{name}" for name in EXPERTS)

    @property
    def settings(self) -> dict[str, Any]:
        return self.common_settings() | {"experts": self.workspace.profile.dexperts.experts.model_dump(mode="json")}

    def work(self) -> None:
        """Raises `UserError` where no text has another label."""
        profile = self.workspace.profile
        if self.workspace.data("anti_expert").empty:
            raise UserError(
                f"dexperts: every training text has label {profile.task.positive_label} or none, but the anti-expert "
                "learns from texts with another label; add some."
            )
        for name, data, target in zip(EXPERTS, ("sft", "anti_expert"), self.writes, strict=True):
            self.fine_tune(self.workspace.base(), data, profile.dexperts.experts, name, target)

    def result(self) -> dict[str, pd.DataFrame]:
        """The training log of each."""
        run = self.workspace.run
        return {name: run.read_rows(f"{place}/{LOG}") for name, place in zip(EXPERTS, self.writes, strict=True)}
