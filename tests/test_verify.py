"""`rarlhf verify` repeats a run: an untouched one agrees in every digit, and any other is told what differs."""

import json
import shutil

import pytest
from small_run import SMALL
from typer.testing import CliRunner

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import dumps_with_checksum
from rarlhf_nb.lab.cli import app
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.verify import SCRATCH, verify
from rarlhf_nb.monitor import INCIDENTS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout with one small finished run."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = Experiment.open("pocket", "mine", 1, SMALL)
        experiment.prepare_data()
        experiment.train_sft()
        for method in ("rlhf", "ra_rlhf_ru@0.2", "quark", "conditioned"):
            experiment.train(method)
        for method in ("base", "rlhf", "conditioned"):
            experiment.evaluate(method)
        experiment.run.write(f"training/ra_rlhf_ru@0.2{INCIDENTS}", "{}\n")
    return folder


@pytest.fixture
def experiment(finished, tmp_path, monkeypatch):
    """The run, in a checkout of its own."""
    shutil.copytree(finished, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    return Experiment.reopen("mine")


def differences(found):
    return {finding.what: finding.difference for finding in found if not finding.agrees}


def test_an_untouched_run_agrees_and_is_only_read(experiment):
    before = {path: path.read_bytes() for path in experiment.run.folder.rglob("*") if path.is_file()}
    found = verify(experiment, say=lambda stage: None)
    assert differences(found) == {}
    files = {finding.what for finding in found}
    assert {"data/test.parquet", "policies/sft/model.safetensors", "training/quark.jsonl"} <= files
    assert {"policies/ra_rlhf_ru@0.2/model.safetensors", "evaluation/base.parquet", "evaluation/rlhf.parquet"} <= files
    assert {"policies/conditioned/model.safetensors", "evaluation/conditioned.alphas.parquet"} <= files
    after = {path: path.read_bytes() for path in experiment.run.folder.rglob("*") if path.is_file()}
    assert {path.name: after[path] for path in before} == {path.name: before[path] for path in before}
    assert not experiment.run.path(SCRATCH).exists()


def test_the_first_iterations_alone_show_a_changed_log(experiment):
    log = experiment.run.path("training/rlhf.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[1]["kl"] += 1e-9
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "training/rlhf.jsonl" not in differences(verify(experiment, 1, say=lambda stage: None))
    found = differences(verify(experiment, 2, say=lambda stage: None))
    assert list(found) == ["training/rlhf.jsonl"]
    assert found["training/rlhf.jsonl"].startswith(f"row 2, kl: {rows[1]['kl']} in the run, ")
    assert found["training/rlhf.jsonl"].endswith("the file was changed after its stage had written it")


def test_a_run_made_with_another_seed_and_other_versions_is_told_what_differs(experiment):
    run = experiment.run
    versions = run.manifest["versions"] | {"torch": "1.0"}
    run.write(
        "manifest.json",
        dumps_with_checksum({k: v for k, v in run.manifest.items()} | {"seed": 2, "versions": versions}),
    )
    answer = CliRunner().invoke(app, ["verify", "mine", "--iterations", "1"])
    assert answer.exit_code == 1
    assert "policies/sft/model.safetensors: the weights differ" in answer.stdout
    assert "training/rlhf.jsonl: row 1, " in answer.stdout and "data/train.parquet: agrees" in answer.stdout
    assert "version of torch: 1.0 in the run, 2.13.0" in answer.stdout


def test_a_run_of_another_version_or_without_a_training_is_refused(experiment):
    run = experiment.run
    run.note(versions=run.manifest["versions"] | {"rarlhf_nb": "0.1.0"})
    with pytest.raises(UserError, match="was made with rarlhf_nb 0.1.0, and this is .*: install that version"):
        verify(experiment)
    Run.open("empty", run.manifest["settings"], 1)
    with pytest.raises(UserError, match="run = 'empty' has no training yet: run it first"):
        verify(Experiment.reopen("empty"))
