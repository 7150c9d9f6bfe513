"""Ways to train that differ in a few lines, each compared with RLHF over seeds: what `ru_cost` and `repairs` share.

The first n iterations of the schedule keep every episode, so that nearly all ways begin like RLHF: those iterations are
trained once per seed, and the ways go on from their checkpoint.
"""

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.risk_comparison import (
    Work,
    iterations_for,
    prepare,
    rlhf_units,
    row_names,
    seed_table,
    sft_folder,
    test_episodes,
)
from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.trainer import CVaRPPOTrainer

MEASURES = ["reward", "tail reward", "CVaR 10 %", "KL"]


@dataclass(frozen=True)
class Way:
    """One way to train.

    budgets: "iterations", as many as the profile says; "compute", as many as RLHF's compute pays for.
    begins_like_rlhf: whether its first n iterations are those of RLHF.
    """

    title: str
    method: str
    overrides: dict[str, Any] = field(default_factory=dict)
    trainer: type[CVaRPPOTrainer] = CVaRPPOTrainer
    work: Work = Work()
    budgets: tuple[str, ...] = ("iterations",)
    begins_like_rlhf: bool = True


RLHF = Way("RLHF", "rlhf")


@dataclass(frozen=True)
class Run:
    """One training of a way, by its key among the ways."""

    profile: str
    way: str
    budget: str
    seed: int

    def file(self, output: Path) -> Path:
        return output / self.profile / f"{self.way}_{self.budget}_seed{self.seed}.json"


def all_runs(ways: dict[str, Way], profiles: list[str], seeds: list[int]) -> list[Run]:
    """Seed by seed, so that a run of the benchmark that is cut short leaves whole comparisons."""
    return [
        Run(profile, key, budget, seed)
        for seed in seeds
        for profile in profiles
        for key, way in ways.items()
        for budget in way.budgets
    ]


def run_all(ways: dict[str, Way], runs: list[Run], output: Path) -> None:
    """Trains and evaluates all runs that have no result yet."""
    torch.set_num_threads(1)
    for run in runs:
        if not run.file(output).exists():
            result = run_one(run, ways[run.way], output)
            run.file(output).write_text(json.dumps(result))
            print(run.file(output).stem, flush=True)


def run_one(run: Run, way: Way, output: Path) -> dict[str, Any]:
    """The row of a run in the CSV; its compute is relative to that of RLHF with the profile's iterations."""
    plain, profile = load_profile(run.profile), load_profile(run.profile, way.overrides)
    if run.budget == "compute":
        iterations = iterations_for(way.method, profile, way.work)
        profile = load_profile(run.profile, way.overrides | {"ppo.iterations": iterations})
    folder = output / run.profile
    start = sft_folder(folder, plain)
    trainer, task, reward = prepare(profile, way.method, start, run.seed, trainer=way.trainer)
    if way.begins_like_rlhf:
        trainer.checkpoints = first_iterations(plain, folder, run.seed)
        trainer.resume(other_settings=True)
        trainer.checkpoints = None
    schedule = trainer.schedule
    trainer.train()
    episodes = test_episodes(trainer.policy, trainer.reference, reward, task, profile)
    return {
        "profile": run.profile,
        "method": run.way,
        "budget": run.budget,
        "seed": run.seed,
        "iterations": trainer.iterations,
        "compute": way.work.units(schedule, profile.ppo.epochs) / rlhf_units(plain),
    } | summary(episodes, profile.task.tail_threshold)


def first_iterations(profile: Profile, folder: Path, seed: int) -> Checkpoints:
    """The checkpoint after the n first iterations of RLHF; trains them if it is missing."""
    checkpoints = Checkpoints(folder / f"begun_seed{seed}", seconds=0)
    if checkpoints.latest() is None:
        trainer, *_ = prepare(profile, "rlhf", sft_folder(folder, profile), seed)
        trainer.checkpoints = checkpoints
        for _ in islice(trainer, profile.risk.warm_start):
            pass
    return checkpoints


def collect(ways: dict[str, Way], runs: list[Run], output: Path) -> pd.DataFrame:
    """One row per finished run, in the order of the ways."""
    rows = [json.loads(run.file(output).read_text()) for run in runs if run.file(output).exists()]
    order = {key: place for place, key in enumerate(ways)}
    runs = pd.DataFrame(rows, columns=["profile", "method", "budget", "seed", "iterations", "compute", *MEASURES])
    return runs.sort_values(["method", "seed"], key=lambda column: column.replace(order), kind="stable")


def table(ways: dict[str, Way], runs: pd.DataFrame, than: str = "rlhf") -> pd.DataFrame:
    """`seed_table` of one profile, with the number of seeds and iterations and the compute of each way."""
    names = row_names(runs, lambda key: ways[key].title)
    cells = seed_table(runs, MEASURES, lambda key: ways[key].title, than)
    for pair, group in runs.groupby(["budget", "method"]):
        first = group.iloc[0]
        numbers = [str(len(group)), str(first["iterations"]), f"{first['compute']:.2f}"]
        cells.loc[names[pair], ["seeds", "iterations", "compute"]] = numbers
    return cells.fillna("")
