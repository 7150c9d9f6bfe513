"""Ways to train, compared over seeds on the pocket worlds: what the studies of `studies` share.

Every run of a study starts from one SFT policy per profile, and the runs of a seed share the order of the prompts and
the sampling seeds. A run leaves one row for each policy that it measures, so that a study that is cut short goes on.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from rarlhf_nb.baselines.critic_free import train_critic_free
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.data.tasks import Task, load_task
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.metrics import perplexity, seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.evaluation.scores import gain_at_equal_kl
from rarlhf_nb.lab.profiles import Profile, load_profile, risk_of_method
from rarlhf_nb.policy import ActorCritic, Reference, load_policy
from rarlhf_nb.rewards import ClassifierReward, load_reward
from rarlhf_nb.risk import SoftRiskSchedule, cvar
from rarlhf_nb.settings import RiskSettings, TaskSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

MEASURES = ["reward", "tail reward", "CVaR 10 %", "KL", "perplexity"]
GAINS = ["reward", "tail reward", "CVaR 10 %"]
TEST_SEED = 0
Episodes = Callable[[int, int], int]  # how many, from the number of the kept and B


class Start(NamedTuple):
    """What a training begins with. policy: of SFT, or the base model. reference: always the SFT policy."""

    profile: Profile
    risk: RiskSettings
    policy: ActorCritic
    reference: Reference
    reward: ClassifierReward
    task: Task
    seed: int

    @property
    def prompts(self) -> Dataset:
        return Dataset.from_pandas(self.task.train, preserve_index=False)


class Trained(NamedTuple):
    """What it leaves. policies: by what each acts for, "" for a policy that acts for nothing in particular."""

    policies: dict[str, ActorCritic]
    log: pd.DataFrame


def by_ppo(start: Start, trainer: Callable[..., CVaRPPOTrainer] = CVaRPPOTrainer) -> Trained:
    """Train with PPO."""
    settings = (start.profile.ppo, start.risk, start.profile.sampling)
    made = trainer(start.policy, start.reward, *settings, start.prompts, start.reference, start.seed)
    log = made.train()
    return Trained({"": made.policy}, log)


def without_critic(start: Start, algorithm: str) -> Trained:
    """Train with TRL's GRPO or RLOO, as the section `critic_free` of the profile says."""
    profile, common = start.profile, (start.policy, start.reward, start.prompts)
    settings = (profile.critic_free, profile.ppo, start.risk, profile.sampling)
    return Trained({"": start.policy}, train_critic_free(*common, *settings, algorithm, start.seed))


def the_kept(kept: int, batch_size: int) -> int:
    """The episodes in an update that selects the tail."""
    return kept


def everyone(kept: int, batch_size: int) -> int:
    """All episodes of a batch."""
    return batch_size


@dataclass(frozen=True)
class Way:
    """One way to train.

    method: gives alpha and the estimator. overrides: of the profile. updated, sampled: the episodes of an iteration.
    budgets: "iterations", as many as the profile says; "compute", as many as RLHF's compute pays for.
    from_base: whether it starts from the base model. than: the key of the way with which it is compared.
    """

    method: str
    overrides: dict[str, Any] = field(default_factory=dict)
    train: Callable[[Start], Trained] = by_ppo
    updated: Episodes = everyone
    sampled: Episodes = everyone
    budgets: tuple[str, ...] = ("iterations",)
    from_base: bool = False
    than: str = "RLHF"

    def compute(self, profile: Profile) -> float:
        """The compute of a run, in forward passes of one episode.

        Sampling, the policy and the reference cost one each. An episode costs three per epoch of the update, two of
        them for the backward pass.
        """
        ppo, risk = profile.ppo, risk_of_method(profile.risk, self.method)
        kept = SoftRiskSchedule(ppo.batch_size, risk.alpha, ppo.iterations, risk.warm_start, risk.rho).kept_counts()
        sampled = sum(self.sampled(number, ppo.batch_size) for number in kept)
        return 3 * sampled + 3 * ppo.epochs * sum(self.updated(number, ppo.batch_size) for number in kept)

    def iterations_for(self, compute: float, profile: Profile) -> int:
        """The largest number of iterations that costs at most `compute`."""

        def cost(iterations: int) -> float:
            return self.compute(profile.model_copy(update={"ppo": with_iterations(profile, iterations).ppo}))

        first = math.ceil((profile.risk.warm_start + 1) / profile.risk.rho)  # with which the schedule is one
        return next(iterations for iterations in count(first) if cost(iterations + 1) > compute)


def with_iterations(profile: Profile, iterations: int) -> Profile:
    """The profile with another number of iterations of PPO."""
    return profile.model_copy(update={"ppo": profile.ppo.model_copy(update={"iterations": iterations})})


RLHF = {"RLHF": Way("rlhf")}


@dataclass(frozen=True)
class Study:
    """Ways by their title, each trained with every profile and seed."""

    ways: dict[str, Way]
    profiles: tuple[str, ...] = ("pocket-imdb",)
    seeds: tuple[int, ...] = (11, 12, 13, 14, 15)
    overrides: dict[str, Any] = field(default_factory=dict)

    def run(self, output: Path, *profiles: str) -> None:
        """Train and measure what has no rows yet, seed by seed, so that one that is cut short has whole comparisons."""
        torch.set_num_threads(1)
        runs = [
            (s, p, t, b) for s in self.seeds for p in self.profiles for t, way in self.ways.items() for b in way.budgets
        ]
        for seed, name, title, budget in runs:
            path = output / name / f"{title}, {budget}, seed {seed}.json".replace("/", "∕")
            if (not profiles or name in profiles) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(self.rows(title, name, budget, seed, path.parent), ensure_ascii=False))
                print(name, path.stem, flush=True)

    def rows(self, title: str, name: str, budget: str, seed: int, folder: Path) -> list[dict[str, Any]]:
        """The rows of one run; its compute is relative to that of RLHF with the profile's iterations."""
        way, plain = self.ways[title], load_profile(name, self.overrides)
        profile, of_rlhf = load_profile(name, self.overrides | way.overrides), Way("rlhf").compute(plain)
        if budget == "compute":
            profile = with_iterations(profile, way.iterations_for(of_rlhf, profile))
        begun = begin(profile, way, seed, sft_folder(folder, plain))
        started = time.perf_counter()
        trained = way.train(begun)
        seconds = round(time.perf_counter() - started, 1)
        common = {"profile": name, "way": title, "budget": budget, "seed": seed, "iterations": len(trained.log)}
        common |= {"compute": round(way.compute(profile) / of_rlhf, 3), "seconds": seconds}
        return [
            common | {"acts": acts} | measured(policy, begun, trained.log) for acts, policy in trained.policies.items()
        ]

    def collect(self, output: Path) -> pd.DataFrame:
        """The rows of all finished runs, in the order of the ways; writes them to runs.csv."""
        found = [row for path in sorted(output.glob("*/*, seed *.json")) for row in json.loads(path.read_text())]
        place = {title: number for number, title in enumerate(self.ways)}
        runs = pd.DataFrame(found).sort_values(
            ["profile", "way", "budget", "acts", "seed"], key=lambda c: c.map(place) if c.name == "way" else c
        )
        runs.to_csv(output / "runs.csv", index=False)
        return runs

    def report(self, output: Path) -> None:
        """Print a table over seeds, and one at equal KL, for each profile."""
        runs = self.collect(output)
        for name, own in runs.groupby("profile", sort=False):
            print(f"## {name}\n\n{markdown_table(seed_table(*self.compared(own)))}\n")
            print(f"At equal KL:\n\n{markdown_table(equal_kl_table(*self.compared(own, every_beta=True)))}\n")

    def compared(self, runs: pd.DataFrame, every_beta: bool = False) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
        """The rows of each way and budget by label, and for each label that with which it is compared.

        every_beta: those of a way at all its β are one, as a comparison at equal KL takes them.
        """
        found: dict[str, pd.DataFrame] = {}
        than: dict[str, str] = {}
        title = runs["way"].str.replace(", β .*", "", regex=True) if every_beta else runs["way"]
        for (way, budget, acts), own in runs.groupby([title, "budget", "acts"], sort=False):
            label = ", ".join(filter(None, [way, acts, "equal compute" if budget == "compute" else ""]))
            found[label], than[label] = own, self.ways[own["way"].iloc[0]].than
        return found, than


def seed_table(runs: dict[str, pd.DataFrame], than: dict[str, str], measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Means over seeds, and below each the differences from the runs `than` names, paired by seed, with t-intervals.

    runs: by label, one row per seed; columns seed and the measures, and the others that a table of runs has.
    """
    rows, measures = {}, list(measures)
    for label, own in runs.items():
        rows[label] = {key: f"{own[key].mean():.2f}" for key in measures} | {"seeds": str(len(own))}
        rows[label] |= {key: f"{own[key].iloc[0]:g}" for key in ("iterations", "compute") if key in own}
        if than[label] != label and than[label] in runs:
            differences = own.set_index("seed")[measures] - runs[than[label]].set_index("seed")[measures]
            intervals = {key: seed_interval(differences[key].dropna()) for key in measures}
            rows[f"{label}: minus {than[label]}"] = {key: interval_cell(found) for key, found in intervals.items()}
    return pd.DataFrame(rows).T.fillna("")


def equal_kl_table(runs: dict[str, pd.DataFrame], than: dict[str, str]) -> pd.DataFrame:
    """What each gains at equal KL over the runs that `than` names, with the range of its KL (see `equal_kl`)."""
    rows = {}
    for label, own in runs.items():
        if than[label] != label and than[label] in runs:
            both = pd.concat([own.assign(method="own"), runs[than[label]].assign(method="other")])
            gains = {key: gain_at_equal_kl(both.rename(columns={"KL": "kl"}), key, "own", "other") for key in GAINS}
            rows[f"{label}: minus {than[label]}"] = {
                "runs": str(len(own)),
                "KL": f"{own['KL'].min():.1f} to {own['KL'].max():.1f}",
            } | {key: interval_cell(gain) for key, gain in gains.items()}
    return pd.DataFrame(rows).T


def sft_folder(folder: Path, profile: Profile) -> Path:
    """The folder of the SFT policy from which every run starts; trains it if it is missing."""
    place = folder / "sft"
    if not (place / "config.json").exists():
        policy = load_policy(pocket_world(profile.task.source).policy)
        texts = load_task(profile.task, policy.processing_class).positive_texts("train", profile.task.positive_label)
        train_sft(policy, texts, profile.sft, seed=0)
        policy.save(place)
    return place


@cache
def loaded_task(settings: TaskSettings, policy: Path) -> Task:
    """The task with the tokens of the policy in a folder; cutting its prompts takes as long as four iterations."""
    return load_task(settings, load_policy(policy).processing_class)


def begin(profile: Profile, way: Way, seed: int, sft: Path) -> Start:
    """What a training of `way` begins with."""
    world = pocket_world(profile.task.source)
    reward = load_reward(world.reward, profile.reward.label, profile.reward.accepted_label_names, batch_size=128)
    policy, risk = load_policy(world.policy if way.from_base else sft), risk_of_method(profile.risk, way.method)
    return Start(profile, risk, policy, Reference(load_policy(sft)), reward, loaded_task(profile.task, sft), seed)


def measured(policy: ActorCritic, start: Start, log: pd.DataFrame) -> dict[str, float]:
    """The measures of a policy on the test prompts and the held-out texts, and beta at the end of the training."""
    profile, task, settings = start.profile, start.task, start.profile.evaluation
    test = task.test.assign(prompt_score=start.reward.score(task.test["prompt"].tolist()))
    episodes = evaluate(policy, start.reference, start.reward, test, profile.sampling, settings, TEST_SEED)
    rare = episodes["group"] != episodes["group"].mode()[0]
    texts = task.positive_texts("test", profile.task.positive_label)[: settings.held_out_texts]
    held_out = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
    return summary(episodes, profile.task.tail_threshold) | {
        "CVaR 1 %": cvar(episodes["reward"], 0.01),
        "rare group": float(episodes["reward"][rare].mean()),
        "perplexity": float(perplexity(*held_out[["log_likelihood", "tokens"]].to_numpy().T, np.ones(len(held_out)))),
        "kl_coef at the end": float(log["kl_coef"].iloc[-1]) if "kl_coef" in log else np.nan,
    }
