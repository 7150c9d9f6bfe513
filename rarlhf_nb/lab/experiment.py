"""One run, from profile to report: what the notebooks call.

An `Experiment` binds a profile to a run folder. Each of its verbs is a stage (see `lab.stages`), which reads what
earlier stages left in the folder and writes its own part; so each notebook runs on its own once those before it have.
"""

import json
import warnings
from functools import partial
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import SWEEP
from rarlhf_nb.lab.evaluation.report import Report, read_report
from rarlhf_nb.lab.evaluation.tables import ALPHAS
from rarlhf_nb.lab.methods import CONDITIONED, MethodKey
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.lab.results import Results
from rarlhf_nb.lab.runs import MANIFEST, Run, check_name, default_root
from rarlhf_nb.lab.stages import data, evaluation, training
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.sweep import Sweep
from rarlhf_nb.lab.sweep_experiment import SweepExperiment
from rarlhf_nb.lab.workspace import EXPERTS
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.quantization import check_bitsandbytes
from rarlhf_nb.settings import PolicySettings


class Experiment(Results):
    """A run with its stages: the verbs of the notebooks."""

    @classmethod
    def open(
        cls, profile: str, run: str | None = None, seed: int = 1, overrides: dict[str, Any] | None = None
    ) -> "Experiment | SweepExperiment":
        """Open (or begin) the run folder `run`, named after the profile by default; a sweep opens as `SweepExperiment`.

        The process then computes with the run's number of threads. Raises `UserError` for an unknown profile or
        setting, for a setting whose package is not installed, and for a folder that belongs to other parameters.
        """
        if run and (default_root() / run / SWEEP).exists():
            return SweepExperiment.open_sweep(Sweep.reopen(run), profile, seed, overrides or {})
        settings = load_profile(profile, overrides)
        check_bitsandbytes(settings.policy.quantization)
        _warn_of_slow_bf16(settings.policy)
        folder = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
        experiment = cls(settings, folder, seed).prepare_process()
        if "threads" not in folder.manifest:
            folder.note(threads=torch.get_num_threads())
        return experiment

    @classmethod
    def reopen(cls, run: str) -> "Experiment | SweepExperiment":
        """Open an existing run folder, or a sweep with its first seed, with the settings that it was begun with.

        Raises `UserError` for an unknown run, and the errors of `of`.
        """
        check_name(run)
        found = Run(default_root() / run)
        if found.path(SWEEP).exists():
            sweep = Sweep.reopen(run)
            return SweepExperiment.open_sweep(sweep, sweep.grid.profile, sweep.grid.seeds[0], {})
        if not found.path(MANIFEST).is_file():
            there = sorted(path.parent.name for path in default_root().glob(f"*/{MANIFEST}"))
            raise UserError(f"run = {run!r}: there is no such run; there are: {', '.join(there) or 'none'}.")
        return cls.of(found)

    @classmethod
    def of(cls, run: Run) -> "Experiment":
        """The experiment of a run folder, with the settings that it was begun with.

        Raises `UserError` for settings that another version of the package wrote.
        """
        manifest = run.manifest
        try:
            profile = Profile(**manifest["settings"])
        except ValidationError as error:
            raise UserError(
                f"run = {run.name!r}{run.other_version()} has {error.error_count()} settings that this version does "
                "not know: run it again under another name."
            ) from None
        return cls(profile, run, manifest["seed"]).prepare_process()

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
            data.reward_stage(self).run()
        data.data_stage(self).run()
        return self.run.read("data/task.json")["notes"]

    def reward_metrics(self) -> pd.DataFrame:
        """The reward model's accuracy on held-out texts, by their length; empty for a model from elsewhere."""
        metrics = self.reward_folder() / "metrics.json"
        if not metrics.exists():
            return pd.DataFrame({"accuracy": []})
        accuracy = json.loads(metrics.read_text())["accuracy"]
        return pd.DataFrame({"accuracy": accuracy}).rename_axis("tokens of the text")

    def train_sft(self) -> pd.DataFrame:
        """Fine-tune the base policy on positive texts and save it as `sft`; returns TRL's training log."""
        training.sft_stage(self).run()
        return self.run.read(f"policies/sft/{training.SFT_LOG}")

    def trainer(self, method: str, **changes: Any) -> TrainingLoop:
        """The trainer of `rlhf`, `ra_rlhf`, `ra_rlhf_ru` (each also with "@alpha"), `conditioned` or `quark`.

        All start from the SFT policy with the same data order and seed. `changes` replace arguments of the trainer.
        """
        return training.make_trainer(self, method, **changes)

    def train(self, method: str) -> pd.DataFrame:
        """Train a method and save its policy; returns the training log, one row per iteration.

        The methods of `trainer`, and `grpo`, `cvar_grpo`, `rloo` and `cvar_rloo`, which TRL trains.
        """
        training.training_stage(self, method).run()
        return self.run.read(f"training/{method}.jsonl")

    def risk_methods(self) -> list[str]:
        """The methods that train on the tail: both estimators at `risk.alpha` and at each alpha of the sweep."""
        estimators = ("ra_rlhf", "ra_rlhf_ru")
        others = [alpha for alpha in self.profile.sweep.alphas if alpha != self.profile.risk.alpha]
        return [*estimators, *(str(MethodKey(name, alpha)) for alpha in others for name in estimators)]

    def stages(self) -> list[Stage]:
        """Every stage but the report, in the order of the notebooks."""
        train, evaluate = partial(training.training_stage, self), partial(evaluation.evaluation_stage, self)
        risk, critic_free = self.risk_methods(), self.profile.critic_free.methods
        return [
            *([data.reward_stage(self)] if self.profile.reward.model == "train" else []),
            data.data_stage(self),
            *(training.sft_stage(self), train("rlhf"), *map(evaluate, ("base", "sft", "rlhf"))),
            *(*map(train, risk), *map(evaluate, risk), train(CONDITIONED), evaluate(CONDITIONED)),
            *(training.prefix_stage(self), training.experts_stage(self), *map(train, ("quark", *critic_free))),
            *map(evaluate, ("prompted", "best_of_n", "dexperts", "quark", *critic_free)),
        ]

    def choose_prefix(self) -> pd.DataFrame:
        """Try the profile's prefixes on validation prompts and save the best as `prompted`; returns their rewards."""
        training.prefix_stage(self).run()
        return self.run.read(f"policies/prompted/{training.PREFIXES}")

    def train_experts(self) -> dict[str, pd.DataFrame]:
        """Fine-tune the expert and the anti-expert of `dexperts`; returns their training logs.

        Without texts of another label for the anti-expert it trains none, says so and returns nothing.
        """
        if self.data("anti_expert").empty:
            label = self.profile.task.positive_label
            print(
                f"DExperts is left out: no training text has a label but {label}, and the anti-expert needs such texts"
            )
            return {}
        training.experts_stage(self).run()
        return {name: self.run.read(f"policies/dexperts/{name}/{training.SFT_LOG}") for name in EXPERTS}

    def evaluate(self, method: str) -> pd.DataFrame:
        """Measure a method on the test prompts and the held-out texts; returns its episodes table.

        `conditioned` is measured at many alphas, which the table holds in the column alpha; `conditioned@0.2` at one.
        """
        evaluation.evaluation_stage(self, method).run()
        return self.run.read(f"evaluation/{method}{ALPHAS if method == CONDITIONED else '.parquet'}")

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json, report.md and summary.md."""
        evaluation.report_stage(self).run()
        return read_report(self.run)


def _warn_of_slow_bf16(policy: PolicySettings) -> None:
    """Products in bf16 take several times as long as in float32 if the processor has no instructions for them."""
    processor = torch.cpu.get_capabilities()
    slow = processor.get("avx512_bf16") is False and not processor.get("amx_bf16")  # another architecture has neither
    if policy.mixed_precision == "bf16" and slow and not torch.cuda.is_available():
        warnings.warn(
            "policy.mixed_precision = 'bf16', but this machine has no GPU, and its processor no instructions for bf16: "
            "everything will take several times as long as with policy.mixed_precision = 'no'.",
            stacklevel=3,
        )
