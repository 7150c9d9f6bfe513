"""What each departure of the authors' code from the paper does, and what the schedule's n, alpha and rho do.

Five seeds on the pocket world; differences from the paper's way are paired by seed.

    python -m benchmarks.variants run OUTPUT [SHARD SHARDS]   (about 40 minutes on one core; skips finished runs)
    python -m benchmarks.variants report OUTPUT               (the two tables of docs/paper_and_code.md)
    python -m benchmarks.variants ties OUTPUT                 (how often the B'-th return is tied; three minutes)

The profile is `pocket-imdb` with the paper's adaptive beta: target 6 nats, and a horizon of 2,000 episodes, which lets
beta move as far in 40 iterations as the paper's 10,000 do in 194.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.risk_comparison import SEEDS, prepare, sft_folder, test_episodes
from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.data.tasks import Task
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.evaluate import held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.metrics import perplexity, seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.policy import Reference, load_policy
from rarlhf_nb.rewards import ClassifierReward
from rarlhf_nb.rollout import Rollout, Targets
from rarlhf_nb.trainer import CVaRPPOTrainer

CONTROLLER = {"ppo.kl_target": 6.0, "ppo.kl_horizon": 2_000}
MEASURES = ["reward", "tail reward", "CVaR 10 %", "KL", "kl_coef at the end", "perplexity"]


class KLOverBatch(CVaRPPOTrainer):
    """The controller sees the KL of the kept episodes, summed and divided by B, as in the authors' code."""

    def adapted_kl_coef(self, rollout: Rollout, targets: Targets) -> float:
        share = len(targets.updated) / len(rollout)
        return super().adapted_kl_coef(replace(rollout, kl=rollout.kl * share), targets)


class RankedByReward(CVaRPPOTrainer):
    """The environment reward ranks the episodes, and not the return."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        found = super().select(rollout, replace(targets, returns=rollout.env_rewards), kept)
        return replace(found, returns=targets.returns)


@dataclass(frozen=True)
class Variant:
    """One way to train; `than` names the variant with which it is compared."""

    title: str
    method: str = "ra_rlhf"
    trainer: type[CVaRPPOTrainer] = CVaRPPOTrainer
    overrides: dict[str, Any] = field(default_factory=dict)
    start: str = "sft"
    than: str | None = "paper"


CODE = {
    "paper": Variant("RA-RLHF as in the paper", than=None),
    "rlhf": Variant("RLHF as in the paper", "rlhf", than=None),
    "kl_batch": Variant("controller: KL of kept episodes / B", trainer=KLOverBatch),
    "rank_reward": Variant("ranked by environment reward", trainer=RankedByReward),
    "late": Variant("schedule counted from 0: n + 1 whole iterations", overrides={"risk.warm_start": 7}),
    "released": Variant("the released script's α 0.2, ρ 0.9", overrides={"risk.alpha": 0.2, "risk.rho": 0.9}),
    "rlhf_base": Variant("RLHF that starts from the base model", "rlhf", start="base", than="rlhf"),
}
SCHEDULES = {
    f"n{n}_alpha{alpha}_rho{rho}": Variant(
        f"n {n}, α {alpha}, ρ {rho}",
        overrides={"risk.warm_start": n, "risk.alpha": alpha, "risk.rho": rho},
        than="rlhf",
    )
    for n, alpha, rho in [(1, 0.4, 0.95), (6, 0.4, 0.95), (6, 0.3, 0.95), (6, 0.2, 0.95), (6, 0.4, 0.5)]
}
VARIANTS = CODE | SCHEDULES


def run_one(variant: Variant, seed: int, output: Path) -> dict[str, float]:
    """Trains a variant with one seed and measures it on the test prompts."""
    trainer, task, reward, profile = prepared(variant, seed, output)
    log, policy = trainer.train(), trainer.policy
    sft_reference = Reference(load_policy(sft_folder(output, profile)))
    episodes = test_episodes(policy, sft_reference, reward, task, profile)
    return summary(episodes, profile.task.tail_threshold) | {
        "kl_coef at the end": float(log["kl_coef"].iloc[-1]),
        "perplexity": held_out_perplexity(policy, task.positive_texts("test", profile.task.positive_label), profile),
    }


def prepared(variant: Variant, seed: int, output: Path) -> tuple[CVaRPPOTrainer, Task, ClassifierReward, Profile]:
    """The trainer of a variant, its task, its reward model, and the profile with the variant's settings."""
    profile = load_profile("pocket-imdb", CONTROLLER | variant.overrides)
    start = sft_folder(output, profile) if variant.start == "sft" else pocket_world(profile.task.source).policy
    return *prepare(profile, variant.method, start, seed, trainer=variant.trainer), profile


def held_out_perplexity(policy: Any, texts: list[str], profile: Profile) -> float:
    settings = profile.evaluation
    table = held_out_log_likelihoods(
        policy, texts[: settings.held_out_texts], settings.held_out_length, settings.batch_size
    )
    weights = pd.Series(1.0, index=table.index).to_numpy()
    return float(perplexity(table["log_likelihood"].to_numpy(), table["tokens"].to_numpy(), weights))


def run(output: Path, shard: int = 0, shards: int = 1) -> None:
    """Runs all variants and seeds that have no result yet."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    sft_folder(output, load_profile("pocket-imdb"))
    for seed, name in [(seed, name) for seed in SEEDS for name in VARIANTS][shard::shards]:
        path = output / f"{name}_seed{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(run_one(VARIANTS[name], seed, output)))
            print(path.stem, flush=True)


def report(output: Path) -> None:
    """Prints both tables as Markdown; a cell holds the comparison / the variant / the difference with its interval."""
    results = {
        name: pd.DataFrame({seed: json.loads((output / f"{name}_seed{seed}.json").read_text()) for seed in SEEDS}).T
        for name in VARIANTS
    }
    for variants in (CODE, SCHEDULES):
        rows = {
            variant.title: {key: _compared(results[variant.than][key], results[name][key]) for key in MEASURES}
            for name, variant in variants.items()
            if variant.than
        }
        print(markdown_table(pd.DataFrame(rows).T[MEASURES]), end="\n\n")


def _compared(first: pd.Series, second: pd.Series) -> str:
    return f"{first.mean():.2f} / {second.mean():.2f} / {interval_cell(seed_interval(second - first))}"


def ties(output: Path) -> None:
    """Prints in how many iterations of RA-RLHF the last kept episode ties with the first dropped one."""
    torch.set_num_threads(1)
    for seed in SEEDS:
        trainer, *_ = prepared(VARIANTS["paper"], seed, output)
        found = 0
        for _ in trainer:
            returns, kept = trainer.targets.returns.sort().values, len(trainer.targets.tail)
            found += int(kept < len(returns) and bool(returns[kept - 1] == returns[kept]))
        print(f"seed {seed}: {found} of {trainer.iteration} iterations")


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    {"run": run, "report": report, "ties": ties}[command](Path(folder), *map(int, rest))
