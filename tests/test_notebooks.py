"""The notebooks as they are committed, and the main job from the command line to the report, made small."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from small_run import SMALL, rarlhf
from transformers import AutoModelForCausalLM

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.methods import METHODS, method_name
from rarlhf_nb.lab.notebooks import check_parameters
from rarlhf_nb.lab.plots import renderer
from rarlhf_nb.lab.profiles import load_profile

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_clean_and_thin(path):
    nb = nbformat.read(path, 4)
    check_parameters([path], {"profile": "", "run": "", "seed": 1, "overrides": {}})
    assert nb.metadata["kernelspec"]["name"] == "python3"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(
        line.startswith(("def ", "class ")) for cell in code if not tagged(cell, "exercise") for line in lines(cell)
    )
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    for part in ("**You will**", "**Takes**", "**Predict first:**", "(eq", "What was learnt", "**Try:**"):
        assert part in prose
    titles = re.findall(r"<details><summary><b>(.+?)</b></summary>\n\n", prose)
    assert len(titles) == prose.count("<details") == prose.count("</details>")
    assert len(set(titles) - {"One answer"}) >= 1  # of a question, not of an exercise


def test_the_course_takes_ninety_minutes_and_says_where_its_words_are():
    tops = [nbformat.read(path, 4).cells[0].source for path in NOTEBOOKS]
    minutes = [re.search(r"\*\*Takes\*\* (\d+) minutes of your time, .+ of computing", top) for top in tops]
    assert sum(int(found[1]) for found in minutes) == 90
    assert all("end of 01 explains all terms" in top for top in tops[1:])


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def lines(cell):
    return cell.source.splitlines()


# Mistakes that one makes, and that a check must not let pass.
MISTAKES = {
    "01_data_prep": ["my_count, my_share, my_tail_mean = 2, 0.25, -2.65"],  # below, not at or below
    "02_baseline_rlhf": [
        "my_dense_rewards, my_return = [0.2, -0.1, -0.96], -0.86",  # the sign of the KL term
        "def my_advantages(rewards, values, gamma, lam):\n"
        "    return [sum(rewards[t:]) - value for t, value in enumerate(values)]",  # lambda = 1 whatever is asked
    ],
    "03_ra_rlhf": [
        "import numpy as np\nfrom rarlhf_nb.risk import tail_count\n"
        "def my_cvar(rewards, alpha):\n    return np.mean(sorted(rewards)[: tail_count(alpha, len(rewards))])",
        "def my_kept(m, *settings):\n    return SoftRiskSchedule(*settings).kept(m + 1)",  # m from 0
        "my_mask, my_ru_reward = [False, True, False, True, True], 0.3 - 0.7",
    ],
    "04_other_baselines": [
        "my_logits, my_probability = [2, -2, -1], 0.018",  # the experts exchanged
        "my_bins = [1, 2, 0, 1, 1, 2, 0]",  # 0 the worst
    ],
    "05_analysis": [
        "my_difference, my_interval, my_excludes_0 = 0.208, [-0.36, 0.78], False",  # not paired
        "my_dist_2 = 4 / 6",  # over pairs
    ],
    "06_alpha_explorer": [
        "my_var, my_tail_mean, my_cvar = -1.3, -1.65, -1.3",  # rounded down; the boundary whole
        "my_last_kept, my_fifth_kept = 25, 124",
    ],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_checks_of_a_notebook_know_right_from_wrong(path, capsys):
    cells = nbformat.read(path, 4).cells
    at = [position for position, cell in enumerate(cells) if tagged(cell, "exercise")]
    assert [position + 1 for position in at] == [p for p, cell in enumerate(cells) if tagged(cell, "check")]
    assert len(at) == len(MISTAKES[path.stem])
    for number, (position, mistake) in enumerate(zip(at, MISTAKES[path.stem], strict=True), start=1):
        text, exercise, check, answer = cells[position - 1 : position + 3]
        assert f"**Exercise {number}.**" in text.source
        assert answer.source.startswith("<details><summary><b>One answer</b></summary>")
        (solution,) = re.findall(r"```python\n(.+?)```", answer.source, re.DOTALL)

        def verdicts(*codes, check=check.source):
            names = {}
            for code in (imports(cells), *codes, check):
                exec(code, names)
            return names, capsys.readouterr().out.splitlines()

        names, unanswered = verdicts(exercise.source)
        mine = [name for name in names if name.startswith("my_")]
        assert len(unanswered) == len(mine) and all(line.endswith("not answered yet") for line in unanswered)
        solved, right = verdicts(exercise.source, solution)
        assert len(right) == len(mine) and all(": right" in line for line in right)
        assert all(": not yet" in line for line in verdicts(exercise.source, mistake)[1])
        for name in mine:  # one of them wrong, the others right
            _, found = verdicts(exercise.source, solution, f"from {__name__} import off\n{name} = off({name})")
            assert [line.startswith(name) and "not yet" in line for line in found].count(True) == 1
            assert sum(": right" in line for line in found) == len(mine) - 1


def off(answer):
    """`answer` and 1, whatever it is."""
    if callable(answer):
        return lambda *arguments: np.asarray(answer(*arguments)) + 1
    return np.asarray(answer) + 1


def imports(cells):
    """The import lines of the notebook's own import cell: what an exercise may take for granted."""
    setup = next(cell.source for cell in cells if "Experiment.open" in cell.source)
    return "\n".join(
        ast.unparse(line) for line in ast.parse(setup).body if isinstance(line, ast.Import | ast.ImportFrom)
    )


@pytest.mark.parametrize(
    ("stem", "before", "first"),
    [
        ("02_baseline_rlhf", "", "01_data_prep"),
        ("03_ra_rlhf", "", "01_data_prep"),
        ("03_ra_rlhf", "01", "02_baseline_rlhf"),
        ("04_other_baselines", "", "01_data_prep"),
        ("05_analysis", "", "02_baseline_rlhf"),
        ("06_alpha_explorer", "", "02_baseline_rlhf"),
    ],
)
def test_a_notebook_out_of_order_names_the_one_to_run_first(stem, before, first, tmp_path, monkeypatch):
    def work(*anything, **more):
        raise AssertionError("long work before the question whether there is anything to work on")

    (tmp_path / "notebooks").symlink_to(REPOSITORY / "notebooks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(renderer, "use_renderer", lambda: None)
    monkeypatch.setattr(go.Figure, "show", lambda figure: None)
    for name in ("workspace.load_policy", "workspace.load_reward", "stages.training.train_sft"):
        monkeypatch.setattr(f"rarlhf_nb.lab.{name}", work)
    monkeypatch.setattr("rarlhf_nb.lab.stages.training.choose_prefix", work)
    names = {}
    if before:  # what notebook 01 leaves
        data = tmp_path / "papermill_runs" / "pocket-imdb" / "data"
        data.mkdir(parents=True)
        pd.DataFrame({"prompt": ["a"], "prompt_score": [0.0]}).to_parquet(data / "train.parquet")
    with pytest.raises(UserError, match=f"run notebook {first} first"):
        for cell in nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", 4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)


@pytest.mark.parametrize("methods", [[], ["grpo", "cvar_grpo"]])
def test_notebook_04_shows_the_last_iteration_of_each_method_without_a_critic(methods):
    profile = load_profile("pocket-imdb", {"critic_free.methods": methods})
    logs = {method: pd.DataFrame({"iteration": [1, 2], "kl": [0.0, size]}) for size, method in enumerate(methods)}
    names = {"experiment": SimpleNamespace(profile=profile, train=logs.get), "pd": pd}
    cells = nbformat.read(REPOSITORY / "notebooks" / "04_other_baselines.ipynb", 4).cells
    (source,) = [cell.source for cell in cells if cell.cell_type == "code" and "critic_free.methods" in cell.source]
    *statements, table = ast.parse(source).body
    exec("\n".join(map(ast.unparse, statements)), names)
    shown = eval(ast.unparse(table), names)
    assert shown.to_dict("index") == {method: {"iteration": 2, "kl": size} for size, method in enumerate(methods)}


SMALL_RUN = ("run", *(word for key, value in SMALL.items() for word in ("-p", key, str(value))))
ON_DEMAND = ("conditioned", "rloo", "cvar_rloo")  # not in the tables; notebook 03 measures the first by itself


def test_the_main_job_ends_with_a_table_of_all_methods(tmp_path, pictures_of_figures, monkeypatch):
    (tmp_path / "notebooks").symlink_to(REPOSITORY / "notebooks")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "rarlhf_nb.lab.cli", *SMALL_RUN]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    methods = [method for method in METHODS if method not in ON_DEMAND]
    for words in [*(f"| {method_name(method)}" for method in methods), "s in all"]:
        assert words in answer.stdout
    run = tmp_path / "papermill_runs" / "pocket-imdb"
    manifest = json.loads((run / "manifest.json").read_text())
    assert {name: entry["state"] for name, entry in manifest["notebooks"].items()} == dict.fromkeys(
        [path.stem for path in NOTEBOOKS], "done"
    )
    for method in methods:
        if METHODS[method].trained and method != "dexperts":  # which is two policies
            AutoModelForCausalLM.from_pretrained(run / "policies" / method)
        episodes = pd.read_parquet(run / "evaluation" / f"{method}.parquet")
        assert len(episodes) == 48 and {"prompt", "completion", "prompt_score", "reward", "kl"} <= set(episodes)
    alphas = pd.read_parquet(run / "evaluation" / "conditioned.alphas.parquet").groupby("alpha")
    assert alphas.size().to_dict() == {0.1: 48, 1.0: 48}
    log = [json.loads(line) for line in (run / "training" / "ra_rlhf.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in log] == [1, 2, 3, 4] and log[-1]["kept"] == 7  # ⌈0.4 · 16⌉
    report = json.loads((run / "report.json").read_text())
    rewards = pd.read_parquet(run / "evaluation" / "rlhf.parquet")["reward"]
    values = {(row["method"], row["baseline"], row["metric"]): row["value"] for row in report["numbers"]}
    assert values["rlhf", "", "reward"] == pytest.approx(rewards.mean())
    for path in NOTEBOOKS:
        outputs = [out for cell in nbformat.read(run / path.name, 4).cells for out in cell.get("outputs", [])]
        assert not any(out.output_type == "error" for out in outputs)
        assert not any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in outputs)
        assert (run / path.name).stat().st_size < 2_000_000
    figures = nbformat.read(run / "05_analysis.ipynb", 4)
    kinds = [kind for cell in figures.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 11
    if any(map(shutil.which, ("chromium", "google-chrome"))):
        assert kinds.count("image/png") == 11  # a picture beside each
    ledger = json.loads((run / "ledger.json").read_text())
    assert len(ledger) == 24 and not any(row["comparable"] for row in ledger)
    rarlhf("report", run.name)
    assert "Plotly.newPlot" in (run / "report.html").read_text()

    stages = {path: path.stat().st_mtime_ns for path in (run / "stages").iterdir()}
    without_pictures = os.environ | {"BROWSER_PATH": "none"}
    again = subprocess.run(command, env=without_pictures, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert stages == {path: path.stat().st_mtime_ns for path in (run / "stages").iterdir()}  # all are kept
    other = rarlhf(*SMALL_RUN, "-p", "risk.alpha", "0.2", status=2)
    assert "risk.alpha is 0.4 in the folder, 0.2 now" in other.stderr
