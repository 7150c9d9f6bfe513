"""What a lower trained alpha buys on the pocket world, and what it costs.

Two questions; every method starts from one SFT policy, with the same data order per seed and a fixed beta:

1. What does a method gain over RLHF at equal iterations and at equal compute? Five seeds: mean, tail, CVaR, the rare
   group, KL and seconds, with paired intervals.
2. Is a gain risk aversion, or just less regularisation? Three seeds at several values of beta: mean and CVaR 10 %
   against KL.

    python -m benchmarks.risk_comparison run OUTPUT      (hours on one core; skips finished runs)
    python -m benchmarks.risk_comparison report OUTPUT   (tables and the frontier of the finished runs)

Settings come from the profile `pocket-imdb`; they were fixed before the five seeds were run (docs/results).
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.data.tasks import Task, load_task
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.lab.evaluation.equal_kl import gain_at_equal_kl
from rarlhf_nb.lab.evaluation.evaluate import evaluate
from rarlhf_nb.lab.evaluation.metrics import Interval, seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.methods import method_name
from rarlhf_nb.lab.plots.sweep_figures import frontier
from rarlhf_nb.lab.profiles import Profile, load_profile, risk_of_method
from rarlhf_nb.policy import ActorCritic, Policy, Reference, load_policy
from rarlhf_nb.rewards import ClassifierReward, load_reward
from rarlhf_nb.risk import SoftRiskSchedule, cvar
from rarlhf_nb.settings import TaskSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

METHODS = ["rlhf", "ra_rlhf@0.4", "ra_rlhf@0.2", "ra_rlhf_ru@0.4", "ra_rlhf_ru@0.2"]
SEEDS = [1, 2, 3, 4, 5]
KL_COEFS = [0.8, 0.4, 0.2, 0.1]
FRONTIER_SEEDS = [1, 2, 3]
TEST_SEED = 0


@dataclass(frozen=True)
class Setting:
    """One training run."""

    method: str
    seed: int
    kl_coef: float
    budget: str = "iterations"  # or "compute": as many iterations as RLHF's compute pays for

    @property
    def name(self) -> str:
        return f"{self.method}_beta{self.kl_coef}_seed{self.seed}_{self.budget}"


def all_settings(profile: Profile) -> list[Setting]:
    """The runs of both questions; a run that both need is listed once."""
    main = [Setting(method, seed, profile.ppo.kl_coef) for seed in SEEDS for method in METHODS]
    compute = [
        Setting(method, seed, profile.ppo.kl_coef, "compute")
        for seed in SEEDS
        for method in METHODS
        if method.startswith("ra_rlhf@")  # the only method whose update costs less than RLHF's
    ]
    frontier = [Setting(m, seed, beta) for seed in FRONTIER_SEEDS for beta in KL_COEFS for m in METHODS]
    return list(dict.fromkeys(main + compute + frontier))


def the_kept(kept: int, batch_size: int) -> int:
    """The episodes in an update that selects the tail."""
    return kept


def everyone(kept: int, batch_size: int) -> int:
    """The episodes in an update that takes all."""
    return batch_size


@dataclass(frozen=True)
class Work:
    """How many episodes an iteration samples and updates on, from the number of the kept and B."""

    updated: Callable[[int, int], int] = the_kept
    sampled: Callable[[int, int], int] = everyone

    def units(self, schedule: SoftRiskSchedule, epochs: int) -> float:
        """The compute of a run, in forward passes of one episode.

        Sampling, the policy and the reference cost one each. An episode costs three per epoch of the update, two of
        them for the backward pass.
        """
        size = schedule.batch_size
        return sum(
            3 * self.sampled(kept, size) + 3 * epochs * self.updated(kept, size) for kept in schedule.kept_counts()
        )


def rlhf_units(profile: Profile) -> float:
    """The compute of RLHF with the profile's iterations."""
    ppo = profile.ppo
    return Work().units(SoftRiskSchedule(ppo.batch_size, 1.0, ppo.iterations, 0, 1.0), ppo.epochs)


def iterations_for(method: str, profile: Profile, work: Work | None = None) -> int:
    """The largest number of iterations whose compute does not exceed that of RLHF with the profile's iterations."""
    risk, ppo, work = risk_of_method(profile.risk, method), profile.ppo, work or Work()

    def units(iterations: int) -> float:
        schedule = SoftRiskSchedule(ppo.batch_size, risk.alpha, iterations, risk.warm_start, risk.rho)
        return work.units(schedule, ppo.epochs)

    first = math.ceil((risk.warm_start + 1) / risk.rho)  # with which the schedule is one
    return next(iterations for iterations in count(first) if units(iterations + 1) > rlhf_units(profile))


def sft_folder(output: Path, profile: Profile) -> Path:
    """The folder of the SFT policy from which every run starts; trains it if it is missing."""
    folder = output / "sft"
    if not (folder / "config.json").exists():
        world = pocket_world(profile.task.source)
        policy = load_policy(world.policy)
        task = load_task(profile.task, policy.processing_class)
        texts = task.positive_texts("train", profile.task.positive_label)
        train_sft(policy, texts, profile.sft, seed=0)
        policy.save(folder)
    return folder


class Trained(NamedTuple):
    """What a training leaves, with what it is measured by."""

    policy: ActorCritic
    reference: Reference
    reward: ClassifierReward
    task: Task
    log: pd.DataFrame
    seconds: float


@cache
def loaded_task(settings: TaskSettings, policy: Path) -> Task:
    """The task with the tokens of the policy in a folder; cutting its prompts takes as long as four iterations."""
    return load_task(settings, load_policy(policy).processing_class)


def load(profile: Profile, start: Path) -> tuple[ActorCritic, ClassifierReward, Task]:
    """The policy in the folder `start`, with which a training begins, the reward and the task."""
    world = pocket_world(profile.task.source)
    reward = load_reward(world.reward, profile.reward.label, profile.reward.accepted_label_names, batch_size=128)
    return load_policy(start), reward, loaded_task(profile.task, start)


def prepare(
    profile: Profile,
    method: str,
    start: Path,
    seed: int,
    log_file: Path | None = None,
    trainer: Callable[..., CVaRPPOTrainer] = CVaRPPOTrainer,
) -> tuple[CVaRPPOTrainer, Task, ClassifierReward]:
    """A trainer of the method, which begins with the policy in the folder `start`, its task and its reward model."""
    policy, reward, task = load(profile, start)
    prompts = Dataset.from_pandas(task.train, preserve_index=False)
    risk = risk_of_method(profile.risk, method)
    options = {"train_dataset": prompts, "reference": Reference(policy), "seed": seed, "log_file": log_file}
    return trainer(policy, reward, profile.ppo, risk, profile.sampling, **options), task, reward


def test_episodes(
    policy: Policy, reference: Reference, reward: ClassifierReward, task: Task, profile: Profile
) -> pd.DataFrame:
    """The episodes of a policy on the test prompts."""
    test = task.test.assign(prompt_score=reward.score(task.test["prompt"].tolist()))
    return evaluate(policy, reference, reward, test, profile.sampling, profile.evaluation, TEST_SEED)


def train(setting: Setting, profile: Profile, output: Path) -> Trained:
    """Trains one setting with PPO; writes <name>.jsonl."""
    changes = {"kl_coef": setting.kl_coef}
    if setting.budget == "compute":
        changes["iterations"] = iterations_for(setting.method, profile)
    profile = profile.model_copy(update={"ppo": profile.ppo.model_copy(update=changes)})
    start = sft_folder(output, profile)
    trainer, task, reward = prepare(profile, setting.method, start, setting.seed, output / f"{setting.name}.jsonl")
    started = time.perf_counter()
    log = trainer.train()
    found = trainer.policy, trainer.reference, reward, task, log
    return Trained(*found, time.perf_counter() - started)


def measure(setting: Any, trained: Trained, profile: Profile, output: Path) -> dict:
    """Measures a training on the test prompts; writes <name>.parquet and <name>.json.

    setting: a dataclass with a name and a method.
    """
    policy, reference, reward, task, log, seconds = trained
    episodes = test_episodes(policy, reference, reward, task, profile)
    episodes.to_parquet(output / f"{setting.name}.parquet")
    result = asdict(setting) | {
        "method": setting.method,
        "iterations": len(log),
        "seconds": seconds,
        "gradient_tokens": int(log["gradient_tokens"].sum()),
    }
    (output / f"{setting.name}.json").write_text(json.dumps(result))
    return result


def run(output: Path, shard: int = 0, shards: int = 1) -> None:
    """Runs all settings that have no result yet; `shard` and `shards` split them over processes."""
    torch.set_num_threads(1)
    profile = load_profile("pocket-imdb")
    output.mkdir(parents=True, exist_ok=True)
    sft_folder(output, profile)
    for setting in all_settings(profile)[shard::shards]:
        if not (output / f"{setting.name}.json").exists():
            result = measure(setting, train(setting, profile, output), profile, output)
            print(f"{setting.name}: {result['iterations']} iterations, {result['seconds']:.0f} s", flush=True)


def collect(output: Path, profile: Profile) -> pd.DataFrame:
    """One row per finished run: its setting, and the metrics of its test episodes."""
    rows = []
    for path in sorted(output.glob("*_beta*.json")):
        episodes = pd.read_parquet(path.with_suffix(".parquet"))
        rewards = episodes["reward"]
        rare = episodes["group"] != episodes["group"].mode()[0]
        rows.append(
            json.loads(path.read_text())
            | summary(episodes, profile.task.tail_threshold)
            | {"CVaR 1 %": cvar(rewards, 0.01), "rare group": rewards[rare].mean()}
        )
    return pd.DataFrame(rows)


MEASURES = ["reward", "tail reward", "CVaR 10 %", "CVaR 1 %", "rare group", "KL", "seconds"]


def seed_table(
    runs: pd.DataFrame,
    measures: Sequence[str] = MEASURES,
    title: Callable[[str], str] = method_name,
    than: str = "rlhf",
) -> pd.DataFrame:
    """Means over seeds, one row per method and budget, and differences from one method at equal iterations.

    The differences are paired by seed, with t-intervals. The rows are named by `row_names`.
    """
    measures, names = list(measures), row_names(runs, title)
    first = runs[(runs["method"] == than) & (runs["budget"] == "iterations")].set_index("seed")[measures]
    rows = {}
    for (budget, method), group in runs.groupby(["budget", "method"], sort=False):
        values = group.set_index("seed")[measures]
        label = names[budget, method]
        rows[label] = {key: f"{values[key].mean():.2f}" for key in measures}
        if method != than:
            differences = {key: seed_interval((values - first)[key].dropna()) for key in measures}
            rows[f"{label}: minus {title(than)}"] = {key: signed(interval) for key, interval in differences.items()}
    return pd.DataFrame(rows).T


def row_names(runs: pd.DataFrame, title: Callable[[str], str]) -> dict[tuple[str, str], str]:
    """What a table calls each budget and method; it names the budget where there is more than one."""
    several = runs["budget"].nunique() > 1
    pairs = runs[["budget", "method"]].drop_duplicates().itertuples(index=False, name=None)
    return {(budget, method): title(method) + (f", equal {budget}" if several else "") for budget, method in pairs}


def equal_kl_table(runs: pd.DataFrame, levels: list[float]) -> pd.DataFrame:
    """Differences from RLHF at the same KL, read off each seed's curve over beta by linear interpolation."""
    rows = {}
    for method in METHODS[1:]:
        for level in levels:
            at_level = [
                [curve(runs, m, seed, key, level) for m in (method, "rlhf") for key in ("reward", "CVaR 10 %")]
                for seed in FRONTIER_SEEDS
            ]
            mean, tail, rlhf_mean, rlhf_tail = np.array(at_level).T
            if np.isnan(at_level).any():
                continue  # a curve says nothing about a KL that it does not reach
            rows[f"{method_name(method)}, KL {level:g}"] = {
                "reward: minus RLHF": signed(seed_interval(mean - rlhf_mean)),
                "CVaR 10 %: minus RLHF": signed(seed_interval(tail - rlhf_tail)),
            }
    return pd.DataFrame(rows).T


def own_kl_table(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    title: Callable[[str], str],
    base: Callable[[str], str] = lambda method: "rlhf",
) -> pd.DataFrame:
    """Each method at its own KL minus the curve of its base over beta at that KL, read off seed by seed.

    A seed in which the curve does not reach that KL is left out; fewer than three seeds give no interval.
    """
    rows = {}
    for method, group in runs.groupby("method", sort=False):
        if method == "rlhf":
            continue
        differences = pd.DataFrame(
            {
                key: [r[key] - curve(curves, base(method), r["seed"], key, r["KL"]) for r in group.to_dict("records")]
                for key in ("reward", "CVaR 10 %")
            }
        ).dropna()
        enough = len(differences) >= 3
        rows[f"{title(method)}: minus {title(base(method))}"] = {
            "KL": f"{group['KL'].mean():.2f}",
            "seeds": str(len(differences)),
        } | {key: signed(seed_interval(differences[key])) if enough else "–" for key in differences}
    return pd.DataFrame(rows).T


def fitted_kl_table(runs: pd.DataFrame) -> pd.DataFrame:
    """What each method gains over RLHF at equal KL, fitted to all seeds and betas at once (`measuring.equal_kl`)."""
    runs, rows = runs.rename(columns={"KL": "kl"}), {}
    for method in runs["method"].unique():
        if method != "rlhf":
            kl = runs.loc[runs["method"] == method, "kl"]
            gains = {key: gain_at_equal_kl(runs, key, method, "rlhf") for key in ("reward", "tail reward", "CVaR 10 %")}
            rows[f"{method_name(method)}: minus RLHF"] = {
                "runs": str(len(kl)),
                "KL": f"{kl.min():.1f} to {kl.max():.1f}",
            } | {key: signed(gain) for key, gain in gains.items()}
    return pd.DataFrame(rows).T


def curve(runs: pd.DataFrame, method: str, seed: int, key: str, kl: float) -> float:
    """The value of `key` at the given KL on the curve of one method and seed over beta; NaN outside its range of KL."""
    points = runs[(runs["method"] == method) & (runs["seed"] == seed)].sort_values("KL")
    return float(np.interp(kl, points["KL"], points[key], left=np.nan, right=np.nan))


def signed(interval: Interval) -> str:
    """A difference with its interval, as a cell of a table."""
    if np.isnan(interval.low):
        return f"{interval.value:+.2f}"  # of one seed
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def report(output: Path) -> None:
    """Prints the tables as Markdown; writes runs.csv and frontier.png beside the runs."""
    profile = load_profile("pocket-imdb")
    runs = collect(output, profile)
    runs.to_csv(output / "runs.csv", index=False)
    print(markdown_table(seed_table(runs[runs["kl_coef"] == profile.ppo.kl_coef])), end="\n\n")
    swept = runs[(runs["budget"] == "iterations") & runs["seed"].isin(FRONTIER_SEEDS)]
    print(markdown_table(equal_kl_table(swept, levels=[2, 2.5, 3, 3.5, 4])), end="\n\n")
    print(markdown_table(fitted_kl_table(swept)), end="\n\n")
    points = swept.groupby(["method", "kl_coef"])[["KL", "reward", "CVaR 10 %"]].mean().round(2)
    points = points.reindex(METHODS, level="method")
    points.index = [f"{method_name(method)}, beta {kl_coef:g}" for method, kl_coef in points.index]
    print(markdown_table(points))
    swept = swept.rename(columns={"KL": "kl", "CVaR 10 %": "cvar_10"})
    frontier(swept).write_image(output / "frontier.png", width=1000, height=560, scale=2)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    {"run": run, "report": report}[command](Path(folder), *map(int, rest))
