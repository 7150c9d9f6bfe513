"""A real model on human text over five seeds, at two values of beta: the tables of docs/real_model.md.

    python -m benchmarks.real_model run TEXTS [PROFILE …]   (hours; the same command goes on where it stopped)
    python -m benchmarks.real_model report [PROFILE …]      (the tables as Markdown)

TEXTS is a folder with imdb_reviews and jigsaw_comments, each as .train.jsonl and .test.jsonl. Each task has one reward
model, of papermill_runs/real-<profile>. The runs are papermill_runs/real-<profile>-beta<beta>-seed<seed>, made with the
calls of the notebooks, on one thread; two profiles may run side by side. Nothing was tuned.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from rarlhf_nb.core.methods import method_name
from rarlhf_nb.core.records import read_records
from rarlhf_nb.core.runs import Run, default_root
from rarlhf_nb.measuring.cells import markdown_line, markdown_table
from rarlhf_nb.measuring.sweeps import run_scores, seed_table
from rarlhf_nb.measuring.tables import load_tables
from rarlhf_nb.measuring.tail_prompts import tail_prompts_table
from rarlhf_nb.running.experiment import Experiment

TEXTS = {"imdb-smollm2": "imdb_reviews", "jigsaw-smollm2": "jigsaw_comments"}
KL_COEFS = [0.05, 0.1]  # the profiles' own, and twice that
SEEDS = [1, 2, 3, 4, 5]
METHODS = ["rlhf", "ra_rlhf", "ra_rlhf_ru", "conditioned"]
MEASURED = ["sft", *METHODS[:-1], "conditioned@1", "conditioned@0.4", "conditioned@0.1"]
METRICS = {
    "reward": "reward",
    "tail_reward": "tail reward",
    "cvar_10": "CVaR 10 %",
    "perplexity": "perplexity",
    "kl": "KL",
}
READ = 10  # prompts, the lowest-scored ones, whose completions are shown


def name(profile: str, kl_coef: float, seed: int) -> str:
    """What a run is called."""
    return f"real-{profile}-beta{kl_coef}-seed{seed}"


def run(texts: Path, profiles: Sequence[str]) -> None:
    """Train and measure what is not finished, the first beta of all seeds before the second."""
    for kl_coef, seed, profile in product(KL_COEFS, SEEDS, profiles):
        train_file, test_file = (texts / f"{TEXTS[profile]}.{split}.jsonl" for split in ("train", "test"))
        settings = {"task.train_file": str(train_file), "task.test_file": str(test_file), "compute.threads": 1}
        first = Experiment.open(profile, f"real-{profile}", 1, settings)
        first.prepare_data()
        settings |= {"ppo.kl_coef": kl_coef, "reward.model": str(first.reward_folder())}
        make(Experiment.open(profile, name(profile, kl_coef, seed), seed, settings))


def make(experiment: Experiment) -> None:
    """Everything that a run does; finished stages are kept."""
    experiment.prepare_data()
    experiment.train_sft()
    for method in METHODS:
        experiment.train(method)
    for method in MEASURED:
        experiment.evaluate(method)
    experiment.report()
    print(f"{experiment.run.folder.name}: finished", flush=True)


def finished(profile: str, kl_coef: float) -> list[Run]:
    """The runs that have a report, by seed."""
    runs = (Run(default_root() / name(profile, kl_coef, seed)) for seed in SEEDS)
    return [run for run in runs if run.path("report.json").exists()]


def seconds(runs: Sequence[Run]) -> pd.DataFrame:
    """The seconds of each training, and of all that a run does: one row per seed."""
    rows = {}
    for run in runs:
        took = {record.stage: record.seconds for record in read_records(run.folder)}
        rows[f"seed {run.manifest['seed']}"] = {
            **{method: took[f"train {method}"] for method in METHODS},
            "the whole run": sum(took.values()),
        }
    table = pd.DataFrame(rows).T
    return pd.concat([table, table.sum().to_frame("in all").T]).round().astype(int)


def texts_to_read(run: Run) -> str:
    """The lowest-scored prompts of a run with the completions of each method, as nested lists."""
    lines = []
    for (prompt, score), row in tail_prompts_table(load_tables(run).episodes, READ).iterrows():
        lines.append(f"- {markdown_line(prompt)} ({score:.2f})")
        for method in row.index.unique(0):
            completion = markdown_line(row[method, "completion"])
            lines.append(f"  - *{method_name(method)}* ({row[method, 'reward']:.2f}): {completion}")
    return "\n".join(lines) + "\n"


def report(profiles: Sequence[str]) -> None:
    """For each profile and beta: the scores over seeds, the differences to RLHF, the seconds; and the texts to read."""
    for profile, kl_coef in product(profiles, KL_COEFS):
        runs = finished(profile, kl_coef)
        if not runs:
            continue
        print(f"## {profile}, β {kl_coef:g}, {len(runs)} seeds\n")
        table = seed_table(pd.DataFrame([row for run in runs for row in run_scores(run)]), METRICS)
        for kind in ("mean", "− RLHF"):
            columns = {f"{title}: {kind}": title for title in METRICS.values()}
            print(f"{kind}:\n\n{markdown_table(table[list(columns)].rename(columns=columns))}\n")
        print(f"{markdown_table(seconds(runs))}\n")
        print(texts_to_read(runs[0]))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "run":
        run(Path(words[0]), words[1:] or list(TEXTS))
    else:
        report(words or list(TEXTS))
