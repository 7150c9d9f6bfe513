"""One run, from profile to report: what the notebooks call, stage by stage.

An `Experiment` binds a profile to a run folder. Each stage reads what earlier stages left in the folder and writes its
own part, so that every notebook can be run on its own once those before it have run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.errors import UserError
from rarlhf_nb.evaluation import evaluate, held_out_log_likelihoods
from rarlhf_nb.pocket import pocket_world
from rarlhf_nb.policy import ActorCritic, Reference, check_context, load_policy
from rarlhf_nb.profiles import Profile, load_profile
from rarlhf_nb.rewards import ClassifierReward, load_reward
from rarlhf_nb.runs import Run
from rarlhf_nb.smollm2 import smollm2_folder, train_review_reward
from rarlhf_nb.tasks import Task, load_task
from rarlhf_nb.trainer import CVaRPPOTrainer

DATA_NOTEBOOK, SFT_NOTEBOOK = "01_data_prep", "02_baseline_rlhf"


@dataclass(frozen=True)
class Experiment:
    """A profile, a seed, and the folder of their run."""

    profile: Profile
    run: Run
    seed: int

    @classmethod
    def open(
        cls, profile: str, run: str | None = None, seed: int = 1, overrides: dict[str, Any] | None = None
    ) -> "Experiment":
        """Open (or begin) the run folder `run`, named after the profile unless given.

        Raises `UserError` for an unknown profile or setting, and for a folder that belongs to other parameters.
        """
        settings = load_profile(profile, overrides)
        folder = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
        return cls(settings, folder, seed)

    # 01: the data

    def prepare_data(self) -> Task:
        """Cut the prompts, score those of the test split, and write data/."""
        base = self.policy("base")
        task, settings = load_task(self.profile.task, base.processing_class), self.profile
        check_context(base, settings.task.prompt_length, settings.sampling.completion_length)
        label = settings.task.positive_label
        sft_texts = task.positive_texts("train", label)
        held_out = task.positive_texts("test", label)[: settings.evaluation.held_out_texts]
        self.train_reward(task)
        test = task.test.assign(prompt_score=self.reward().score(task.test["prompt"].tolist()))
        for name, table in {
            "train": task.train,
            "test": test,
            "sft": pd.DataFrame({"text": sft_texts}),
            "held_out": pd.DataFrame({"text": held_out}),
        }.items():
            self.run.write_table(f"data/{name}.parquet", table)
        return task

    def data(self, name: str) -> pd.DataFrame:
        """The table data/<name>.parquet: train, test, sft or held_out."""
        return pd.read_parquet(self.run.require(f"data/{name}.parquet", made_by=DATA_NOTEBOOK))

    # Models

    def policy(self, method: str) -> ActorCritic:
        """The policy of a method as it was saved; `base` is the profile's model."""
        if method != "base":
            made_by = SFT_NOTEBOOK if method in ("sft", "rlhf") else "03_ra_rlhf"
            return load_policy(self.run.require(f"policies/{method}/config.json", made_by=made_by).parent)
        return load_policy(self._base_folder())

    def _base_folder(self) -> Path | str:
        model = self.profile.policy.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).policy
        return smollm2_folder() if model == "smollm2" else model

    def start(self) -> ActorCritic:
        """The SFT policy, from which every RL method starts, with the profile's adapter on it if it has one."""
        folder = self.run.require("policies/sft/config.json", made_by=SFT_NOTEBOOK).parent
        return load_policy(folder, lora=self.profile.policy.lora, seed=self.seed)

    def reference(self) -> Reference:
        """pi_ref of every method: the SFT policy, frozen."""
        return Reference(self.policy("sft"))

    def train_reward(self, task: Task) -> None:
        """Where the profile says `reward.model: train`, train a classifier on the labelled training texts."""
        if self.profile.reward.model != "train" or self.run.path("reward", "config.json").exists():
            return
        for split, texts in (("train", task.train_texts), ("test", task.test_texts)):
            if not {0, 1} <= set(texts["label"]):
                raise UserError(
                    f"reward.model = 'train' needs texts of both labels, 0 and 1, but task.{split}_file has "
                    f"{sorted(set(texts['label']))}; add labels or name a classifier as reward.model."
                )
        pairs = [
            list(zip(texts["text"], texts["label"], strict=True)) for texts in (task.train_texts, task.test_texts)
        ]
        train_review_reward(*pairs, self.run.path("reward"), seed=self.seed)

    def reward(self) -> ClassifierReward:
        """The profile's reward model."""
        settings = self.profile.reward
        folder = {"pocket": lambda: pocket_world(self.profile.task.source).reward, "train": self._trained_reward}
        model = folder.get(settings.model, lambda: settings.model)()
        names = settings.accepted_label_names or None
        return load_reward(model, settings.label, names, settings.sign, settings.batch_size)

    def _trained_reward(self) -> Path:
        return self.run.require("reward/config.json", made_by=DATA_NOTEBOOK).parent

    # 02 and 03: training

    def train_sft(self) -> pd.DataFrame:
        """Fine-tune the base policy on positive texts, save it as `sft`; returns TRL's training log."""
        policy = self.policy("base")
        texts = self.data("sft")["text"].tolist()
        log = train_sft(policy, texts, self.profile.sft, self.seed, self.profile.policy.mixed_precision)
        policy.save(self.run.path("policies", "sft"))
        return pd.DataFrame(log)

    def trainer(self, method: str, **changes: Any) -> CVaRPPOTrainer:
        """Algorithm 1 set up for `rlhf`, `ra_rlhf` or `ra_rlhf_ru`, with "@alpha" for another tail share.

        All start from the SFT policy with the same budget, data order and seeds. `changes` go to the trainer.
        """
        profile = self.profile
        train = self.data("train")
        return CVaRPPOTrainer(
            **{
                "model": self.start(),
                "reward_funcs": self.reward(),
                "args": profile.ppo,
                "risk": profile.risk.for_method(method),
                "sampling": profile.sampling,
                "train_dataset": Dataset.from_pandas(train, preserve_index=False),
                "seed": self.seed,
                "mixed_precision": profile.policy.mixed_precision,
                "log_file": self.run.path("training", f"{method}.jsonl"),
            }
            | changes
        )

    def train(self, method: str) -> pd.DataFrame:
        """Train a method, save its policy; returns the training log, a row an iteration."""
        trainer = self.trainer(method)
        log = trainer.train()
        trainer.policy.save(self.run.path("policies", method))
        return log

    # Evaluation

    def evaluate(self, method: str) -> pd.DataFrame:
        """Measure a method on the test prompts and the held-out texts; writes evaluation/, returns the episodes."""
        profile, settings = self.profile, self.profile.evaluation
        policy, reference = self.policy(method), self.reference()
        episodes = evaluate(
            policy, reference, self.reward(), self.data("test"), profile.sampling, settings, self.seed
        )
        texts = self.data("held_out")["text"].tolist()
        held_out = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
        self.run.write_table(f"evaluation/{method}.parquet", episodes)
        self.run.write_table(f"evaluation/{method}.held_out.parquet", held_out)
        return episodes
