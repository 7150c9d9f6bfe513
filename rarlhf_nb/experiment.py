"""One run, from profile to report: what the notebooks call, stage by stage.

An `Experiment` binds a profile to a run folder. Each stage reads what earlier stages left in the folder and writes its
own part, so that every notebook can be run on its own once those before it have run.
"""

import json
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
from rarlhf_nb.report import Report, Tables, build_report, load_tables
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
        base, settings = self.policy("base"), self.profile
        check_context(base, settings.task.prompt_length, settings.sampling.completion_length)
        task = load_task(settings.task, base.processing_class)
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
        self.run.note(data_fingerprint=task.fingerprint())
        return task

    def data(self, name: str) -> pd.DataFrame:
        """The table data/<name>.parquet: train, test, sft or held_out."""
        return pd.read_parquet(self.run.require(f"data/{name}.parquet", made_by=DATA_NOTEBOOK))

    def settings_table(self) -> pd.DataFrame:
        """Every setting of the profile: section, setting, value."""
        rows = [
            {"section": section, "setting": key, "value": str(value)}
            for section, settings in self.profile.model_dump(mode="json").items()
            if isinstance(settings, dict)
            for key, value in settings.items()
        ]
        return pd.DataFrame(rows).set_index(["section", "setting"])

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
        pairs = {}
        for split, texts in (("train", task.train_texts), ("test", task.test_texts)):
            labelled = texts[texts["label"].isin([0, 1])]
            if labelled["label"].nunique() < 2:
                raise UserError(
                    f"reward.model = 'train' needs texts of both labels, 0 and 1, but task.{split}_file has "
                    f"{sorted(set(texts['label']))}; add labels or name a classifier as reward.model."
                )
            pairs[split] = list(zip(labelled["text"], labelled["label"], strict=True))
        train_review_reward(
            pairs["train"],
            pairs["test"],
            self.run.path("reward"),
            seed=self.seed,
            mixed_precision=self.profile.policy.mixed_precision,
        )

    def reward(self) -> ClassifierReward:
        """The profile's reward model."""
        settings = self.profile.reward
        names = settings.accepted_label_names or None
        return load_reward(self._reward_folder(), settings.label, names, settings.sign, settings.batch_size)

    def _reward_folder(self) -> Path:
        model = self.profile.reward.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).reward
        if model == "train":
            return self.run.require("reward/config.json", made_by=DATA_NOTEBOOK).parent
        return Path(model)

    def reward_metrics(self) -> pd.DataFrame:
        """The reward model's accuracy on texts that it never saw, by length; empty for a model from elsewhere."""
        metrics = self._reward_folder() / "metrics.json"
        if not metrics.exists():
            return pd.DataFrame({"accuracy": []})
        accuracy = json.loads(metrics.read_text())["accuracy"]
        return pd.DataFrame({"accuracy": accuracy}).rename_axis("tokens of the text")

    # 02 and 03: training

    def train_sft(self) -> pd.DataFrame:
        """Fine-tune the base policy on positive texts, save it as `sft`; returns TRL's training log."""
        policy = load_policy(self._base_folder(), lora=self.profile.policy.lora, seed=self.seed)
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
            policy,
            reference,
            self.reward(),
            self.data("test"),
            profile.sampling,
            settings,
            self.seed,
            profile.policy.mixed_precision,
        )
        texts = self.data("held_out")["text"].tolist()
        held_out = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
        self.run.write_table(f"evaluation/{method}.parquet", episodes)
        self.run.write_table(f"evaluation/{method}.held_out.parquet", held_out)
        return episodes

    def tables(self) -> Tables:
        """What the run holds so far: episodes, held-out texts and training logs by method."""
        return load_tables(self.run.folder)

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json and report.md."""
        self.run.require("evaluation", made_by=SFT_NOTEBOOK)
        tables, settings = self.tables(), self.profile.evaluation
        report = build_report(
            tables.episodes,
            tables.held_out,
            tail_threshold=self.profile.task.tail_threshold,
            cvar_levels=settings.cvar_levels,
            resamples=settings.resamples,
            seed=0,
        )
        self.run.write_text("report.json", report.to_json())
        self.run.write_text("report.md", report.to_markdown())
        return report
