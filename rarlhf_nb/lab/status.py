"""How far a run or a sweep has got, read from its files alone, even while it runs elsewhere."""

import json
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import lock_owner, read_records
from rarlhf_nb.lab.methods import CONDITIONED, CRITIC_FREE, MethodKey
from rarlhf_nb.lab.runs import MANIFEST, Run
from rarlhf_nb.lab.sweep import CELL_NOTEBOOKS, Sweep

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


def run_progress(run: Run, notebooks: list[str], failure: dict[str, Any] | None = None) -> Progress:
    """The progress of a run that is done after these notebooks. failure: what its sweep noted of it."""
    if not run.path(MANIFEST).exists():
        return Progress("waiting")
    try:
        entries = run.manifest["notebooks"]
    except UserError as error:
        return Progress("failed", error=str(error))
    seconds = sum(entry["seconds"] for entry in entries.values())
    if lock_owner(run.folder):
        at = next((name for name, entry in entries.items() if entry["state"] == "running"), "between notebooks")
        silent = _since(_last_write(run)) > QUIET
        begun = _since(run.path(MANIFEST).stat().st_mtime)
        return Progress("silent" if silent else "running", f"{at}{_training(run)}", seconds + begun)
    if failure:
        where = failure["notebook"] or "the run"
        return Progress(
            "failed", where + (f", cell {failure['cell']}" if failure["cell"] else ""), seconds, failure["error"]
        )
    if not entries:  # as in JupyterLab, where no notebook is noted
        return Progress("waiting")
    states = {name: entries.get(name, {}).get("state") for name in notebooks}
    if set(states.values()) == {"done"}:
        return Progress("done", seconds=seconds)
    first = next(name for name, state in states.items() if state != "done")
    return Progress("failed" if states[first] == "failed" else "interrupted", f"{first}{_training(run)}", seconds)


def run_table(run: Run, notebooks: list[str]) -> pd.DataFrame:
    """One row per notebook of a run: its state, its seconds, and the training under way."""
    entries, busy = run.manifest["notebooks"], lock_owner(run.folder)
    rows = {}
    for name in notebooks:
        entry = entries.get(name, {"state": "waiting", "seconds": 0.0})
        under_way = entry["state"] == "running"
        state = entry["state"] if busy or not under_way else "interrupted"
        rows[name] = {
            "state": state,
            "at": _training(run).removeprefix(": ") if under_way else "",
            "time": _clock(
                entry["seconds"] or (_since(run.path(MANIFEST).stat().st_mtime) if busy and under_way else 0)
            ),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is. cells: by name. seconds_left: estimated from finished cells; None before there are any."""

    cells: dict[str, Progress]
    seconds_left: float | None

    def counts(self) -> dict[str, int]:
        """How many cells are in each state."""
        states = [cell.state for cell in self.cells.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def headline(self) -> str:
        """One line: how many cells are in each state, and the time left."""
        left = "" if not self.seconds_left else f"; about {_clock(self.seconds_left)} left"
        return ", ".join(f"{count} {state}" for state, count in self.counts().items()) + left

    def table(self) -> pd.DataFrame:
        """One row per cell, for reading."""
        rows = {
            name: {"state": cell.state, "at": cell.at, "time": _clock(cell.seconds), "error": _first_line(cell.error)}
            for name, cell in self.cells.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def sweep_progress(sweep: Sweep, workers: int = 1) -> SweepProgress:
    """The progress of a sweep on so many workers; of one that runs elsewhere, on as many as run a cell now."""
    cells = {
        cell.name: run_progress(sweep.cell_run(cell), CELL_NOTEBOOKS, sweep.failure(cell))
        for cell in sweep.grid.cells()
    }
    finished = [cell.seconds for cell in cells.values() if cell.state == "done"]
    if not finished:
        return SweepProgress(cells, None)
    each = sum(finished) / len(finished)
    left = sum(max(0.0, each - cell.seconds) for cell in cells.values() if cell.state not in FINAL)
    running = sum(cell.state == "running" for cell in cells.values())
    return SweepProgress(cells, left / max(workers, running))


def shared_work(sweep: Sweep) -> str:
    """One line: the work of the cells, and how much of it they took from each other instead of doing it."""
    records = [record for cell in sweep.grid.cells() for record in read_records(sweep.cell_run(cell).folder)]
    taken = sum(record.seconds for record in records if record.taken_from)
    worked = sum(record.seconds for record in records if not record.taken_from)
    share = 100 * taken / max(taken + worked, 1e-9)
    return f"{worked:.0f} s of work in all stages; {taken:.0f} s more ({share:.0f} %) was shared instead of done again"


def _training(run: Run) -> str:
    """The training under way: the method, its iteration, and how many there are."""
    for folder in sorted(run.path("training").glob("*.checkpoints")):
        method = folder.name.removesuffix(".checkpoints")
        settings, log = run.manifest["settings"], run.path("training", f"{method}.jsonl")
        total = _length(settings, method)
        try:
            last = json.loads(log.read_text().splitlines()[-1])
            return f": {method} {last.get('iteration', last.get('step'))}/{total}"
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
