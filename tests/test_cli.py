"""The command line: what it is told reaches the run, and bad input is one line."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from small_run import rarlhf, write_notebook

from rarlhf_nb.lab import notebooks, run_sweep
from rarlhf_nb.lab.artifacts import run_lock
from rarlhf_nb.lab.cli import join_pairs
from rarlhf_nb.lab.profiles import load_profile, read_settings
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.status import run_display


def test_what_the_command_line_says_reaches_the_run(checkout, monkeypatch):
    told = []
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *arguments, **options: told.append(arguments))
    words = ["run", "--profile", "pocket-rtp", "--run", "mine", "--seed", "7", "--processes", "2", "--force", "--keep"]
    rarlhf(*words, "-p", "risk.alpha", "0.3")
    ((run, files, parameters, force),) = told
    overrides = {"risk.alpha": 0.3, "compute.processes": 2}
    assert parameters == {"profile": "pocket-rtp", "run": "mine", "seed": 7, "overrides": overrides}
    assert os.environ["RARLHF_KEEP"] == "1"
    assert force and [path.stem for path in files] == ["01_data_prep"]
    settings = run.manifest["settings"]
    assert run.manifest["seed"] == 7 and settings["name"] == "pocket-rtp" and settings["compute"]["processes"] == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "--profile", "pokcet"], "profile = 'pokcet' is unknown (did you mean 'pocket'?)"),
        (["run", "-p", "risk.alpha"], "the value is missing; write -p KEY VALUE"),
        (["run", "-p", "task.train_file", "[x"], "-p task.train_file '[x': this is not a YAML value"),
        (["run", "--run", "../up"], "run = '../up'"),
        (["sweep", "grid", "--alpha", "0.4,1.5"], "risk.alpha = 1.5: input should be less than or equal to 1"),
        (["sweep", "grid", "--alpha", "0.4,0.40"], "--alpha: 0.4 is listed twice; remove one of them"),
        (["sweep", "grid", "--alpha", "high"], "--alpha 'high' is not a number"),
        (["sweep", "grid", "--seed", "3-1"], "--seed '3-1' is neither a seed nor a range"),
        (["sweep", "grid", "--seed", "1,2,1"], "--seed: 1 is listed twice"),
        (["sweep", "grid", "--seed", "-1"], "--seed '-1' is neither a seed"),
        (["sweep", "grid", "-p", "ppo.kl_coeff", "0.1"], "'ppo.kl_coeff' is unknown (did you mean 'ppo.kl_coef'?)"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "0.1,0.1"], "-p ppo.kl_coef: 0.1 is listed twice"),
        (["sweep", "grid", "-p", "ppo.learning_rate", "1e-4,0.0001"], "-p ppo.learning_rate: 0.0001 is listed twice"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "2020-99-99,0.1"], "this is not a list of YAML values"),
        (["sweep", "grid", "--alpha", "0.1234567,0.1234568"], "would share the folder alpha_0.123457-seed_1"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "0.1,yes"], "ppo.kl_coef"),
        (["sweep", "grid", "-p", "ppo.kl_coef"], "-p ppo.kl_coef: the values are missing"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "[0.1"], "this is not a list of YAML values"),
        (["sweep", "grid", "-p", "risk.alpha", "0.1"], "-p risk.alpha: a sweep takes its α from --alpha"),
        (["sweep", "grid", "--seed", "1-10000"], "the grid has 10000 runs: make it smaller, or say --yes"),
        (["sweep", "grid", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "give one of them"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_before_any_work(words, message, checkout, monkeypatch):
    for module, work in ((notebooks, "run_notebooks"), (run_sweep, "run_sweep")):
        monkeypatch.setattr(module, work, lambda *arguments, **options: pytest.fail("work began"))
    answer = rarlhf(*words, status=2)
    assert answer.stderr.startswith("error: ") and message in answer.stderr, answer.output
    assert answer.stderr.count("\n") == 1 and answer.stdout == "" and not (checkout / "papermill_runs").exists()


def test_the_process_ends_with_2_and_no_traceback():
    command = [sys.executable, "-m", "rarlhf_nb.lab.cli", "run", "--profile", "pokcet"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: profile = 'pokcet'") and "Traceback" not in answer.stderr


def test_a_run_folder_of_other_parameters_is_refused(checkout):
    (checkout / "notebooks" / "01_data_prep.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    assert "01_data_prep.ipynb has no cell with parameters" in rarlhf("run", status=2).stderr
    answer = rarlhf("run", "-p", "risk.alpha", "0.3", status=2)
    assert "risk.alpha is 0.4 in the folder, 0.3 now" in answer.stderr


def test_a_notebook_that_fails_exits_with_1_and_says_where(checkout):
    write_notebook(checkout, "01_data_prep", "{}['absent']")
    answer = rarlhf("run", status=1)
    assert "\nerror: 01_data_prep failed with KeyError: 'absent'" in f"\n{answer.stderr}"
    failed = checkout / "papermill_runs" / "pocket-imdb" / "01_data_prep.failed.ipynb"
    assert answer.stderr.endswith(f"{failed}\n") and failed.exists() and "papermill/execute.py" not in answer.stderr


def test_profiles_lists_every_profile_even_those_that_need_files():
    listed = rarlhf("profiles").stdout
    assert "pocket-imdb" in listed and "imdb-smollm2" in listed


def test_pairs_are_read_as_yaml():
    words = ["run", "-p", "risk.alpha", "0.2", "-p", "task.train_file=a b.csv", "--force"]
    assert join_pairs(words) == ["run", "-p", "risk.alpha=0.2", "-p", "task.train_file=a b.csv", "--force"]
    pairs = ["risk.alpha=0.2", "policy.lora={r: 4, alpha: 8}", "ppo.kl_target=null"]
    settings = {"risk.alpha": 0.2, "policy.lora": {"r": 4, "alpha": 8}, "ppo.kl_target": None}
    assert read_settings(pairs) == settings
    several = ["ppo.kl_coef=0.1,0.2", "policy.lora={r: 4, alpha: 8}", "sweep.alphas=[0.2, 0.1]"]
    settings = {"ppo.kl_coef": [0.1, 0.2], "policy.lora": [{"r": 4, "alpha": 8}], "sweep.alphas": [[0.2, 0.1]]}
    assert read_settings(several, lists=True) == settings


def test_a_terminal_shows_the_trainings_under_way(checkout):
    run = Run.open("mine", load_profile("pocket").model_dump(mode="json"), seed=1)
    run.note_notebook("03_ra_rlhf", state="running", seconds=0.0)
    for method in ("quark", "rlhf"):  # one by the notebook, one ahead of it
        run.path("training", f"{method}.checkpoints").mkdir(parents=True)
        run.write(f"training/{method}.jsonl", '{"iteration": 7}\n')
    console = Console(force_terminal=True, width=200, file=io.StringIO())
    with run_lock(run.folder), run_display(console, run, ["03_ra_rlhf"]):
        pass
    assert "03_ra_rlhf: quark 7/160, rlhf 7/40, 00:00" in console.file.getvalue()
