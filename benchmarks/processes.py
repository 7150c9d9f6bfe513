"""A run on one process and on several, one thread each: the tables of docs/results/processes.md.

    python -m benchmarks.processes run [--processes 2] [-p KEY VALUE …]     (on an otherwise idle machine)
    python -m benchmarks.processes report [--processes 2] [--write]

`run` calls `rarlhf run` twice, into papermill_runs/processes-1 and processes-2. `report` compares the seconds of their
stages, and what came out; --write puts it into docs/results/processes.md.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from rarlhf_nb.lab.artifacts import read_records
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.lab.evaluation.tables import load_tables
from rarlhf_nb.lab.methods import CRITIC_FREE, MethodKey, method_order
from rarlhf_nb.lab.runs import Run, default_root
from rarlhf_nb.risk import cvar

DOCUMENT = Path(__file__).parent.parent / "docs" / "results" / "processes.md"
STARTED = re.compile(r"\d+ processes started in ([\d.]+) s")
KINDS = {"train": "trainings", "evaluate": "evaluations"}  # by the first word of a stage's name
ALONE = {"dexperts", *CRITIC_FREE}  # whose training stays on one process


def run(processes: int, parameters: list[str]) -> None:
    """Make both runs anew."""
    for count in (1, processes):
        command = ["rarlhf_nb.lab.cli", "run", "--force", "--run", name(count), "--processes", str(count)]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command, "-p", "compute.threads", "1", *parameters], check=True)
        folder(count).write("whole.json", {"seconds": time.perf_counter() - started})


def name(count: int) -> str:
    """What the run on so many processes is called."""
    return f"processes-{count}"


def folder(count: int) -> Run:
    """The run on so many processes."""
    return Run(default_root() / name(count))


def start_ups(run: Run) -> dict[str, float]:
    """The seconds in which each notebook started its processes, as it printed them."""
    found = {path.stem: STARTED.findall(path.read_text()) for path in sorted(run.folder.glob("0*.ipynb"))}
    return {notebook: sum(map(float, seconds)) for notebook, seconds in found.items() if seconds}


def stage_seconds(run: Run) -> pd.Series:
    """The seconds of every stage that processes share, without their start in the first such stage of a notebook."""
    records = sorted(read_records(run.folder), key=lambda record: run.path(record.writes[0]).stat().st_mtime)
    waiting, seconds = start_ups(run), {}
    for record in records:
        kind, _, method = record.stage.partition(" ")
        if kind == "evaluate" or (kind == "train" and MethodKey.parse(method).name not in ALONE):
            seconds[record.stage] = record.seconds - waiting.pop(record.notebook, 0.0)
    return pd.Series(seconds)


def times(processes: int) -> str:
    """Markdown: the seconds of the stages, their sums, the start of the processes, and the whole run."""
    columns = {}
    for count in (1, processes):
        seconds, run = stage_seconds(folder(count)), folder(count)
        columns["one process, s" if count == 1 else f"{count} processes, s"] = {
            **seconds.filter(like="train "),
            **{f"all {what}": seconds.filter(regex=f"^{kind} ").sum() for kind, what in KINDS.items()},
            "starting the processes": sum(start_ups(run).values()),
            "the whole run": run.read("whole.json")["seconds"],
        }
    table = pd.DataFrame(columns)
    ratio = table.iloc[:, 1] / table.iloc[:, 0]
    ratios = ratio.map(lambda value: f"{value:.2f}" if np.isfinite(value) else "")
    return markdown_table(table.map("{:.1f}".format).assign(ratio=ratios))


def results(processes: int) -> str:
    """Markdown: how far each training follows that on one process, and the results on one process / on so many."""
    alone, together = (load_tables(folder(count)) for count in (1, processes))
    rows = {}
    for method in method_order(alone.episodes):
        one, other = alone.episodes[method], together.episodes[method]
        equal = (one["completion"] == other["completion"]).mean()
        row = {"log equal to 1e-4 for": "", "equal completions": f"{equal:.0%}"}
        if method in alone.training:
            first, second = (tables.training[method].drop(columns="seconds") for tables in (alone, together))
            agree = ((first - second).abs() < 1e-4).all(axis=1)
            row["log equal to 1e-4 for"] = f"{agree.cumprod().sum()} of {len(agree)} iterations"
        for title, metric in {"mean reward": np.mean, "CVaR 10 %": lambda rewards: cvar(rewards, 0.1)}.items():
            row[title] = " / ".join(f"{metric(table['reward'].to_numpy()):.2f}" for table in (one, other))
        rows[method] = row
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index"))


def main() -> None:
    """Run or report, as the command says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), dest="parameters")
    given = parser.parse_args()
    if given.command == "run":
        run(given.processes, [word for pair in given.parameters for word in ("-p", *pair)])
        return
    made = f"{times(given.processes)}\n\n{results(given.processes)}\n"
    if given.write:
        text = re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", rf"\g<1>{made}\g<2>", DOCUMENT.read_text(), flags=re.S)
        DOCUMENT.write_text(text)
    else:
        print(made)


if __name__ == "__main__":
    main()
