"""Seven methods on the pocket worlds over five seeds: the tables of docs/results/methods.md.

    python -m benchmarks.seven_methods run [PROFILE …]     (some six minutes per profile and seed on one core)
    python -m benchmarks.seven_methods report [PROFILE …]
    python -m benchmarks.seven_methods nucleus [PROFILE …]  (DExperts with and without the base model's nucleus)

The runs are the folders papermill_runs/seeds-<profile>-<seed>, made with the calls of the notebooks; finished runs
are skipped.
"""

import sys

import pandas as pd
import torch

from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.evaluate import evaluate
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.evaluation.sweeps import related_scores, seed_table
from rarlhf_nb.lab.experiment import Experiment

SEEDS = [1, 2, 3, 4, 5]
PROFILES = ["pocket-imdb", "pocket-jigsaw"]
METRICS = {
    "reward": "reward",
    "tail_reward": "tail reward",
    "cvar_10": "CVaR 10 %",
    "perplexity": "perplexity",
    "prompt_dist_2": "Dist-2 per prompt",
    "kl": "KL",
}


def run(profiles: list[str]) -> None:
    """Trains and evaluates every method for every profile and seed that has no report yet."""
    torch.set_num_threads(1)
    for seed in SEEDS:
        for profile in profiles:
            experiment = Experiment.open(profile, f"seeds-{profile}-{seed}", seed)
            if experiment.run.path("report.json").exists():
                continue
            experiment.prepare_data()
            experiment.train_sft()
            experiment.choose_prefix()
            experiment.train_experts()
            experiment.train("quark")
            for method in ("rlhf", "ra_rlhf", "ra_rlhf_ru"):
                experiment.train(method)
            for method in ("base", "prompted", "sft", "dexperts", "quark", "rlhf", "ra_rlhf", "ra_rlhf_ru"):
                experiment.evaluate(method)
            experiment.report()
            print(experiment.run.folder.name, flush=True)


def report(profiles: list[str]) -> None:
    """Prints three tables per profile: means over seeds, interquartile means over seeds, differences from RLHF."""
    for profile in profiles:
        scores = related_scores(Experiment.open(profile, f"seeds-{profile}-{SEEDS[0]}", SEEDS[0]).run)
        table = seed_table(scores, METRICS)
        print(f"## {profile}\n")
        for kind in ("mean", "interquartile mean", "− RLHF"):
            columns = {f"{name}: {kind}": name for name in METRICS.values()}
            print(f"{kind}:\n\n{markdown_table(table[list(columns)].rename(columns=columns))}\n")


def nucleus(profiles: list[str]) -> None:
    """Prints one table per profile, of means over seeds with intervals: DExperts with the base model's nucleus, as
    published, and without it.
    """
    torch.set_num_threads(1)
    for profile in profiles:
        rows: dict[str, list[dict[str, float]]] = {"top-p 0.9": [], "top-p 1": []}
        for seed in SEEDS:
            experiment = Experiment.open(profile, f"seeds-{profile}-{seed}", seed)
            threshold = experiment.profile.task.tail_threshold
            rows["top-p 0.9"].append(summary(experiment.tables().episodes["dexperts"], threshold))
            policy = experiment.policy("dexperts")
            policy.top_p = 1.0
            episodes = evaluate(
                policy,
                experiment.reference(),
                experiment.reward(),
                experiment.data("test"),
                experiment.profile.sampling,
                experiment.profile.evaluation,
                seed,
            )
            rows["top-p 1"].append(summary(episodes, threshold))
        table = {
            name: {key: interval_cell(seed_interval(values)) for key, values in pd.DataFrame(found).items()}
            for name, found in rows.items()
        }
        print(f"## {profile}\n\n{markdown_table(pd.DataFrame(table).T)}\n")


if __name__ == "__main__":
    command, *names = sys.argv[1:]
    {"run": run, "report": report, "nucleus": nucleus}[command](names or PROFILES)
