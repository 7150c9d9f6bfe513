"""What a run or a sweep has found, as notebooks 05 and 06 show it; no file of a training or evaluation is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from rarlhf_nb.conversations import Prompt, prompts_of
from rarlhf_nb.lab.evaluation.clusters import cluster_prompts, embed_prompts
from rarlhf_nb.lab.evaluation.ledger import build_ledger
from rarlhf_nb.lab.evaluation.report import Report
from rarlhf_nb.lab.evaluation.scores import alpha_scores, related_scores
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables
from rarlhf_nb.lab.methods import CONDITIONED
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.evaluation import write_report
from rarlhf_nb.lab.stages.training import make_trainer
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.rewards import completions_for_rewards

LIVE_ITERATIONS = 40


@dataclass(frozen=True)
class Results(Workspace):
    """A run, by default, or a sweep: its tables, scores and report, and what can be tried with its policies."""

    @property
    def output(self) -> Run:
        """The folder of the report: the run's, or that of the sweep."""
        return self.run

    def tables(self) -> Tables:
        """What there is so far: episodes, held-out texts and training logs by method."""
        return load_tables(self.run)

    def other_seeds(self) -> dict[int, dict[str, pd.DataFrame]]:
        """For a sweep, the episodes tables of its other seeds: seed -> method -> table; a run has none."""
        return {}

    def scores(self, free: Sequence[str] = ()) -> pd.DataFrame:
        """The scores of this run and of those beside it that differ only in the seed and the `free` settings.

        For a sweep, those of all its runs. See `evaluation.scores` for the columns.
        """
        return related_scores(self.run, free)

    def alpha_scores(self) -> pd.DataFrame:
        """What the trained alpha changes: see `evaluation.scores.alpha_scores`."""
        return alpha_scores(self.tables(), self.profile.risk.alpha, self.seed)

    def report(self) -> Report:
        """Compare all methods that were evaluated; writes report.json, report.md and summary.md."""
        return write_report(self.output, self.tables(), self.profile)

    def ledger(self, report: Report) -> pd.DataFrame:
        """Every published number of this task beside ours; writes ledger.json."""
        ledger = build_ledger(report, self.profile)
        self.output.write("ledger.json", ledger.to_json(orient="records", indent=1) + "\n")
        return ledger

    def tail_clusters(self, method: str = "sft", share: float = 0.1) -> pd.DataFrame:
        """The hardest `share` of the test prompts with cluster, x and y, as the policy of `method` sees them."""
        test = self.data("test")
        hardest = test.nsmallest(max(1, round(share * len(test))), "prompt_score")
        return cluster_prompts(hardest, embed_prompts(self.saved(method), prompts_of(hardest)))

    def sampler(self) -> Callable[[list[Prompt], float], list[tuple[str, float]]] | None:
        """For the explorer: from prompts and alpha to fresh completions of the conditioned policy, and their rewards.

        The policy is loaded at the first call. Every call draws the same random numbers, so that only alpha changes a
        completion. None if the run has no such policy.
        """
        if not self.run.path("policies", CONDITIONED).exists():
            return None
        loaded = cache(lambda: (self.saved(CONDITIONED), self.reward()))

        def sample(prompts: list[Prompt], alpha: float) -> list[tuple[str, float]]:
            policy, reward = loaded()
            episodes = policy.sample(prompts, self.profile.sampling, self.seed, alpha=alpha)
            return list(zip(episodes.completions, reward(prompts, completions_for_rewards(episodes)), strict=True))

        return sample

    def live_trainer(self, alpha: float, estimator: str, warm_start: int, rho: float, seed: int) -> TrainingLoop:
        """For live training: a trainer of 40 iterations, which writes nothing into the run folder.

        estimator: one of `risk.estimator`, or "conditioned" for one policy that reads its alpha, from `alpha` to 1.
        """
        profile, changes = self.profile, {"warm_start": warm_start, "rho": rho}
        args = profile.ppo.model_copy(update={"iterations": LIVE_ITERATIONS})
        own = {"args": args, "seed": seed, "log_file": None}
        if estimator == CONDITIONED:
            own["risk"] = profile.risk.model_copy(update=changes)
            limits = {"alpha_min": alpha, "iterations": LIVE_ITERATIONS}
            own["conditioned"] = profile.conditioned.model_copy(update=limits)
            return make_trainer(self, CONDITIONED, **own)
        own["risk"] = profile.risk.model_copy(update={"alpha": alpha, "estimator": estimator} | changes)
        return make_trainer(self, "ra_rlhf", **own)

    def live_warm_start(self) -> int:
        """n for live training: the same share of its iterations as of the profile's."""
        return self.profile.risk.warm_start * LIVE_ITERATIONS // self.profile.ppo.iterations
