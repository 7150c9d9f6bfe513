"""The notebooks as they are committed, and the main job from the command line to the report, made small."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from rarlhf_nb.batch import check_parameters
from rarlhf_nb.report import method_name

METHODS = ["base", "prompted", "sft", "dexperts", "quark", "rlhf", "ra_rlhf", "ra_rlhf_ru"]
REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SMALL = {
    "task.train_prompts": 64,
    "task.test_prompts": 48,
    "sft.texts": 64,
    "prompted.validation_prompts": 16,
    "dexperts.experts.texts": 64,
    "quark.steps": 4,
    "quark.sample_interval": 2,
    "quark.exploration_prompts": 16,
    "quark.batch_size": 8,
    "evaluation.repeated_prompts": 4,
    "evaluation.repeated_samples": 3,
    "ppo.iterations": 4,
    "ppo.batch_size": 16,
    "risk.warm_start": 1,
    "evaluation.held_out_texts": 16,
    "evaluation.resamples": 50,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_clean_and_thin(path):
    nb = nbformat.read(path, 4)
    check_parameters([path], {"profile": "", "run": "", "seed": 1, "overrides": {}})
    assert nb.metadata["kernelspec"]["name"] == "python3"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    for part in ("**Takes**", "redict", "What was learnt", "**Try:**"):
        assert part in prose


def rarlhf(folder, *words):
    parameters = [word for key, value in SMALL.items() for word in ("-p", key, str(value))]
    command = [sys.executable, "-m", "rarlhf_nb.cli", "run", *parameters, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_main_job_ends_with_a_table_of_all_methods(tmp_path):
    (tmp_path / "notebooks").symlink_to(REPOSITORY / "notebooks")
    answer = rarlhf(tmp_path)
    assert answer.returncode == 0, answer.stderr[-3000:]
    for words in [*(f"| {method_name(method)}" for method in METHODS), "s in all"]:
        assert words in answer.stdout
    run = tmp_path / "papermill_runs" / "pocket-imdb"
    manifest = json.loads((run / "manifest.json").read_text())
    assert {name: entry["state"] for name, entry in manifest["notebooks"].items()} == dict.fromkeys(
        [path.stem for path in NOTEBOOKS], "done"
    )
    for method in METHODS:
        if method not in ("base", "dexperts"):  # the one is elsewhere, the other is two
            AutoModelForCausalLM.from_pretrained(run / "policies" / method)
        episodes = pd.read_parquet(run / "evaluation" / f"{method}.parquet")
        assert len(episodes) == 48 and {"prompt", "completion", "prompt_score", "reward", "kl"} <= set(episodes)
    log = [json.loads(line) for line in (run / "training" / "ra_rlhf.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in log] == [1, 2, 3, 4] and log[-1]["kept"] == 7  # ⌈0.4 · 16⌉
    report = json.loads((run / "report.json").read_text())
    rewards = pd.read_parquet(run / "evaluation" / "rlhf.parquet")["reward"]
    assert report["methods"]["rlhf"]["reward"]["value"] == pytest.approx(rewards.mean())
    for path in NOTEBOOKS:
        executed = nbformat.read(run / path.name, 4)
        assert not any(out.output_type == "error" for cell in executed.cells for out in cell.get("outputs", []))
        assert (run / path.name).stat().st_size < 2_000_000
    figures = nbformat.read(run / "05_analysis.ipynb", 4)
    kinds = [kind for cell in figures.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 11
    ledger = json.loads((run / "ledger.json").read_text())
    assert len(ledger) == 24 and not any(row["comparable"] for row in ledger)
    page = subprocess.run(
        [sys.executable, "-m", "rarlhf_nb.cli", "report", run.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert page.returncode == 0 and "Plotly.newPlot" in (run / "report.html").read_text(), page.stderr

    again = rarlhf(tmp_path)
    assert again.returncode == 0 and "running" not in again.stdout and "unchanged" in again.stdout
    other = rarlhf(tmp_path, "-p", "risk.alpha", "0.2")
    assert other.returncode == 2 and "risk.alpha is 0.4 there, 0.2 asked" in other.stderr
