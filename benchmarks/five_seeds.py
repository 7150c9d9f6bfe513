"""The table of README and docs/results.md: the default profile over five seeds, by the sweep of the command line.

    python -m benchmarks.five_seeds run             (an hour on two idle cores; skips what is finished)
    python -m benchmarks.five_seeds report          (prints the tables)
    python -m benchmarks.five_seeds report --write  (puts them into README.md and docs/results.md, and writes the CSV)

A seed changes SFT, training and evaluation. Rockafellar-Uryasev and the conditioned policy are trained twice: on all
episodes above VaR, as the profile says, and on a weighted fourth of them (`risk.above_share`).
"""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from rarlhf_nb import Experiment
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_table
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import summary
from rarlhf_nb.lab.methods import CONDITIONED, method_name

SEEDS = [1, 2, 3, 4, 5]
METHODS = ["base", "prompted", "sft", "dexperts", "best_of_n", "quark", "rlhf", "ra_rlhf", "ra_rlhf_ru"]
WHOLE, SHARE = 1, 0.25  # of the episodes above VaR: the profile's, and a fourth of them
ENDS = (0.1, 1.0)  # the alphas at which the conditioned policy is shown
README_ROWS = {"rlhf": "RLHF", "ra_rlhf": "tail selection (the paper's)", "ra_rlhf_ru": "Rockafellar–Uryasev (RU)"}
README_COLUMNS = {"reward": "mean reward", "CVaR 10 %": "worst 10 %", "KL": "KL"}
REPOSITORY = Path(__file__).parent.parent
CSV = REPOSITORY / "docs" / "results" / "five_seeds.csv"


def run() -> None:
    """Train and evaluate every method with every seed and both shares."""
    grid = ["--seed", f"{SEEDS[0]}-{SEEDS[-1]}", "-p", "risk.above_share", f"{WHOLE},{SHARE}"]
    subprocess.run([sys.executable, "-m", "rarlhf_nb.lab.cli", "sweep", "five-seeds", *grid], check=True)


def collect() -> pd.DataFrame:
    """One row per method, share and seed."""
    rows = []
    for seed, (share, methods) in product(SEEDS, ((WHOLE, METHODS), (SHARE, METHODS[-1:]))):
        experiment = Experiment.reopen(f"five-seeds/alpha_0.4-above_share_{share:g}-seed_{seed}")
        alphas = experiment.run.read(f"evaluation/{CONDITIONED}.alphas.parquet").groupby("alpha")
        episodes = {method: experiment.run.read(f"evaluation/{method}.parquet") for method in methods}
        episodes |= {f"{CONDITIONED}@{alpha:g}": alphas.get_group(alpha) for alpha in ENDS}
        for method, table in episodes.items():
            scores = summary(table, experiment.profile.task.tail_threshold)
            rows.append({"method": method, "above_share": share, "seed": seed} | scores)
    return pd.DataFrame(rows)


def tables(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By title: means over seeds with 95 % t-intervals, and differences, paired by seed; one row per method."""
    measures = [column for column in scores if column not in ("method", "above_share", "seed")]
    of = {key: own.set_index("seed")[measures] for key, own in scores.groupby(["method", "above_share"], sort=False)}
    default = {method: own for (method, share), own in of.items() if share == WHOLE}
    fourth = {method: own for (method, share), own in of.items() if share == SHARE}
    differences = {
        "": default,
        "Minus RLHF, paired by seed:": {m: own - default["rlhf"] for m, own in default.items() if m != "rlhf"},
        f"A share of {SHARE} of the episodes above VaR minus all of them, paired by seed:": {
            method: own - default[method] for method, own in fourth.items()
        },
    }
    return {
        title: pd.DataFrame({method_name(method): own.apply(cell) for method, own in rows.items()}).T
        for title, rows in differences.items()
    }


def cell(values: pd.Series) -> str:
    """The mean over seeds with its interval."""
    return interval_cell(seed_interval(values))


def report(*options: str) -> None:
    """Print the tables; with --write, put them where readers look."""
    if "--write" in options:
        collect().to_csv(CSV, index=False)
    found = tables(pd.read_csv(CSV) if CSV.exists() else collect())
    whole = "\n\n".join(f"{title}\n\n{markdown_table(table)}".strip() for title, table in found.items())
    print(whole)
    if "--write" in options:
        short = found[""].loc[[method_name(method) for method in README_ROWS], list(README_COLUMNS)]
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
