"""A run that is killed again and again ends like one that never was: python -m benchmarks.soak [--kills 30].

It runs a profile once without interruption, and once killed with SIGKILL at random moments and begun again by the same
command. Then it compares every log, table and policy of the two runs to the last digit, except for measured seconds.
Every other kill takes the runner alone, whose other processes then end by themselves; the others take all of them, as a
power failure does.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from rarlhf_nb.checkpoint import PREFIX
from rarlhf_nb.files import files_of
from rarlhf_nb.lab.artifacts import damaged_files, read_records
from rarlhf_nb.lab.notebooks import notebook_files
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.verify import file_difference

RUNNER = "rarlhf_nb.lab.cli"


def soak(
    folder: Path,
    settings: Sequence[str] = (),
    kills: int = 30,
    seed: int = 0,
    notebooks: str = "*",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a profile whole and killed in `folder`, and return the figures: kills, files that differ, and so on.

    settings: further words of `rarlhf run`, such as "-p ppo.iterations 4". notebooks: a pattern of those to run.
    """
    (folder / "notebooks").mkdir()
    for notebook in notebook_files():
        if notebook.match(f"{notebooks}.ipynb"):
            (folder / "notebooks" / notebook.name).symlink_to(notebook)
    dice, figures = random.Random(seed), Counter()
    started = time.perf_counter()
    runner, whole = start(folder, "whole", settings), Run(folder / "papermill_runs" / "whole")
    steps = await_steps(runner, whole, float("inf"))
    if runner.returncode:
        raise subprocess.CalledProcessError(runner.returncode, runner.args)
    figures["seconds uninterrupted"] = round(time.perf_counter() - started)
    say(f"uninterrupted: {figures['seconds uninterrupted']} s, {steps} steps")
    run, met = Run(folder / "papermill_runs" / "killed"), []
    started = time.perf_counter()
    for kill in range(kills):
        after = dice.uniform(1, 4 * steps / kills)  # steps and not seconds, whatever else the machine does
        where = kill_once(folder, run, settings, after, met, with_others=kill % 2 == 1)
        if where is None:
            break
        figures["kills"] += 1
        figures[f"kills in {where}"] += 1
        figures["iterations repeated"] += unsaved_iterations(run)
        figures["corrupt files"] += sum(len(damaged_files(run.folder, record)) for record in read_records(run.folder))
        say(f"kill {figures['kills']} in {where}")
    subprocess.run(command("killed", settings), cwd=folder, check=True, capture_output=True)
    figures["seconds killed"] = round(time.perf_counter() - started)
    figures["processes met"] = len(met)
    figures["orphans"] = sum(lives(process) for process in met)
    different, compared = compare(whole.folder, run.folder)
    figures["files compared"], figures["files that differ"] = compared, len(different)
    return dict(figures) | {"different": different}


def command(run: str, settings: Sequence[str]) -> list[str]:
    """The command that begins or continues the run."""
    return [sys.executable, "-m", RUNNER, "run", "--run", run, *settings]


def start(folder: Path, run: str, settings: Sequence[str]) -> subprocess.Popen:
    """The runner, at work."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(run, settings), cwd=folder, **quiet)


def await_steps(runner: subprocess.Popen, run: Run, steps: float) -> int:
    """Wait until the run has made so many steps, rows of a log or finished stages, or has ended; returns how many."""
    seen, before = 0, newest(run)
    while runner.poll() is None and seen < steps:
        time.sleep(0.02)
        now = newest(run)
        seen, before = seen + (now != before), now
    return seen


def kill_once(
    folder: Path,
    run: Run,
    settings: Sequence[str],
    after: float,
    met: list[psutil.Process],
    with_others: bool,
) -> str | None:
    """Continue the run and kill it after so many steps.

    Returns where it was, or None if the run ended before. met: gets its processes. with_others: kill those too; without
    it, the kill waits for a moment with processes to leave behind.
    """
    runner = start(folder, run.folder.name, settings)
    await_steps(runner, run, after)
    while runner.poll() is None:
        others = children(runner)
        if others or with_others:
            break
        time.sleep(0.02)
    else:
        return None
    where = moment(run)
    met += others
    runner.kill()
    for process in others if with_others else []:
        process.kill()
    runner.wait()
    return where


def moment(run: Run) -> str:
    """Where the run is: its notebook, and whether it trains, writes a checkpoint or does anything else."""
    entries = run.manifest["notebooks"] if run.path("manifest.json").exists() else {}
    notebook = next((name for name, entry in entries.items() if entry["state"] == "running"), None)
    if notebook is None:
        return "between notebooks"
    if list(run.folder.glob("training/*.checkpoints/*/.checkpoint-*")):
        return f"{notebook}, writing a checkpoint"
    logs = [path.stat().st_mtime for path in run.folder.glob("training/*.jsonl")]
    trains = max(logs, default=0.0) > max(
        (path.stat().st_mtime for path in run.folder.glob("stages/*.json")), default=0.0
    )
    return f"{notebook}, training" if trains else f"{notebook}, other work"


def newest(run: Run) -> float:
    """When a stage of the run was last finished, or a training of it last logged."""
    paths = [
        *run.folder.glob("stages/*.json"),
        *run.folder.glob("training/*.jsonl"),
    ]
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed in the meantime
            continue
    return max(times, default=0.0)


def children(runner: subprocess.Popen) -> list[psutil.Process]:
    """The kernel of a runner, if it has one now, and the processes that work ahead of it."""
    try:
        return psutil.Process(runner.pid).children()
    except psutil.NoSuchProcess:
        return []


def lives(process: psutil.Process) -> bool:
    """Whether this very process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def unsaved_iterations(run: Run) -> int:
    """The iterations of the training under way that no checkpoint holds, so that they are done again."""
    lost = 0
    for folder in run.folder.glob("training/*.checkpoints"):
        log = folder.with_suffix(".jsonl")
        saved = [int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"*/{PREFIX}*")]
        lost += max(0, (log.read_text().count("\n") if log.exists() else 0) - max(saved, default=0))
    return lost


def compare(whole: Path, killed: Path) -> tuple[list[str], int]:
    """The logs, tables and policies that differ, and how many were compared."""
    names = [
        path.relative_to(whole).as_posix()
        for place in ("data", "training", "policies", "evaluation", "report.json")
        for path in files_of(whole / place)
    ]
    return [name for name in names if file_difference(whole / name, killed / name)], len(names)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="further words of `rarlhf run`, after --")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), words.settings, words.kills, words.seed, say=partial(print, flush=True))
    print(yaml.safe_dump(figures, sort_keys=False))
    sys.exit(bool(figures["different"] or figures["corrupt files"] or figures["orphans"]))


if __name__ == "__main__":
    main()
