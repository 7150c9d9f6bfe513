"""Why tail selection lags, taken apart: each of its departures from a plain gradient repaired by itself.

    python -m benchmarks.repairs run OUTPUT [PROFILE …]   (some six hours on an idle core; skips finished runs)
    python -m benchmarks.repairs report OUTPUT            (the tables as Markdown; writes runs.csv beside the runs)

Five seeds of the profiles `pocket-imdb` and `pocket-jigsaw`, at alpha = 0.2 in both, beside RLHF, the paper's tail
selection and Rockafellar-Uryasev. Nothing was tuned. PAPER is the regime of the paper's IMDB-Gen.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks.risk_comparison import Work, everyone, own_kl_table
from benchmarks.ways import RLHF, Way, all_runs, collect, run_all, table
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.ppo import dense_rewards, generalized_advantages, masked_mean, whiten
from rarlhf_nb.risk import kept_episodes
from rarlhf_nb.rollout import Batch, Rollout, Targets
from rarlhf_nb.trainer import CVaRPPOTrainer

PROFILES, SEEDS = ["pocket-imdb", "pocket-jigsaw"], [11, 12, 13, 14, 15]
ALPHA, B = 0.2, 128  # B of both profiles
TAIL, RU = f"ra_rlhf@{ALPHA}", f"ra_rlhf_ru@{ALPHA}"
BOTH = ("compute", "iterations")
REGIME = {
    "ppo.iterations": 194,
    "ppo.kl_target": 6.0,
    "ppo.kl_horizon": 10_000,
    "risk.warm_start": 30,
    "risk.rho": 0.95,
}


class UpdatedOnAll(CVaRPPOTrainer):
    """All episodes go through the update, and `update_batch` decides what the dropped ones do there."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        return replace(
            super().select(rollout, targets, kept),
            updated=torch.arange(len(rollout.env_rewards)),
            weights=torch.ones_like(rollout.env_rewards),
        )


class CriticOnAll(UpdatedOnAll):
    """Advantages whitened over the whole batch, the critic trained on it, and the policy on the kept episodes."""

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        advantages = torch.zeros_like(batch.advantages)
        # the policy's loss stays the mean over the kept tokens, since all completions are of one length here
        advantages[targets.tail] = batch.advantages[targets.tail] * len(advantages) / len(targets.tail)
        return replace(batch, advantages=advantages)


class DroppedHeld(UpdatedOnAll):
    """A dropped episode is pulled back by its KL to go, on the scale of the kept advantages; the rest is the paper's.

    The critic is held at its own values there.
    """

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        tail, mask = targets.tail, rollout.completion_mask
        advantages, critic = self.kl_advantages(rollout, targets), batch.rollout.values.clone()
        advantages[tail] = whiten(targets.advantages[tail], mask[tail])
        critic[tail] = batch.value_targets[tail]
        # as in the paper, the losses of the kept are divided by their own number
        weights = batch.weights * len(mask) / len(tail)
        return replace(batch, advantages=advantages, value_targets=critic, weights=weights)

    def kl_advantages(self, rollout: Rollout, targets: Targets) -> torch.Tensor:
        """- beta times the log-ratio to go, less its mean over the dropped episodes: (B, T)."""
        tail, mask = targets.tail, rollout.completion_mask
        dropped = torch.ones(len(mask), dtype=torch.bool).index_fill(0, tail, False)
        if not dropped.any():
            return torch.zeros_like(targets.advantages)
        nothing = torch.zeros_like(rollout.env_rewards)
        rewards = dense_rewards(nothing, rollout.log_probs, rollout.ref_log_probs, mask, self.kl_coef)
        to_go, _ = generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
        mean = masked_mean(to_go[dropped], mask[dropped])
        return (to_go - mean) / targets.advantages[tail][mask[tail]].std()


class CVaRGradient(CVaRPPOTrainer):
    """Eq. 7: the advantage of each token of a kept episode is its return less VaR, the highest kept return."""

    def update_batch(self, rollout: Rollout, targets: Targets) -> Batch:
        batch = super().update_batch(rollout, targets)
        returns = targets.returns[targets.tail]
        return replace(batch, advantages=(returns - returns.max()).unsqueeze(1).expand_as(batch.advantages))


class RankedByPrompt(CVaRPPOTrainer):
    """Episodes are ranked by the critic's value at the last token of the prompt: hard prompts, not bad luck."""

    def select(self, rollout: Rollout, targets: Targets, kept: int) -> Targets:
        tail = kept_episodes(rollout.values[:, 0], kept)
        return replace(super().select(rollout, targets, kept), tail=tail, updated=tail)


class LargerBatch(CVaRPPOTrainer):
    """The work that an update saves buys episodes: B² / kept(m) are sampled, and the B lowest of them are updated."""

    def run_iteration(self) -> dict[str, float]:
        whole = replace(self.schedule, batch_size=B)
        size = sampled_for(whole.kept(self.iteration + 1), B)
        self.schedule = replace(whole, batch_size=size)
        self.args = self.args.model_copy(update={"batch_size": size})
        return super().run_iteration()


def sampled_for(kept: int, batch_size: int) -> int:
    """How many episodes are sampled, so that the same share of them as `kept` of B is B."""
    return batch_size**2 // kept


WAYS = {
    "rlhf": RLHF,
    "paper": Way("tail selection, the paper's", TAIL, budgets=BOTH),
    "ru": Way("Rockafellar–Uryasev", RU, work=Work(everyone)),
    "critic_all": Way("(a) whitened on all, critic on all", TAIL, trainer=CriticOnAll, work=Work(everyone)),
    "whitened": Way("(b) whitened on all", TAIL, {"risk.whitening": "batch"}, budgets=BOTH),
    "held": Way("(c) dropped episodes held by their KL", TAIL, trainer=DroppedHeld, work=Work(everyone)),
    "gradient": Way(
        "(d) the CVaR gradient, eq. 7", TAIL, {"ppo.vf_coef": 0.0}, CVaRGradient, budgets=BOTH, begins_like_rlhf=False
    ),
    "prompt": Way("(e) ranked by the prompt's value", TAIL, trainer=RankedByPrompt, budgets=BOTH),
    "larger": Way(
        "(f) B/α sampled, B updated",
        TAIL,
        trainer=LargerBatch,
        work=Work(everyone, sampled_for),
        budgets=("compute",),
    ),
}
PAPER = {
    "rlhf": Way("RLHF", "rlhf", REGIME, begins_like_rlhf=False),
    "paper": Way("tail selection, the paper's", TAIL, REGIME, begins_like_rlhf=False),
    "ru": Way("Rockafellar–Uryasev", RU, REGIME, work=Work(everyone), begins_like_rlhf=False),
}
CURVE = {
    f"rlhf_beta{beta}": Way(f"RLHF, β {beta:g}", "rlhf", {"ppo.kl_coef": beta}, begins_like_rlhf=False)
    for beta in (0.4, 0.1, 0.05)
}
PARTS = {"": (WAYS, ""), ", RLHF over β": (CURVE, "beta"), ", the paper's regime": (PAPER, "paper")}


def run(output: Path, *profiles: str) -> None:
    """Runs what has no result yet, the paper's regime last."""
    for ways, folder in PARTS.values():
        run_all(ways, all_runs(ways, list(profiles) or PROFILES, SEEDS), output / folder)


def title(key: str) -> str:
    """A way by its key, which a budget of equal compute may follow."""
    way, *compute = key.split()
    return WAYS[way].title + (", equal compute" if compute else "")


def report(output: Path) -> None:
    """Prints a table for each profile and regime, of the runs that are finished, and names how many are missing."""
    found = {}
    for name, (ways, folder) in PARTS.items():
        runs = all_runs(ways, PROFILES, SEEDS)
        found[folder] = collect(ways, runs, output / folder)
        print(f"{len(runs) - len(found[folder])} of {len(runs)} runs{name} are missing.\n")
        for profile, own in found[folder].groupby("profile", sort=False):
            first = next(iter(ways))
            print(f"## {profile}{name}\n\n{markdown_table(table(ways, own, than=first))}\n")
    rlhf = pd.concat([found[""][found[""]["method"] == "rlhf"], found["beta"].assign(method="rlhf")]).infer_objects()
    for profile, own in found[""].groupby("profile", sort=False):
        keys = own["method"].where(own["budget"] == "iterations", own["method"] + " compute")
        cells = own_kl_table(own.assign(method=keys), rlhf[rlhf["profile"] == profile], title)
        print(f"## {profile}, at equal KL\n\n{markdown_table(cells)}\n")
    rows = [part.assign(regime=folder or "profile") for folder, part in found.items()]
    pd.concat(rows).to_csv(output / "runs.csv", index=False)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    {"run": run, "report": report}[command](Path(folder), *rest)
