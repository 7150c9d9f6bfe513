"""One policy for every alpha against a policy trained for each: pocket-imdb and pocket-jigsaw, five fresh seeds.

The conditioned policy trains for 80 iterations, the budget of two trainings, RLHF and each Rockafellar-Uryasev policy
for 40. All start from one SFT policy per world, with the same data order per seed and beta fixed at 0.4, where separate
Rockafellar-Uryasev policies have the better tail the smaller their alpha.

    python -m benchmarks.conditioned run OUTPUT [WORLD ...]   (30 minutes a world on one core; skips finished runs)
    python -m benchmarks.conditioned report OUTPUT            (tables and figures, and runs.csv)
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from benchmarks.risk_comparison import Work, prepare, sft_folder, test_episodes
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.methods import MethodKey
from rarlhf_nb.lab.plots.sweep_figures import alpha_curves
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.risk import SoftRiskSchedule
from rarlhf_nb.settings import ConditionedSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

WORLDS = ["pocket-imdb", "pocket-jigsaw"]
SEEDS = [21, 22, 23, 24, 25]
KL_COEF = 0.4
ALPHAS = [1.0, 0.4, 0.2, 0.1]
TRAINER = partial(AlphaConditionedTrainer, conditioned=ConditionedSettings(alpha_min=0.1, groups=4))
SEPARATE = {1.0: "rlhf"} | {alpha: str(MethodKey("ra_rlhf_ru", alpha)) for alpha in ALPHAS[1:]}
KEYS = ["method", "alpha"]
MEASURES = ["reward", "tail reward", "CVaR 10 %", "KL"]


def run_one(method: str, seed: int, profile: Profile, output: Path) -> list[dict[str, Any]]:
    """Trains a method and measures it on the test prompts: one row for each alpha that it acts for."""
    # the conditioned trainer sets estimator and alpha itself
    base, kind = ("ra_rlhf_ru", TRAINER) if method == "conditioned" else (method, CVaRPPOTrainer)
    trainer, task, reward = prepare(profile, base, sft_folder(output, profile), seed, trainer=kind)
    started = time.perf_counter()
    log = trainer.train()
    run = {
        "world": profile.name,
        "method": method,
        "seed": seed,
        "iterations": len(log),
        "seconds": time.perf_counter() - started,
        "gradient tokens": int(log["gradient_tokens"].sum()),
        "compute": Work().units(SoftRiskSchedule(profile.ppo.batch_size, 1, len(log), 0, 1), profile.ppo.epochs),
    }
    rows = []
    for alpha, fixed in at_alphas(method, trainer.policy).items():
        episodes = test_episodes(fixed, trainer.reference, reward, task, profile)
        measured = summary(episodes, profile.task.tail_threshold)
        rows.append(run | {"alpha": alpha} | {measure: float(measured[measure]) for measure in MEASURES})
    return rows


def at_alphas(method: str, policy: ActorCritic) -> dict[float, ActorCritic]:
    """The policy at each alpha that it acts for: all of them, or the one that it was trained for."""
    if method == "conditioned":
        return {alpha: policy.at(alpha) for alpha in ALPHAS}
    return {MethodKey.parse(method).alpha or 1.0: policy}


def run(output: Path, *worlds: str) -> None:
    """Runs everything that has no result yet, one seed after the other."""
    torch.set_num_threads(1)
    for name in worlds or WORLDS:
        folder, profile = output / name, load_profile(name, {"ppo.kl_coef": KL_COEF})
        folder.mkdir(parents=True, exist_ok=True)
        for seed, method in [(seed, method) for seed in SEEDS for method in ("conditioned", *SEPARATE.values())]:
            path = folder / f"{method}_seed{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(run_one(method, seed, profile, folder)))
                print(name, path.stem, flush=True)


def collect(output: Path) -> pd.DataFrame:
    """One row per world, method, seed and alpha, of the seeds for which every method has finished."""
    paths = sorted(output.glob("*/*_seed*.json"))
    rows = pd.DataFrame([row for path in paths for row in json.loads(path.read_text())])
    return rows.groupby(["world", "seed"]).filter(lambda own: own["method"].nunique() == 1 + len(SEPARATE))


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """For each alpha: the conditioned policy, the one trained for it, and the difference, paired by seed."""
    rows = {}
    for alpha in ALPHAS:
        ours, theirs = (values_at(runs, method, alpha) for method in ("conditioned", SEPARATE[alpha]))
        for label, values in {"conditioned": ours, "separate": theirs, "difference": ours - theirs}.items():
            rows[f"α {alpha:g}, {label}"] = cells(values)
    for method in ("conditioned", "separate"):
        lowest, plain = (
            values_at(runs, SEPARATE[alpha] if method == "separate" else method, alpha) for alpha in (0.1, 1.0)
        )
        rows[f"α 0.1 minus α 1, {method}"] = cells(lowest - plain)
    return pd.DataFrame(rows).T[MEASURES]


def values_at(runs: pd.DataFrame, method: str, alpha: float) -> pd.DataFrame:
    """The measures of a method at an alpha, one row per seed."""
    return runs[(runs["method"] == method) & (runs["alpha"] == alpha)].set_index("seed")[MEASURES]


def cells(values: pd.DataFrame) -> dict[str, str]:
    """The mean over the seeds with its t-interval, for each measure."""
    return {measure: interval_cell(seed_interval(values[measure])) for measure in MEASURES}


def budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """What a training costs, in the mean over the seeds; compute: forward passes of one episode."""
    trainings = runs.drop_duplicates(["method", "seed"])
    return (
        trainings.groupby("method", sort=False)[["iterations", "gradient tokens", "compute", "seconds"]].mean().round()
    )


def figure(runs: pd.DataFrame) -> go.Figure:
    """The conditioned policy, those that were trained for one alpha, and RLHF, against alpha; runs: of one world."""
    keys = [
        str(MethodKey(method, alpha)) if method == "conditioned" else method for method, alpha in runs[KEYS].to_numpy()
    ]
    scores = runs.assign(method=keys).rename(columns={"CVaR 10 %": "cvar_10", "KL": "kl"})
    return alpha_curves(scores[["seed", "method", "reward", "cvar_10", "kl"]])


def report(output: Path) -> None:
    """Prints the tables as Markdown; writes runs.csv and a figure per world beside the runs."""
    runs = collect(output)
    runs.round(4).to_csv(output / "runs.csv", index=False)
    for world, own in runs.groupby("world", sort=False):
        print(f"## {world}, {own['seed'].nunique()} seeds", end="\n\n")
        print(markdown_table(table(own)), end="\n\n")
        print(markdown_table(budgets(own)), end="\n\n")
        figure(own).write_image(output / f"{world}.png", width=1000, height=420, scale=2)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    {"run": run, "report": report}[command](Path(folder), *rest)
