"""What Rockafellar-Uryasev still gains if its update leaves out a part of the episodes above VaR.

    python -m benchmarks.ru_cost run OUTPUT     (some 40 minutes on an idle core; skips finished runs)
    python -m benchmarks.ru_cost report OUTPUT  (the tables as Markdown; writes runs.csv beside the runs)

Five seeds of the profile `pocket-imdb` at alpha = 0.2, at equal iterations, and with the shares that keep the tail at
equal compute. Nothing was tuned.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.risk_comparison import Work, everyone
from benchmarks.ways import MEASURES, RLHF, Way, all_runs, collect, run_all, table
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.risk import tail_count
from rarlhf_nb.rollout import Rollout, Targets
from rarlhf_nb.seeding import hash_seed, uniforms
from rarlhf_nb.trainer import CVaRPPOTrainer

PROFILES, SEEDS = ["pocket-imdb"], [11, 12, 13, 14, 15]
METHOD = "ra_rlhf_ru@0.2"
BOTH = ("iterations", "compute")


def with_share(share: float, kept: int, batch_size: int) -> int:
    """The episodes in an update that draws a share of those above VaR."""
    above = batch_size - kept
    return kept + (tail_count(share, above) if share and above else 0)


def above(rollout: Rollout, kept: int) -> torch.Tensor:
    """The episodes above VaR."""
    return rollout.env_rewards.sort(stable=True).indices[kept:]


class TailAlone(CVaRPPOTrainer):
    """Every episode above VaR is left out, after its advantage was whitened with the others: the share 0."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        targets = super().select(rollout, targets, kept)
        return replace(targets, weights=targets.weights.index_fill(0, above(rollout, kept), 0))


class DrawnUniformly(CVaRPPOTrainer):
    """Every episode above VaR is drawn with the same probability, whatever its advantages."""

    def drawn_weights(self, rollout: Rollout, targets: Targets, kept: int) -> torch.Tensor:
        """The k lowest of independent uniform numbers."""
        weights, others = torch.ones_like(rollout.env_rewards), above(rollout, kept)
        if len(others) > 0:
            size = len(weights)
            (numbers,) = uniforms(hash_seed(self.seed, self.iteration), first=size, rows=1, length=size)
            drawn = torch.from_numpy(numbers)[others].argsort()[: tail_count(self.risk.above_share, len(others))]
            weights[others] = 0
            weights[others[drawn]] = len(others) / len(drawn)
        return weights


def share(
    value: float,
    trainer: type[CVaRPPOTrainer] = CVaRPPOTrainer,
    title: str = "",
    budgets: tuple[str, ...] = ("iterations",),
) -> Way:
    """RU with a share of the episodes above VaR in its update."""
    overrides = {"risk.above_share": value} if value else {}
    return Way(title or f"RU, share {value:g}", METHOD, overrides, trainer, Work(partial(with_share, value)), budgets)


WAYS = {
    "rlhf": RLHF,
    "all": Way("RU, every episode", METHOD, work=Work(everyone)),
    "by_advantage": share(0.25),
    "half": share(0.5, DrawnUniformly, "RU, share 0.5 drawn uniformly", BOTH),
    "quarter": share(0.25, DrawnUniformly, "RU, share 0.25 drawn uniformly", BOTH),
    "tenth": share(0.1, DrawnUniformly, "RU, share 0.1 drawn uniformly"),
    "tail": share(0, TailAlone, "RU, the tail alone"),
}
RUNS = all_runs(WAYS, PROFILES, SEEDS)


def run(output: Path) -> None:
    """Runs what has no result yet."""
    run_all(WAYS, RUNS, output)


def report(output: Path) -> None:
    """Prints the differences from RLHF, and those from RU with every episode."""
    runs = collect(WAYS, RUNS, output)
    runs.to_csv(output / "runs.csv", index=False)
    print(markdown_table(table(WAYS, runs)), end="\n\n")
    differences = table(WAYS, runs, than="all")[MEASURES]
    print(markdown_table(differences[differences.index.str.contains(": minus")]))


if __name__ == "__main__":
    command, folder = sys.argv[1:]
    {"run": run, "report": report}[command](Path(folder))
