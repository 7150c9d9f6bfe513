"""How far a run or a sweep has got, read from its files alone, even while it runs elsewhere."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import SWEEP, lock_owner, read_records
from rarlhf_nb.lab.methods import CONDITIONED, CRITIC_FREE, MethodKey
from rarlhf_nb.lab.runs import MANIFEST, Run, check_name
from rarlhf_nb.lab.sweep import TRIAL_NOTEBOOKS, Sweep

QUIET = 120  # seconds without a written file, after which a run counts as silent
FINAL = ("done", "failed")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    state: waiting, running, silent (it holds its folder but writes nothing), interrupted, failed or done. at: the
    notebook, and the training under way in it. seconds: of its notebooks so far. error: why it failed.
    """

    state: str
    at: str = ""
    seconds: float = 0.0
    error: str = ""


def run_progress(run: Run, notebooks: list[str]) -> Progress:
    """The progress of a run that is done after these notebooks."""
    if not run.path(MANIFEST).exists():
        return Progress("waiting")
    try:
        entries = run.manifest["notebooks"]
    except UserError as error:
        return Progress("failed", error=str(error))
    seconds = sum(entry["seconds"] for entry in entries.values())
    if lock_owner(run.folder):
        at = next((name for name, entry in entries.items() if entry["state"] == "running"), "between notebooks")
        state = "silent" if _since(_last_write(run)) > QUIET else "running"
        return Progress(state, f"{at}{_training(run)}", seconds + _since(run.path(MANIFEST).stat().st_mtime))
    if not entries:  # as in JupyterLab, where no notebook is noted
        return Progress("waiting")
    first = next((name for name in notebooks if entries.get(name, {}).get("state") != "done"), None)
    if first is None:
        return Progress("done", seconds=seconds)
    entry = entries.get(first, {})
    if entry.get("state") == "failed":
        cell = f", cell {entry['cell']}" if entry.get("cell") else ""
        return Progress("failed", f"{first}{cell}", seconds, entry.get("error", ""))
    return Progress("interrupted", f"{first}{_training(run)}", seconds)


def run_table(run: Run, notebooks: list[str]) -> pd.DataFrame:
    """One row per notebook of a run: its state, the training under way, its seconds, and why it failed."""
    entries, busy = run.manifest["notebooks"], lock_owner(run.folder)
    rows = {}
    for name in notebooks:
        entry = {"state": "waiting", "seconds": 0.0} | entries.get(name, {})
        under_way = entry["state"] == "running"
        seconds = _since(run.path(MANIFEST).stat().st_mtime) if busy and under_way else entry["seconds"]
        rows[name] = {
            "state": "interrupted" if under_way and not busy else entry["state"],
            "at": _training(run).removeprefix(": ") if under_way else "",
            "time": _clock(seconds),
            "error": _first_line(entry.get("error", "")),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is. trials: by name. seconds_left: estimated from finished runs; None before there are any."""

    trials: dict[str, Progress]
    seconds_left: float | None

    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        states = [trial.state for trial in self.trials.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def headline(self) -> str:
        """One line: how many runs are in each state, and the time left."""
        left = f"; about {_clock(self.seconds_left)} left" if self.seconds_left else ""
        return ", ".join(f"{count} {state}" for state, count in self.counts().items()) + left

    def table(self) -> pd.DataFrame:
        """One row per run, for reading."""
        rows = {
            name: {"state": run.state, "at": run.at, "time": _clock(run.seconds), "error": _first_line(run.error)}
            for name, run in self.trials.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def sweep_progress(sweep: Sweep, workers: int = 1) -> SweepProgress:
    """The progress of a sweep on so many workers; of one that runs elsewhere, on as many as run something now."""
    trials = {trial.name: run_progress(sweep.trial_run(trial), TRIAL_NOTEBOOKS) for trial in sweep.grid.trials()}
    finished = [trial.seconds for trial in trials.values() if trial.state == "done"]
    if not finished:
        return SweepProgress(trials, None)
    each = sum(finished) / len(finished)
    left = sum(max(0.0, each - trial.seconds) for trial in trials.values() if trial.state not in FINAL)
    running = sum(trial.state == "running" for trial in trials.values())
    return SweepProgress(trials, left / max(workers, running))


def shared_work(sweep: Sweep) -> str:
    """One line: the work of the runs, and how much of it they took from each other instead of doing it."""
    records = [record for trial in sweep.grid.trials() for record in read_records(sweep.trial_run(trial).folder)]
    taken = sum(record.seconds for record in records if record.taken_from)
    worked = sum(record.seconds for record in records if not record.taken_from)
    share = 100 * taken / max(taken + worked, 1e-9)
    return f"{worked:.0f} s of work in all stages; {taken:.0f} s more ({share:.0f} %) was shared instead of done again"


class SweepDisplay:
    """The progress of a sweep: a table that stays in place in a terminal, and elsewhere a line for every change."""

    def __init__(self, console: Console) -> None:
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "SweepDisplay":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, progress: SweepProgress) -> None:
        """Show the progress."""
        if self.live is not None:
            self.live.update(_rich_table(progress), refresh=True)
        elif progress.counts() != self.counts:
            self.counts = progress.counts()
            typer.echo(progress.headline())


def status_of_all(root: Path, notebooks: list[str]) -> list[str]:
    """A line for every run and sweep in `root`."""
    lines = []
    for folder in sorted(path.parent for path in root.glob(f"*/{MANIFEST}")):
        try:
            if (folder / SWEEP).exists():
                state = f"sweep, {sweep_progress(Sweep.reopen(folder.name, root)).headline()}"
            else:
                progress = run_progress(Run(folder), notebooks)
                state = ": ".join(part for part in (progress.state, progress.at) if part)
        except UserError as error:
            state = str(error)
        lines.append(f"{folder.name}: {state}")
    return lines or ["there are no runs yet"]


def status_of(name: str, root: Path, notebooks: list[str]) -> list[str]:
    """The progress of a run or a sweep in `root`. Raises `UserError` if there is none of that name."""
    check_name(name)
    if (root / name / SWEEP).exists():
        sweep = Sweep.reopen(name, root)
        progress = sweep_progress(sweep)
        return [progress.table().to_string(), progress.headline(), shared_work(sweep)]
    if not (root / name / MANIFEST).exists():
        raise UserError(f"run = {name!r}: there is no such run or sweep; `rarlhf status` lists them.")
    return [run_table(Run(root / name), notebooks).to_string()]


def _rich_table(progress: SweepProgress) -> Table:
    rows = progress.table()
    table = Table(caption=progress.headline(), box=None)
    for column in ("run", *rows.columns):
        table.add_column(column, overflow="fold")
    for name, row in rows.iterrows():
        table.add_row(name, *map(escape, row))
    return table


def _training(run: Run) -> str:
    """The training under way: the method, its iteration, and how many there are."""
    for folder in sorted(run.path("training").glob("*.checkpoints")):
        method = folder.name.removesuffix(".checkpoints")
        settings, log = run.manifest["settings"], run.path("training", f"{method}.jsonl")
        try:
            last = json.loads(log.read_text().splitlines()[-1])
            return f": {method} {last.get('iteration', last.get('step'))}/{_length(settings, method)}"
        except (OSError, ValueError, IndexError):  # it has none, or it is being written
            return f": {method}"
    return ""


def _length(settings: dict[str, Any], method: str) -> int:
    """How many iterations the training of a method has; of Quark, steps."""
    if method == "quark":
        return settings["quark"]["steps"]
    if method == CONDITIONED:
        return settings["conditioned"]["iterations"] or 2 * settings["ppo"]["iterations"]
    return settings["critic_free" if MethodKey.parse(method).name in CRITIC_FREE else "ppo"]["iterations"]


def _last_write(run: Run) -> float:
    times = []
    for path in run.folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed in the meantime
            continue
    return max(times, default=0.0)


def _since(moment: float) -> float:
    return max(0.0, time.time() - moment)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
