"""One run, from profile to report: what the notebooks call.

An `Experiment` binds a profile to a run folder. Each of its verbs is a stage (see `running.stages`), which reads what
earlier stages left in the folder and writes its own part; so each notebook runs on its own once those before it have.
"""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from pydantic import ValidationError

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import counted
from rarlhf_nb.lab.evaluation.clusters import cluster_prompts, embed_prompts
from rarlhf_nb.lab.evaluation.ledger import build_ledger
from rarlhf_nb.lab.evaluation.report import Report
from rarlhf_nb.lab.evaluation.scores import alpha_scores, related_scores
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables
from rarlhf_nb.lab.methods import CONDITIONED, MethodKey
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.lab.runs import MANIFEST, SWEEP, Run, check_name, default_root
from rarlhf_nb.lab.stages import (
    ChoosePrefix,
    FineTune,
    PrepareData,
    TrainExperts,
    TrainReward,
    WriteReport,
    evaluation_stage,
    training_stage,
)
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.quantization import check_bitsandbytes
from rarlhf_nb.settings import PolicySettings

LIVE_ITERATIONS = 40


@dataclass(frozen=True)
class Experiment(Workspace):
    """A run with its stages: a profile, a run folder, a seed, and the verbs of the notebooks."""

    @classmethod
    def open(
        cls, profile: str, run: str | None = None, seed: int = 1, overrides: dict[str, Any] | None = None
    ) -> "Experiment":
        """Open (or begin) the run folder `run`, named after the profile by default; a sweep opens as `SweepExperiment`.

        Raises `UserError` for an unknown profile or setting, for a setting whose package is not installed, and for a
        folder that belongs to other parameters.
        """
        if run and (default_root() / run / SWEEP).exists():
            return _open_sweep(run, profile, seed, overrides)
        _hide_loading_bars()
        settings = load_profile(profile, overrides)
        check_bitsandbytes(settings.policy.quantization)
        _warn_of_slow_bf16(settings.policy)
        folder = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
        experiment = cls(settings, folder, seed).with_threads()
        if "threads" not in folder.manifest:
            folder.note(threads=torch.get_num_threads())
        return experiment

    @classmethod
    def reopen(cls, run: str) -> "Experiment":
        """Open an existing run folder, or a sweep, with the settings that it was begun with.

        Raises `UserError` for an unknown run, and the errors of `of`.
        """
        check_name(run)
        found = Run(default_root() / run)
        if found.path(SWEEP).exists():
            return _open_sweep(run)
        if not found.path(MANIFEST).is_file():
            there = sorted(path.parent.name for path in default_root().glob(f"*/{MANIFEST}"))
            raise UserError(f"run = {run!r}: there is no such run; there are: {', '.join(there) or 'none'}.")
        return cls.of(found)

    @classmethod
    def of(cls, run: Run) -> "Experiment":
        """The experiment of a run folder, with the settings that it was begun with.

        Raises `UserError` for settings that another version of the package wrote.
        """
        _hide_loading_bars()
        manifest = run.manifest
        try:
            return cls(Profile(**manifest["settings"]), run, manifest["seed"]).with_threads()
        except ValidationError as error:
            raise UserError(
                f"run = {run.name!r} has {error.error_count()} settings that this version does not know: "
                "run it again under another name."
            ) from None

    def with_threads(self) -> "Experiment":
        """Let torch compute with the run's number of threads: the profile's, or else that of the run's first use.

        More threads than the machine has cores give the same numbers, slowly, and a warning.
        """
        threads = self.run.manifest.get("threads") or self.profile.compute.threads or torch.get_num_threads()
        cores = os.cpu_count() or threads
        if threads > cores:
            warnings.warn(
                f"compute.threads = {threads}, but this machine has {counted(cores, 'core')}: the "
                "numbers are those of that many threads, but they come slowly.",
                stacklevel=3,
            )
        torch.set_num_threads(threads)
        return self

    def settings_table(self) -> pd.DataFrame:
        """Every setting of the profile: section, setting, value."""
        rows = [
            {"section": section, "setting": key, "value": str(value)}
            for section, settings in self.profile.model_dump(mode="json").items()
            if isinstance(settings, dict)
            for key, value in settings.items()
        ]
        return pd.DataFrame(rows).set_index(["section", "setting"])

    def prepare_data(self) -> list[str]:
        """Cut the prompts, score those of the test split, and write data/; returns notes on the rows left out.

        A reward model is trained before that if the profile says so.
        """
        if self.profile.reward.model == "train":
            TrainReward(self).run()
        return PrepareData(self).run()

    def reward_metrics(self) -> pd.DataFrame:
        """The reward model's accuracy on held-out texts, by their length; empty for a model from elsewhere."""
        metrics = self.reward_folder() / "metrics.json"
        if not metrics.exists():
            return pd.DataFrame({"accuracy": []})
        accuracy = json.loads(metrics.read_text())["accuracy"]
        return pd.DataFrame({"accuracy": accuracy}).rename_axis("tokens of the text")

    def train_sft(self) -> pd.DataFrame:
        """Fine-tune the base policy on positive texts and save it as `sft`; returns TRL's training log."""
        return FineTune(self).run()

    def trainer(self, method: str, **changes: Any) -> TrainingLoop:
        """The trainer of `rlhf`, `ra_rlhf`, `ra_rlhf_ru` (each also with "@alpha"), `conditioned` or `quark`.

        All start from the SFT policy with the same data order and seed. `changes` replace arguments of the trainer.
        """
        return training_stage(self, method).trainer(**changes)

    def live_trainer(self, alpha: float, estimator: str, warm_start: int, rho: float, seed: int) -> TrainingLoop:
        """For live training: a trainer of 40 iterations, which writes nothing into the run folder.

        estimator: one of `risk.estimator`, or "conditioned" for one policy that reads its alpha, from `alpha` to 1.
        """
        profile = self.profile
        schedule = {"warm_start": warm_start, "rho": rho}
        own = {"args": profile.ppo.model_copy(update={"iterations": LIVE_ITERATIONS}), "seed": seed, "log_file": None}
        if estimator == CONDITIONED:
            own["risk"] = profile.risk.model_copy(update=schedule)
            limits = {"alpha_min": alpha, "iterations": LIVE_ITERATIONS}
            return self.trainer(CONDITIONED, conditioned=profile.conditioned.model_copy(update=limits), **own)
        own["risk"] = profile.risk.model_copy(update={"alpha": alpha, "estimator": estimator} | schedule)
        return self.trainer("ra_rlhf", **own)

    def live_warm_start(self) -> int:
        """n for live training: the same share of its iterations as of the profile's."""
        return self.profile.risk.warm_start * LIVE_ITERATIONS // self.profile.ppo.iterations

    def train(self, method: str) -> pd.DataFrame:
        """Train a method and save its policy; returns the training log, one row per iteration.

        The methods of `trainer`, and `grpo`, `cvar_grpo`, `rloo` and `cvar_rloo`, which TRL trains.
        """
        return training_stage(self, method).run()

    def risk_methods(self) -> list[str]:
        """The methods that train on the tail: both estimators at `risk.alpha` and at each alpha of the sweep."""
        estimators = ("ra_rlhf", "ra_rlhf_ru")
        others = [alpha for alpha in self.profile.sweep.alphas if alpha != self.profile.risk.alpha]
        return [*estimators, *(str(MethodKey(name, alpha)) for alpha in others for name in estimators)]

    def choose_prefix(self) -> pd.DataFrame:
        """Try the profile's prefixes on validation prompts and save the best as `prompted`; returns their rewards."""
        return ChoosePrefix(self).run()

    def train_experts(self) -> dict[str, pd.DataFrame]:
        """Fine-tune the expert and the anti-expert of `dexperts`; returns their training logs."""
        return TrainExperts(self).run()

    def evaluate(self, method: str) -> pd.DataFrame:
        """Measure a method on the test prompts and the held-out texts; returns its episodes table.

        `conditioned` is measured at many alphas, which the table holds in the column alpha; `conditioned@0.2` at one.
        """
        return evaluation_stage(self, method).run()

    def tables(self) -> Tables:
        """What the run holds so far: episodes, held-out texts and training logs by method."""
        return load_tables(self.run)

    def alpha_scores(self) -> pd.DataFrame:
        """What the trained alpha changes in this run: see `evaluation.scores.alpha_scores`."""
        return alpha_scores(self.tables(), self.profile.risk.alpha, self.seed)

    def sampler(self) -> Callable[[list[str], float], list[tuple[str, float]]] | None:
        """For the explorer: from prompts and alpha to fresh completions of the conditioned policy, and their rewards.

        The policy is loaded at the first call. Every call draws the same random numbers, so that only alpha changes a
        completion. None where the run has no such policy.
        """
        if not self.run.path("policies", CONDITIONED).exists():
            return None
        loaded = cache(lambda: (self.saved(CONDITIONED), self.reward()))

        def sample(prompts: list[str], alpha: float) -> list[tuple[str, float]]:
            policy, reward = loaded()
            completions = policy.sample(prompts, self.profile.sampling, self.seed, alpha=alpha).completions
            return list(zip(completions, reward(prompts, completions), strict=True))

        return sample

    def scores(self, free: Sequence[str] = ()) -> pd.DataFrame:
        """The scores of this run and of those beside it that differ only in the seed and the `free` settings.

        For a sweep, those of all its runs. See `evaluation.scores` for the columns.
        """
        return related_scores(self.run, free)

    def other_seeds(self) -> dict[int, dict[str, pd.DataFrame]]:
        """For a sweep, the episodes tables of its other seeds: seed -> method -> table; a run has none."""
        return {}

    @property
    def output(self) -> Run:
        """The folder of the report: the run's, or that of the sweep."""
        return self.run

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json, report.md and summary.md."""
        return WriteReport(self).run()

    def ledger(self, report: Report) -> pd.DataFrame:
        """Every published number of this task beside ours; writes ledger.json."""
        ledger = build_ledger(report, self.profile)
        self.output.write_text("ledger.json", ledger.to_json(orient="records", indent=1) + "\n")
        return ledger

    def tail_clusters(self, method: str = "sft", share: float = 0.1) -> pd.DataFrame:
        """The hardest `share` of the test prompts with cluster, x and y, as the policy of `method` sees them."""
        test = self.data("test")
        hardest = test.nsmallest(max(1, round(share * len(test))), "prompt_score")
        return cluster_prompts(hardest, embed_prompts(self.saved(method), hardest["prompt"].tolist()))


def _warn_of_slow_bf16(policy: PolicySettings) -> None:
    """Products in bf16 take several times as long as in float32 where the processor has no instructions for them."""
    processor = torch.cpu.get_capabilities()
    slow = processor.get("avx512_bf16") is False and not processor.get("amx_bf16")  # another architecture has neither
    if policy.mixed_precision == "bf16" and slow and not torch.cuda.is_available():
        warnings.warn(
            "policy.mixed_precision = 'bf16', but this machine has no GPU, and its processor no instructions for bf16: "
            "everything will take several times as long as with policy.mixed_precision = 'no'.",
            stacklevel=3,
        )


def _hide_loading_bars() -> None:
    """The bars of models and data sets that are loaded would bury the output of a notebook or a command."""
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _open_sweep(
    name: str, profile: str | None = None, seed: int | None = None, overrides: dict[str, Any] | None = None
) -> Experiment:
    """A sweep as an experiment, by default with its first seed."""
    from rarlhf_nb.lab.sweep import Sweep  # here, since they import this module
    from rarlhf_nb.lab.sweep_experiment import SweepExperiment

    _hide_loading_bars()
    sweep = Sweep.reopen(name)
    seed = sweep.grid.seeds[0] if seed is None else seed
    return SweepExperiment.open_sweep(sweep, profile or sweep.grid.profile, seed, overrides or {})
