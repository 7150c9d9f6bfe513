import os
import subprocess
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import notebooks, run_sweep
from rarlhf_nb.lab.cli import app, join_pairs, parse_parameters


def rarlhf(*words, cwd=None):
    command = [sys.executable, "-m", "rarlhf_nb.lab.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_what_the_command_line_says_reaches_the_run(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RARLHF_KEEP", "")
    told = []
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *arguments, **options: told.append(arguments))
    words = ["run", "--profile", "pocket-rtp", "--run", "mine", "--seed", "7", "--processes", "2", "--force", "--keep"]
    answer = CliRunner().invoke(app, join_pairs([*words, "-p", "risk.alpha", "0.3"]))
    assert answer.exit_code == 0, answer.output
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
        (["run", "-p", "risk.alpha", "0"], "risk.alpha = 0"),
        (["run", "-p", "risk.alpa", "0.3"], "did you mean 'risk.alpha'?"),
        (["run", "-p", "risk.warm_start", "99"], "lower warm_start"),
        (["run", "-p", "risk.alpha"], "the value is missing; write -p KEY VALUE"),
        (["run", "--profile", "imdb-smollm2"], "task.train_file is missing"),
        (["run", "-p", "task.train_file", "[x"], "-p task.train_file '[x': this is not a YAML value"),
        (["run", "--run", "../up"], "run = '../up'"),
        (["sweep", "grid", "--alpha", "0.4,1.5"], "risk.alpha = 1.5: input should be less than or equal to 1"),
        (["sweep", "grid", "--alpha", "0.4,0"], "risk.alpha = 0.0: input should be greater than 0"),
        (["sweep", "grid", "--alpha", "0.4,0.40"], "--alpha: 0.4 is listed twice; remove one of them"),
        (["sweep", "grid", "--alpha", "high"], "--alpha 'high' is not a number"),
        (["sweep", "grid", "--seed", "3-1"], "--seed '3-1' is neither a seed nor a range"),
        (["sweep", "grid", "--seed", "1,2,1"], "--seed: 1 is listed twice"),
        (["sweep", "grid", "--seed", "-1"], "--seed '-1' is neither a seed"),
        (
            ["sweep", "grid", "-p", "ppo.kl_coeff", "0.1"],
            "'ppo.kl_coeff' is unknown (did you mean 'ppo.kl_coef'?)",
        ),
        (["sweep", "grid", "-p", "ppo.kl_coef", "0.1,0.1"], "-p ppo.kl_coef: 0.1 is listed twice"),
        (["sweep", "grid", "-p", "ppo.learning_rate", "1e-4,0.0001"], "-p ppo.learning_rate: 0.0001 is listed twice"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "2020-99-99,0.1"], "this is not a list of YAML values"),
        (["sweep", "grid", "--alpha", "0.1234567,0.1234568"], "would share the folder alpha_0.123457-seed_1"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "0.1,yes"], "ppo.kl_coef"),
        (["sweep", "grid", "-p", "ppo.kl_coef"], "-p ppo.kl_coef: the values are missing"),
        (["sweep", "grid", "-p", "ppo.kl_coef", "[0.1"], "this is not a list of YAML values"),
        (["sweep", "grid", "-p", "risk.alpha", "0.1"], "-p risk.alpha: a sweep takes its α from --alpha"),
        (["sweep", "grid", "--profile", "pockets"], "profile = 'pockets' is unknown"),
        (["sweep", "grid", "--seed", "1-10000"], "the grid has 10000 runs: make it smaller, or say --yes"),
        (["sweep", "grid", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "give one of them"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_before_any_work(words, message, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for module, work in ((notebooks, "run_notebooks"), (run_sweep, "run_sweep")):
        monkeypatch.setattr(module, work, lambda *arguments, **options: pytest.fail("work began"))
    answer = CliRunner().invoke(app, join_pairs(words))
    assert answer.exit_code == 2 and answer.stderr.startswith("error: ") and message in answer.stderr, answer.output
    assert answer.stderr.count("\n") == 1 and answer.stdout == "" and not (tmp_path / "papermill_runs").exists()


def test_the_process_ends_with_2_and_no_traceback():
    answer = rarlhf("run", "--profile", "pokcet")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: profile = 'pokcet'") and "Traceback" not in answer.stderr


def test_a_run_folder_of_other_parameters_is_refused(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_broken.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    first = rarlhf("run", cwd=tmp_path)
    assert first.returncode == 2 and "01_broken.ipynb has no cell with parameters" in first.stderr
    second = rarlhf("run", "-p", "risk.alpha", "0.3", cwd=tmp_path)
    assert second.returncode == 2 and "risk.alpha is 0.4 in the folder, 0.3 now" in second.stderr


def test_a_notebook_that_fails_exits_with_1_and_says_where(tmp_path):
    (tmp_path / "notebooks").mkdir()
    parameters = nbformat.v4.new_code_cell(
        "profile = ''\nrun = ''\nseed = 1\noverrides = {}", metadata={"tags": ["parameters"]}
    )
    nb = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("{}['absent']")])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, tmp_path / "notebooks" / "01_broken.ipynb")
    answer = rarlhf("run", cwd=tmp_path)
    assert answer.returncode == 1 and "\nerror: 01_broken failed with KeyError: 'absent'" in f"\n{answer.stderr}"
    failed = tmp_path / "papermill_runs" / "pocket-imdb" / "01_broken.failed.ipynb"
    assert answer.stderr.endswith(f"{failed}\n") and failed.exists() and "papermill/execute.py" not in answer.stderr


def test_profiles_lists_every_profile_even_those_that_need_files():
    answer = rarlhf("profiles")
    assert answer.returncode == 0 and "pocket-imdb" in answer.stdout and "imdb-smollm2" in answer.stdout


@pytest.mark.parametrize("value", ["2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "0x_", "1" * 5000, "[" * 2000])
def test_a_value_that_only_looks_like_yaml_is_named(value):
    with pytest.raises(UserError, match="-p risk.alpha .*is not a YAML value"):
        parse_parameters([f"risk.alpha={value}"])


def test_pairs_are_read_as_yaml():
    words = ["run", "-p", "risk.alpha", "0.2", "-p", "task.train_file=a b.csv", "--force"]
    joined = join_pairs(words)
    assert joined == ["run", "-p", "risk.alpha=0.2", "-p", "task.train_file=a b.csv", "--force"]
    assert parse_parameters(["risk.alpha=0.2", "policy.lora={r: 4, alpha: 8}", "ppo.kl_target=null"]) == {
        "risk.alpha": 0.2,
        "policy.lora": {"r": 4, "alpha": 8},
        "ppo.kl_target": None,
    }
