"""One run, from profile to report: what the notebooks call, stage by stage.

An `Experiment` binds a profile to a run folder. Each stage reads what earlier stages left in the folder and writes its
own part, so that every notebook can be run on its own once those before it have run.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from datasets import Dataset
from pydantic import ValidationError

from rarlhf_nb.baselines.dexperts import DExperts
from rarlhf_nb.baselines.prompted import choose_prefix, prompted_policy
from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.methods import BASELINES_NOTEBOOK, DATA_NOTEBOOK, SFT_NOTEBOOK, find_method, sweep_key
from rarlhf_nb.core.profiles import Profile, load_profile
from rarlhf_nb.core.runs import MANIFEST, Run, default_root
from rarlhf_nb.measuring.clusters import cluster_prompts, embed_prompts
from rarlhf_nb.measuring.evaluation import evaluate, held_out_log_likelihoods
from rarlhf_nb.measuring.ledger import build_ledger
from rarlhf_nb.measuring.report import (
    HELD_OUT,
    SAMPLES,
    Report,
    Tables,
    build_report,
    load_tables,
    markdown_table,
)
from rarlhf_nb.training.policy import ActorCritic, Policy, Reference, check_context, load_policy
from rarlhf_nb.training.sft import train_sft
from rarlhf_nb.training.trainer import CVaRPPOTrainer
from rarlhf_nb.worlds.pocket import pocket_world
from rarlhf_nb.worlds.rewards import ClassifierReward, load_reward
from rarlhf_nb.worlds.smollm2 import smollm2_folder, train_text_reward
from rarlhf_nb.worlds.tasks import UNKNOWN_LABEL, Task, load_task

EXPERTS = ("expert", "anti_expert")


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
        transformers.logging.disable_progress_bar()  # bars of loading would bury a notebook's own output
        datasets.disable_progress_bars()
        settings = load_profile(profile, overrides)
        folder = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
        return cls(settings, folder, seed)

    @classmethod
    def reopen(cls, run: str) -> "Experiment":
        """The experiment of a run folder that is there, with the settings that it has.

        Raises `UserError` where there is none of that name, or its settings are of another version of the package.
        """
        found = Run(default_root() / run)
        if not found.path(MANIFEST).is_file():
            there = sorted(path.parent.name for path in default_root().glob(f"*/{MANIFEST}"))
            raise UserError(f"run = {run!r}: there is no such run; there are: {', '.join(there) or 'none'}.")
        manifest = found.manifest
        try:
            return cls(Profile(**manifest["settings"]), found, manifest["seed"])
        except ValidationError as error:
            raise UserError(
                f"run = {run!r} has settings that this version does not know ({error.error_count()} of them): "
                "run it again under another name."
            ) from None

    # 01: the data

    def prepare_data(self) -> Task:
        """Cut the prompts, score those of the test split, and write data/."""
        base, settings = self._base(), self.profile
        check_context(base, settings.task.prompt_length, settings.sampling.completion_length)
        task = load_task(settings.task, base.processing_class)
        label = settings.task.positive_label
        sft_texts = task.positive_texts("train", label)
        others = task.train_texts[~task.train_texts["label"].isin([label, UNKNOWN_LABEL])]
        held_out = task.positive_texts("test", label)[: settings.evaluation.held_out_texts]
        self.train_reward(task)
        test = task.test.assign(prompt_score=self.reward().score(task.test["prompt"].tolist()))
        for name, table in {
            "train": task.train,
            "test": test,
            "sft": pd.DataFrame({"text": sft_texts}),
            "anti_expert": others[["text"]],
            "held_out": pd.DataFrame({"text": held_out}),
        }.items():
            self.run.write_table(f"data/{name}.parquet", table)
        self.run.note(data_fingerprint=task.fingerprint(), data_notes=task.notes)
        return task

    def data(self, name: str) -> pd.DataFrame:
        """The table data/<name>.parquet: train, test, sft, anti_expert or held_out."""
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

    def policy(self, method: str) -> Policy:
        """The policy of a method as it was saved; `base` is the profile's model."""
        if method == "base":
            return self._base()
        if method == "dexperts":
            expert, anti_expert = (self._saved(f"dexperts/{name}", BASELINES_NOTEBOOK) for name in EXPERTS)
            settings = self.profile.dexperts
            return DExperts(self._base(), expert, anti_expert, settings.alpha, settings.top_p)
        return self._saved(method, find_method(method).notebook)

    def _base(self) -> ActorCritic:
        return load_policy(self._base_folder(), dtype=self._dtype)

    def _saved(self, name: str, made_by: str) -> ActorCritic:
        return load_policy(self.run.require(f"policies/{name}/config.json", made_by=made_by).parent, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.profile.policy.dtype)

    def _base_folder(self) -> Path | str:
        model = self.profile.policy.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).policy
        return smollm2_folder() if model == "smollm2" else model

    def start(self) -> ActorCritic:
        """The SFT policy, from which every RL method starts, with the profile's adapter on it if it has one."""
        folder = self.run.require("policies/sft/config.json", made_by=SFT_NOTEBOOK).parent
        return load_policy(folder, self.profile.policy.lora, self._dtype, self.seed)

    def reference(self) -> Reference:
        """pi_ref of every method: the SFT policy, frozen."""
        return Reference(self._saved("sft", SFT_NOTEBOOK))

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
        train_text_reward(
            self.profile.task.name,
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

    # 02, 03 and 04: training

    def train_sft(self) -> pd.DataFrame:
        """Fine-tune the base policy on positive texts, save it as `sft`; returns TRL's training log."""
        texts = self.data("sft")["text"].tolist()
        policy = load_policy(self._base_folder(), self.profile.policy.lora, self._dtype, self.seed)
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

    def risk_methods(self) -> list[str]:
        """The methods that train on the tail: both estimators at `risk.alpha` and at each alpha of the sweep."""
        estimators = ("ra_rlhf", "ra_rlhf_ru")
        others = [alpha for alpha in self.profile.sweep.alphas if alpha != self.profile.risk.alpha]
        return [*estimators, *(sweep_key(name, alpha) for alpha in others for name in estimators)]

    def choose_prefix(self) -> pd.DataFrame:
        """Try the profile's prefixes on validation prompts (of the training split), save the best as `prompted`.

        Returns each prefix with its mean reward, best first.
        """
        settings = self.profile.prompted
        prompts = self.data("train")["prompt"].tolist()[-settings.validation_prompts :]
        base = self._base()
        found = choose_prefix(
            base, self.reward(), prompts, settings.prefixes, self.profile.sampling, self.seed, self._batch_size
        )
        prompted_policy(base, found["prefix"].iloc[0]).save(self.run.path("policies", "prompted"))
        return found

    def train_experts(self) -> dict[str, pd.DataFrame]:
        """Fine-tune an expert on the texts that SFT uses and an anti-expert on the others; save both.

        Returns their training logs. Raises `UserError` where no text has another label.
        """
        profile, logs = self.profile, {}
        for name, data in zip(EXPERTS, ("sft", "anti_expert"), strict=True):
            texts = self.data(data)["text"].tolist()
            if not texts:
                raise UserError(
                    f"dexperts: every training text has label {profile.task.positive_label} or none, but the "
                    "anti-expert learns from the others; add texts with another label."
                )
            policy = self._base()
            log = train_sft(policy, texts, profile.dexperts.experts, self.seed, profile.policy.mixed_precision)
            policy.save(self.run.path("policies", "dexperts", name))
            logs[name] = pd.DataFrame(log)
        return logs

    def quark_trainer(self, **changes: Any) -> QuarkTrainer:
        """Quark set up from the SFT policy, as the methods of `trainer` are."""
        profile = self.profile
        return QuarkTrainer(
            **{
                "model": self.start(),
                "reward_funcs": self.reward(),
                "args": profile.quark,
                "sampling": profile.sampling,
                "train_dataset": Dataset.from_pandas(self.data("train"), preserve_index=False),
                "seed": self.seed,
                "mixed_precision": profile.policy.mixed_precision,
                "log_file": self.run.path("training", "quark.jsonl"),
            }
            | changes
        )

    def train_quark(self) -> pd.DataFrame:
        """Train Quark, save its policy with the best reward token as prefix; returns the training log."""
        trainer = self.quark_trainer()
        log = trainer.train()
        trainer.policy.save(self.run.path("policies", "quark"))
        return log

    # Evaluation

    @property
    def _batch_size(self) -> int:
        return self.profile.evaluation.batch_size

    def evaluate(self, method: str) -> pd.DataFrame:
        """Measure a method on the test prompts and the held-out texts; writes evaluation/, returns the episodes."""
        profile, settings, policy, test = self.profile, self.profile.evaluation, self.policy(method), self.data("test")
        measure = partial(
            evaluate,
            policy,
            self.reference(),
            self.reward(),
            sampling=profile.sampling,
            seed=self.seed,
            mixed_precision=profile.policy.mixed_precision,
            base=self._base(),
        )
        episodes = measure(prompts=test, settings=settings)
        self.run.write_table(f"evaluation/{method}.parquet", episodes)
        if settings.repeated_prompts:
            repeated = settings.model_copy(update={"samples_per_prompt": settings.repeated_samples})
            samples = measure(prompts=test.head(settings.repeated_prompts), settings=repeated)
            self.run.write_table(f"evaluation/{method}{SAMPLES}", samples)
        texts = self.data("held_out")["text"].tolist()
        held_out = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
        self.run.write_table(f"evaluation/{method}{HELD_OUT}", held_out)
        return episodes

    def tables(self) -> Tables:
        """What the run holds so far: episodes, held-out texts and training logs by method."""
        return load_tables(self.run.folder)

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json, report.md and summary.md (the main table)."""
        self.run.require("evaluation", made_by=SFT_NOTEBOOK)
        tables, settings = self.tables(), self.profile.evaluation
        report = build_report(
            tables.episodes,
            tables.held_out,
            tail_threshold=self.profile.task.tail_threshold,
            cvar_levels=settings.cvar_levels,
            resamples=settings.resamples,
            seed=0,
            samples=tables.samples,
            toxicity=self.profile.task.name != "imdb-gen",
        )
        self.run.write_text("report.json", report.to_json())
        self.run.write_text("report.md", report.to_markdown())
        self.run.write_text("summary.md", markdown_table(report.main()) + "\n")
        return report

    def ledger(self, report: Report) -> pd.DataFrame:
        """Every published number of this task beside ours; writes ledger.json."""
        ledger = build_ledger(report, self.profile)
        self.run.write_text("ledger.json", ledger.to_json(orient="records", indent=1) + "\n")
        return ledger

    def tail_clusters(self, method: str = "sft", share: float = 0.1) -> pd.DataFrame:
        """The hardest `share` of the test prompts with cluster, x and y, as a method's policy sees them."""
        test = self.data("test").nsmallest(max(1, round(share * len(self.data("test")))), "prompt_score")
        embeddings = embed_prompts(self._saved(method, find_method(method).notebook), test["prompt"].tolist())
        return cluster_prompts(test, embeddings)
