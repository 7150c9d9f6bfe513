"""A sweep ends with every run that can be finished, whoever dies on the way; its state is told from its files."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client, LocalCluster
from rich.console import Console
from small_run import rarlhf, write_notebook

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import run_sweep
from rarlhf_nb.lab.evaluation.report import COLUMNS, Report
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.run_sweep import remote_client, write_sweep_report
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.status import Progress, SweepProgress, sweep_display, sweep_progress
from rarlhf_nb.lab.sweep import SWEEP_NOTEBOOKS, TRIAL_NOTEBOOKS, Grid, Sweep
from rarlhf_nb.lab.sweep_experiment import sweep_scores

# what a training leaves, made up: the reward rises with alpha and seed
TRAINED = """
import numpy as np, pandas as pd, time
from pathlib import Path
from rarlhf_nb.lab.runs import Run
here = Run(Path("papermill_runs") / run)
alpha = overrides["risk.alpha"]
scores = np.random.default_rng(0).normal(size=40)
for number, method in enumerate(["sft", "rlhf", "ra_rlhf", "ra_rlhf_ru"]):
    shift = number * (1 if number < 2 else alpha) + seed / 10
    noise = np.random.default_rng([seed, number]).normal(size=40)
    table = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(40)], "completion": " fine", "prompt_score": scores})
    table = table.assign(reward=scores + shift + noise, kl=0.5, label=1, group="all", seed=0)
    here.write(f"evaluation/{method}.parquet", table)
"""
SLOW = "import time; time.sleep(2)"
FAILS = 'open(f"tries-{seed}", "a").write("x")\nif seed == 2: raise RuntimeError("<b>no more luck</b>")'


def checkout(folder: Path, third: str = SLOW) -> Path:
    """A checkout whose notebooks take seconds; `third` is the code of notebook 03."""
    (folder / "notebooks").mkdir(parents=True)
    codes = dict.fromkeys([*TRIAL_NOTEBOOKS, *SWEEP_NOTEBOOKS], "print(run, seed)")
    codes |= {TRIAL_NOTEBOOKS[1]: TRAINED, TRIAL_NOTEBOOKS[2]: third}
    for name, code in codes.items():
        write_notebook(folder, name, code)
    return folder


def start(folder: Path, *words: str) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "rarlhf_nb.lab.cli", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def states(folder: Path) -> dict[str, str]:
    progress = sweep_progress(Sweep.reopen("grid", folder / "papermill_runs"))
    return {name: run.state for name, run in progress.trials.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep with a run that fails at first, and what the two commands printed."""
    folder = checkout(tmp_path_factory.mktemp("sweep"), FAILS)
    words = ("sweep", "grid", "--alpha", "0.4", "--seed", "1-2", "--workers", "2")
    first = start(folder, *words).communicate(timeout=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        told = rarlhf("status", "grid").stdout
    failed = states(folder)
    write_notebook(folder, TRIAL_NOTEBOOKS[2], "print('now it works')")
    second = start(folder, *words).communicate(timeout=300)
    return folder, first, told, failed, second


def test_a_run_that_fails_is_tried_twice_and_recorded_while_the_rest_goes_on(finished):
    folder, (out, errors), told, failed, _ = finished
    assert failed == {"alpha_0.4-seed_1": "done", "alpha_0.4-seed_2": "failed"}
    assert (folder / "tries-1").read_text() == "x" and (folder / "tries-2").read_text() == "xx"
    assert "alpha_0.4-seed_2: 03_ra_rlhf failed with RuntimeError" in out
    assert "03_ra_rlhf, cell 3" in told and "RuntimeError: <b>no more luck</b>" in told
    assert "1 done, 1 failed" in told
    assert "| RA-RLHF (RU) α 0.4" in out, (out, errors)  # the report is made of what there is


def test_the_same_command_finishes_what_failed_and_reports_over_seeds(finished):
    folder, *_, (out, errors) = finished
    assert set(states(folder).values()) == {"done"}, errors
    sweep = folder / "papermill_runs" / "grid"
    assert "| RA-RLHF (RU) α 0.4" in out and "2 seeds (1, 2)" in out
    assert "needed to tell them apart" in (sweep / "sweep_report.md").read_text()
    report = json.loads((sweep / "sweep_report.json").read_text())
    assert report["notes"] and (sweep / "05_analysis.ipynb").exists() and (sweep / "06_alpha_explorer.ipynb").exists()


def test_a_run_of_a_sweep_is_one_that_the_command_line_reopens(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    runs = finished[0] / "papermill_runs"
    before = sorted(path.name for path in runs.iterdir())
    out = rarlhf("run", "--run", "grid/alpha_0.4-seed_1", "-p", "risk.alpha", "0.4", "-p", "sweep.alphas", "[]").stdout
    assert "run grid/alpha_0.4-seed_1, seed 1" in out and "02_baseline_rlhf: done in" in out
    assert sorted(path.name for path in runs.iterdir()) == before


def test_one_damaged_sweep_hides_no_other_run(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0] / "papermill_runs", tmp_path / "papermill_runs")
    shutil.copytree(tmp_path / "papermill_runs" / "grid", tmp_path / "papermill_runs" / "other")
    (tmp_path / "papermill_runs" / "grid" / "sweep.json").write_text("{")
    shutil.copytree(finished[0] / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    told = rarlhf("status").stdout
    assert "grid: sweep.json of sweep 'grid' is damaged" in told and "other: sweep, 2 done" in told


def test_an_error_in_brackets_is_shown_as_it_is():
    trials = {"alpha_0.4-seed_1": Progress("failed", "03_ra_rlhf", 1.0, "pip install 'rarlhf_nb[cluster]' [/y]")}
    console = Console(force_terminal=True, width=200, file=io.StringIO())
    with sweep_display(console) as show:
        show(SweepProgress(trials, None))
    assert "'rarlhf_nb[cluster]' [/y]" in console.file.getvalue()


def test_a_sweep_opens_like_a_run(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    experiment = Experiment.open("pocket", "grid", seed=2)
    methods = ["sft", "rlhf", "ra_rlhf@0.4", "ra_rlhf_ru@0.4"]
    assert list(experiment.tables().episodes) == methods
    others = experiment.other_seeds()
    assert list(others) == [1] and list(others[1]) == methods
    table = pd.read_parquet("papermill_runs/grid/alpha_0.4-seed_1/evaluation/ra_rlhf.parquet")
    pd.testing.assert_frame_equal(others[1]["ra_rlhf@0.4"], table)
    scores = experiment.scores()
    row = scores[(scores["method"] == "ra_rlhf@0.4") & (scores["seed"] == 1)].iloc[0]
    assert row["reward"] == pytest.approx(table["reward"].mean()) and row["alpha"] == 0.4
    assert scores.loc[scores["method"] == "rlhf", "alpha"].tolist() == [1.0] * 2
    assert np.isnan(scores.loc[scores["method"] == "sft", "alpha"]).all()
    assert list(experiment.report().of("reward").index) == methods
    assert Path("papermill_runs/grid/report.json").exists()
    rarlhf("report", "grid")
    assert Path("papermill_runs/grid/report.html").exists()
    for words in (["explore", "grid"], ["verify", "grid"], ["export", "grid", "rlhf", "copy"]):
        assert "name one of its runs, such as grid/alpha_0.4-seed_1" in rarlhf(*words, status=2).stderr
    for profile, options, message in (
        ("pocket", {"seed": 3}, "seed = 3: sweep 'grid' has 1, 2"),
        ("pocket-rtp", {}, "profile = 'pocket-rtp': sweep 'grid' has 'pocket'"),
        ("pocket", {"overrides": {"ppo.kl_coef": 0.4}}, "sweep 'grid' varies no setting"),
    ):
        with pytest.raises(UserError, match=message):
            Experiment.open(profile, "grid", **options)


def test_the_scores_of_a_sweep_count_every_seed_once(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    grid = Grid("pocket", [1.0, 0.4], [1, 2], {"ppo.kl_coef": [0.1, 0.2]})
    sweep = Sweep.open("grid", grid)
    for trial in grid.trials():
        run = Run.open(f"grid/{trial.name}", grid.settings(trial).model_dump(mode="json"), trial.seed)
        value = trial.seed + trial.alpha
        values = {"sft": trial.seed, "rlhf": trial.seed + 1.0, "ra_rlhf": value, "ra_rlhf_ru": value}
        names = {"reward": "reward", "tail_reward": "tail reward"}
        rows = [(method, "", metric, value, np.nan, np.nan) for method, value in values.items() for metric in names]
        run.write("report.json", Report(pd.DataFrame(rows, columns=COLUMNS), names, []).to_json())
    assert len(sweep_scores(sweep)) == 8 * 4
    experiment = Experiment.open("pocket", "grid", overrides={"ppo.kl_coef": 0.2})
    scores = experiment.scores()
    methods = ["sft", "rlhf", "ra_rlhf@0.4", "ra_rlhf_ru@0.4"]
    assert scores["method"].value_counts().to_dict() == dict.fromkeys(methods, 2)
    assert set(scores["kl_coef"]) == {0.2} and scores.loc[scores["method"] == "rlhf", "reward"].tolist() == [2.0, 3.0]
    over_beta = experiment.scores(free=["ppo.kl_coef"])
    assert len(over_beta) == 16 and set(over_beta["kl_coef"]) == {0.1, 0.2}
    report = write_sweep_report(sweep)
    assert list(report.tables()) == ["kl_coef 0.1", "kl_coef 0.2"]
    assert not [note for note in report.notes if note.startswith("Missing")]


def test_a_killed_run_is_tried_again_and_a_killed_sweep_leaves_nobody_behind(tmp_path, monkeypatch):
    waits = """
import os, time
from pathlib import Path
Path(f"pids-{seed}").open("a").write(f"{os.getpid()} ")
while not os.path.exists("go on"):
    time.sleep(0.1)
"""
    folder = checkout(tmp_path / "checkout", waits)
    monkeypatch.chdir(folder)
    words = ("sweep", "grid", "--alpha", "0.4", "--seed", "1-2", "--workers", "2")
    pids = folder / "pids-1"
    sweep = start(folder, *words)
    until(pids.exists)
    assert states(folder)["alpha_0.4-seed_1"] == "running"
    os.kill(int(pids.read_text()), signal.SIGKILL)  # as the system does when memory runs out
    assert "run = 'grid' is in use by process" in rarlhf(*words, status=2).stderr
    until(lambda: len(pids.read_text().split()) == 2)
    notebooks = psutil.Process(sweep.pid).children()
    sweep.kill()  # now the whole command, in the middle of its second attempt
    sweep.communicate()
    assert len(notebooks) == 2 and not psutil.wait_procs(notebooks, timeout=10)[1]
    assert set(states(folder).values()) == {"interrupted"}
    (folder / "go on").touch()
    _, errors = start(folder, *words).communicate(timeout=300)
    assert set(states(folder).values()) == {"done"}, errors


@pytest.mark.parametrize("saves", [True, False])
def test_ctrl_c_reaches_the_notebooks_a_second_one_ends_at_once_and_the_same_command_goes_on(saves, tmp_path):
    ends = "open('saved', 'w').close()\n        raise" if saves else "pass"
    caught = (
        "import time\nopen('begun', 'w').close()\n"
        f"while True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        {ends}"
    )
    folder = checkout(tmp_path / "checkout", caught)
    words = ("sweep", "grid", "--alpha", "0.4", "--seed", "1", "--workers", "1")
    sweep = start(folder, *words)
    until((folder / "begun").exists)
    time.sleep(0.5)  # until the notebook waits
    sweep.send_signal(signal.SIGINT)
    if not saves:
        time.sleep(2)
        assert sweep.poll() is None
        sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=30)
    assert sweep.returncode == 130 and "interrupted: the same command goes on from here" in errors
    assert (folder / "saved").exists() == saves and states(folder) == {"alpha_0.4-seed_1": "interrupted"}
    write_notebook(folder, TRIAL_NOTEBOOKS[2], "print('goes on')")
    _, errors = start(folder, *words).communicate(timeout=300)
    assert states(folder) == {"alpha_0.4-seed_1": "done"}, errors


def test_a_dask_cluster_loses_a_worker_and_all_cells_finish(tmp_path, monkeypatch):
    folder = checkout(tmp_path / "checkout", "import time; open(f'begun-{seed}', 'w').close(); time.sleep(3)")
    here = run_sweep.installed_versions()
    message = r"worker tcp://\S+ cannot take part: the version of torch is '\S+' there and '1.0'"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster.scheduler_address, set_as_default=False) as client:
            pids = client.run(os.getpid)
        words = ("sweep", "grid", "--alpha", "0.4", "--seed", "1-2", "--scheduler", cluster.scheduler_address)
        sweep = start(folder, *words)
        until((folder / "begun-1").exists)
        os.kill(next(iter(pids.values())), signal.SIGKILL)  # its nanny starts another worker
        out, errors = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, errors
        assert set(states(folder).values()) == {"done"} and "2 seeds (1, 2)" in out
        monkeypatch.setattr(run_sweep, "installed_versions", lambda: here | {"torch": "1.0"})  # not in the workers
        with pytest.raises(UserError, match=message):
            remote_client(cluster.scheduler_address, folder / "papermill_runs" / "grid").__enter__()


def test_a_scheduler_that_does_not_answer_is_named_within_seconds(tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError, match="--scheduler 'tcp://127.0.0.1:9' does not answer within 5 s"):
        remote_client("tcp://127.0.0.1:9", tmp_path).__enter__()
    with pytest.raises(UserError, match="--scheduler 'nonsense://x' does not answer"):
        remote_client("nonsense://x", tmp_path).__enter__()
    assert time.monotonic() - started < 15


def test_status_reads_files_alone_and_names_what_is_not_there(finished, monkeypatch, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    run = Run(Path("papermill_runs/grid/alpha_0.4-seed_2"))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    run.write(".holder.json", json.dumps({"process": 1, "host": "elsewhere", "since": "2020-01-01 00:00:00"}))
    run.note_notebook("03_ra_rlhf", state="running", seconds=0.0)
    Path(run.folder, "training", "ra_rlhf.checkpoints").mkdir(parents=True)
    run.write("training/ra_rlhf.jsonl", '{"iteration": 7}\n')
    told = rarlhf("status", "grid").stdout
    assert "running  03_ra_rlhf: ra_rlhf 7/40" in told and "1 done, 1 running" in told
    for path in run.folder.rglob("*"):
        os.utime(path, (time.time() - 1000, time.time() - 1000))  # as if nothing had been written for long
    assert "silent" in rarlhf("status", "grid").stdout
    assert "grid: sweep, 1 done, 1 silent" in rarlhf("status").stdout
    Run.open("by_hand", {"name": "pocket"}, 1, Path("papermill_runs"))  # as in JupyterLab, where no notebook is noted
    assert "by_hand: waiting" in rarlhf("status").stdout
    one = rarlhf("status", "grid/alpha_0.4-seed_2").stdout
    assert "03_ra_rlhf" in one and "ra_rlhf 7/40" in one
    assert before.keys() <= {path for path in run.folder.rglob("*")}
    assert "there is no such run or sweep" in rarlhf("status", "other", status=2).stderr
