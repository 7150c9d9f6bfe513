"""The table of README and docs/results.md: the default profile over five seeds, made with the calls of the notebooks.

    python -m benchmarks.five_seeds run             (some seven minutes a seed on an idle core; skips what is finished)
    python -m benchmarks.five_seeds report          (prints the table)
    python -m benchmarks.five_seeds report --write  (puts it into README.md and docs/results.md, and writes the CSV)

A seed changes SFT, training and evaluation. The runs are the folders papermill_runs/seeds-<seed>.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from rarlhf_nb import Experiment
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.methods import method_name

SEEDS = [1, 2, 3, 4, 5]
TRAINED = ["rlhf", "ra_rlhf", "ra_rlhf_ru", "quark"]
METHODS = ["base", "prompted", "sft", "dexperts", "best_of_n", "quark", "rlhf", "ra_rlhf", "ra_rlhf_ru"]
README_ROWS = {"rlhf": "RLHF", "ra_rlhf": "tail selection (the paper's)", "ra_rlhf_ru": "Rockafellar–Uryasev (RU)"}
README_COLUMNS = {"reward": "mean reward", "CVaR 10 %": "worst 10 %", "KL": "KL"}
REPOSITORY = Path(__file__).parent.parent
CSV = REPOSITORY / "docs" / "results" / "five_seeds.csv"


def opened(seed: int) -> Experiment:
    """The run of a seed, on one thread, so that its numbers do not depend on the machine's cores."""
    return Experiment.open("pocket-imdb", f"seeds-{seed}", seed, {"compute.threads": 1})


def run() -> None:
    """Train and evaluate every method with every seed."""
    for seed in SEEDS:
        experiment = opened(seed)
        experiment.prepare_data()
        experiment.train_sft()
        experiment.choose_prefix()
        experiment.train_experts()
        for method in TRAINED:
            experiment.train(method)
        for method in METHODS:
            experiment.evaluate(method)


def collect() -> pd.DataFrame:
    """One row per method and seed."""
    rows = []
    for seed in SEEDS:
        experiment = opened(seed)
        for method in METHODS:
            episodes = experiment.run.read(f"evaluation/{method}.parquet")
            rows.append({"method": method, "seed": seed} | summary(episodes, experiment.profile.task.tail_threshold))
    return pd.DataFrame(rows)


def tables(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over seeds with 95 % t-intervals, and differences from RLHF, paired by seed: one row per method."""
    measures = [column for column in scores if column not in ("method", "seed")]
    of = {method: own.set_index("seed")[measures] for method, own in scores.groupby("method", sort=False)}
    means = {method_name(method): own.apply(cell) for method, own in of.items()}
    differences = {method_name(m): (own - of["rlhf"]).apply(cell) for m, own in of.items() if m != "rlhf"}
    return pd.DataFrame(means).T, pd.DataFrame(differences).T


def cell(values: pd.Series) -> str:
    """The mean over seeds with its interval."""
    return interval_cell(seed_interval(values))


def report(*options: str) -> None:
    """Print both tables; with --write, put them where readers look."""
    if "--write" in options:
        collect().to_csv(CSV, index=False)
    means, differences = tables(pd.read_csv(CSV) if CSV.exists() else collect())
    whole = f"{markdown_table(means)}\n\nMinus RLHF, paired by seed:\n\n{markdown_table(differences)}"
    print(whole)
    if "--write" in options:
        short = means.loc[[method_name(method) for method in README_ROWS], list(README_COLUMNS)]
        short = short.rename(columns=README_COLUMNS).set_axis(README_ROWS.values())
        put(REPOSITORY / "README.md", markdown_table(short))
        put(REPOSITORY / "docs" / "results.md", whole)


def put(page: Path, table: str) -> None:
    """Write a table between the marks of this benchmark in a page."""
    marks = r"(<!-- table: python -m benchmarks.five_seeds -->\n).*?(<!-- end -->)"
    page.write_text(re.sub(marks, lambda found: f"{found[1]}{table}\n{found[2]}", page.read_text(), flags=re.S))


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"run": run, "report": report}[command](*rest)
