"""A run folder belongs to one set of settings, and its files are written whole or not at all."""

import json

import pandas as pd
import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.runs import Run

SETTINGS = {"risk": {"alpha": 0.4, "rho": 0.5}, "name": "pocket"}


def test_a_run_folder_records_its_settings_versions_and_notebooks(tmp_path):
    run = Run.open("mine", SETTINGS, seed=3, root=tmp_path)
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["settings"] == SETTINGS and manifest["seed"] == 3
    assert manifest["versions"]["torch"].startswith("2.") and manifest["notebooks"] == {}
    run.note_notebook("01_data", state="done", seconds=1.5)
    assert Run.open("mine", SETTINGS, seed=3, root=tmp_path).manifest["notebooks"]["01_data"]["seconds"] == 1.5


def test_without_git_no_commit_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Run.open("mine", SETTINGS, seed=3, root=tmp_path).manifest["git_commit"] is None


def test_a_folder_of_other_parameters_is_refused_and_left_alone(tmp_path):
    run = Run.open("mine", SETTINGS, seed=3, root=tmp_path)
    run.write("report.md", "kept")
    other = SETTINGS | {"risk": {"alpha": 0.2, "rho": 0.5}}
    with pytest.raises(
        UserError, match=r"'mine'.*seed is 3 in the folder, 4 now; risk.alpha is 0.4 in the folder, 0.2 now.*Choose"
    ):
        Run.open("mine", other, seed=4, root=tmp_path)
    assert run.path("report.md").read_text() == "kept" and run.manifest["seed"] == 3


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b/c", "with space", "n" * 300])
def test_a_name_that_cannot_be_a_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="run = .*starts with a letter or digit"):
        Run.open(name, SETTINGS, seed=1, root=tmp_path)
    with pytest.raises(UserError, match="run = 'a/b': there is no sweep 'a'"):
        Run.open("a/b", SETTINGS, seed=1, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named_with_the_notebook_that_makes_it(tmp_path):
    run = Run.open("mine", SETTINGS, seed=1, root=tmp_path)
    with pytest.raises(UserError, match="data/train.parquet is missing.*run notebook 01_data_prep first"):
        run.require("data/train.parquet", made_by="01_data_prep")


def test_writes_are_whole_or_not_at_all(tmp_path):
    run = Run.open("mine", SETTINGS, seed=1, root=tmp_path)
    table = pd.DataFrame({"prompt": ["a", "b"], "reward": [1.0, -2.0]})
    pd.testing.assert_frame_equal(pd.read_parquet(run.write("evaluation/rlhf.parquet", table)), table)
    with pytest.raises(TypeError):
        run.write("manifest.json", {"bad": object()})
    assert run.manifest["seed"] == 1
    assert [path.name for path in run.path("evaluation").iterdir()] == ["rlhf.parquet"]
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]
