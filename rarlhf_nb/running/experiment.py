"""One run, from profile to report: what the notebooks call.

An `Experiment` binds a profile to a run folder. Each of its verbs is a stage (see `running.stages`), which reads what
earlier stages left in the folder and writes its own part; so each notebook runs on its own once those before it have.
"""

import json
from dataclasses import dataclass
from typing import Any

import datasets
import pandas as pd
import transformers
from pydantic import ValidationError

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.methods import sweep_key
from rarlhf_nb.core.profiles import Profile, load_profile
from rarlhf_nb.core.runs import MANIFEST, Run, check_name, default_root
from rarlhf_nb.measuring.clusters import cluster_prompts, embed_prompts
from rarlhf_nb.measuring.ledger import build_ledger
from rarlhf_nb.measuring.report import Report
from rarlhf_nb.measuring.tables import Tables, load_tables
from rarlhf_nb.running.stages import ChoosePrefix, Evaluate, FineTune, PrepareData, Train, TrainExperts, WriteReport
from rarlhf_nb.running.workspace import Workspace
from rarlhf_nb.training.loop import TrainingLoop
from rarlhf_nb.worlds.tasks import Task


@dataclass(frozen=True)
class Experiment(Workspace):
    """A run with its stages: a profile, a run folder, a seed, and the verbs of the notebooks."""

    @classmethod
    def open(
        cls, profile: str, run: str | None = None, seed: int = 1, overrides: dict[str, Any] | None = None
    ) -> "Experiment":
        """Open (or begin) the run folder `run`, named after the profile by default.

        Raises `UserError` for an unknown profile or setting, and for a folder that belongs to other parameters.
        """
        transformers.logging.disable_progress_bar()  # bars of loading would bury a notebook's own output
        datasets.disable_progress_bars()
        settings = load_profile(profile, overrides)
        folder = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
        return cls(settings, folder, seed)

    @classmethod
    def reopen(cls, run: str) -> "Experiment":
        """Open an existing run folder with the settings that it was begun with.

        Raises `UserError` for an unknown run, and for settings that another version of the package wrote.
        """
        check_name(run)
        found = Run(default_root() / run)
        if not found.path(MANIFEST).is_file():
            there = sorted(path.parent.name for path in default_root().glob(f"*/{MANIFEST}"))
            raise UserError(f"run = {run!r}: there is no such run; there are: {', '.join(there) or 'none'}.")
        manifest = found.manifest
        try:
            return cls(Profile(**manifest["settings"]), found, manifest["seed"])
        except ValidationError as error:
            raise UserError(
                f"run = {run!r} has {error.error_count()} settings that this version does not know: "
                "run it again under another name."
            ) from None

    def settings_table(self) -> pd.DataFrame:
        """Every setting of the profile: section, setting, value."""
        rows = [
            {"section": section, "setting": key, "value": str(value)}
            for section, settings in self.profile.model_dump(mode="json").items()
            if isinstance(settings, dict)
            for key, value in settings.items()
        ]
        return pd.DataFrame(rows).set_index(["section", "setting"])

    def prepare_data(self) -> Task:
        """Cut the prompts, score those of the test split, and write data/."""
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
        """The trainer of `rlhf`, `ra_rlhf`, `ra_rlhf_ru` (each also with "@alpha") or `quark`, ready to run.

        All start from the SFT policy with the same data order and seed. `changes` replace arguments of the trainer.
        """
        return Train(self, method).trainer(**changes)

    def train(self, method: str) -> pd.DataFrame:
        """Train a method of `trainer` and save its policy; returns the training log, one row per iteration."""
        return Train(self, method).run()

    def risk_methods(self) -> list[str]:
        """The methods that train on the tail: both estimators at `risk.alpha` and at each alpha of the sweep."""
        estimators = ("ra_rlhf", "ra_rlhf_ru")
        others = [alpha for alpha in self.profile.sweep.alphas if alpha != self.profile.risk.alpha]
        return [*estimators, *(sweep_key(name, alpha) for alpha in others for name in estimators)]

    def choose_prefix(self) -> pd.DataFrame:
        """Try the profile's prefixes on validation prompts and save the best as `prompted`; returns their rewards."""
        return ChoosePrefix(self).run()

    def train_experts(self) -> dict[str, pd.DataFrame]:
        """Fine-tune the expert and the anti-expert of `dexperts`; returns their training logs."""
        return TrainExperts(self).run()

    def evaluate(self, method: str) -> pd.DataFrame:
        """Measure a method on the test prompts and the held-out texts; returns its episodes table."""
        return Evaluate(self, method).run()

    def tables(self) -> Tables:
        """What the run holds so far: episodes, held-out texts and training logs by method."""
        return load_tables(self.run.folder)

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json, report.md and summary.md."""
        return WriteReport(self).run()

    def ledger(self, report: Report) -> pd.DataFrame:
        """Every published number of this task beside ours; writes ledger.json."""
        ledger = build_ledger(report, self.profile)
        self.run.write_text("ledger.json", ledger.to_json(orient="records", indent=1) + "\n")
        return ledger

    def tail_clusters(self, method: str = "sft", share: float = 0.1) -> pd.DataFrame:
        """The hardest `share` of the test prompts with cluster, x and y, as the policy of `method` sees them."""
        test = self.data("test")
        hardest = test.nsmallest(max(1, round(share * len(test))), "prompt_score")
        return cluster_prompts(hardest, embed_prompts(self.saved(method), hardest["prompt"].tolist()))
