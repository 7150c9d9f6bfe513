"""The loop that every trainer shares: repeat a step, log its statistics, show the progress."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pandas as pd
from accelerate import Accelerator
from tqdm.auto import tqdm

from rarlhf_nb.training.policy import ActorCritic


class TrainingLoop(ABC):
    """A trainer that repeats one step: `CVaRPPOTrainer` and `QuarkTrainer` differ in that step alone.

    `train()` runs all iterations. Iterating over the trainer runs them one at a time and yields the statistics of each.

    Args:
        policy: the policy, trained in place.
        iterations: how many steps to make.
        log_file: gets one JSON line per iteration; the first iteration starts the file anew.
        report_to: trackers of accelerate, such as "tensorboard"; none by default.
    """

    title: ClassVar[str]  # of the progress bar
    unit: ClassVar[str] = "iteration"
    progress: ClassVar[dict[str, str]]  # shown beside the bar: name -> key of the statistics

    def __init__(
        self,
        policy: ActorCritic,
        iterations: int,
        mixed_precision: str,
        log_file: Path | None,
        report_to: Sequence[str] = (),
        project_dir: Path | None = None,
    ) -> None:
        self.policy, self.iterations, self.log_file = policy, iterations, log_file
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision, log_with=list(report_to) or None, project_dir=project_dir
        )
        self.iteration = 0  # the last one's number, counted from 1

    @abstractmethod
    def run_iteration(self) -> dict[str, float]:
        """Run the next iteration, which counts `iteration` up, and return its statistics."""

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Run the remaining iterations one at a time."""
        with tqdm(total=self.iterations, initial=self.iteration, desc=self.title, unit=self.unit) as bar:
            while self.iteration < self.iterations:
                stats = self.run_iteration()
                self.log(stats)
                bar.set_postfix({name: f"{stats[key]:.3g}" for name, key in self.progress.items()})
                bar.update()
                yield stats
        self.accelerator.end_training()

    def train(self) -> pd.DataFrame:
        """Run the remaining iterations; returns their statistics, one row per iteration."""
        return pd.DataFrame(list(self))

    def log(self, stats: dict[str, float]) -> None:
        """Append the statistics to `log_file` and hand them to the trackers."""
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("w" if self.iteration == 1 else "a") as file:
                file.write(json.dumps(stats) + "\n")
        self.accelerator.log(stats, step=self.iteration)
