"""What a run reads back is what its stages wrote: every damage is noticed, named in one line, and made good."""

import json
import random
import shutil

import pandas as pd
import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, json_lines
from rarlhf_nb.lab.artifacts import check_files, damaged_files, dumps_with_checksum, loads_with_checksum, read_record
from rarlhf_nb.lab.runs import Run

SETTINGS = {"risk": {"alpha": 0.4, "rho": 0.5}, "name": "pocket"}
TABLE = pd.DataFrame({"prompt": ["a", "b"] * 50, "reward": [1.0, -2.0] * 50})
FILES = ["evaluation/rlhf.parquet", "training/rlhf.jsonl", "policies/rlhf", "report.json"]


@pytest.fixture
def run(tmp_path):
    run = Run.open("mine", {"risk": {"alpha": 0.4}}, seed=1, root=tmp_path)
    run.write("evaluation/rlhf.parquet", TABLE)
    rows = [{"iteration": 1, "kl": 0.1 + 0.2}, {"iteration": 2, "kl": float("nan")}]
    run.write("training/rlhf.jsonl", json_lines(rows))
    with run.new_folder("policies/rlhf") as folder:
        (folder / "model.safetensors").write_bytes(bytes(range(200)))
    run.write("report.json", {"methods": {}})
    run.record(FILES, stage="train rlhf", fingerprint="f", notebook="02_baseline_rlhf", seconds=1.0)
    return run


def damage(content: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.5:
        return content[: dice.randrange(len(content))]
    place = dice.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]


def test_what_was_written_is_read_to_the_last_digit(run, tmp_path):
    pd.testing.assert_frame_equal(run.read("evaluation/rlhf.parquet"), TABLE)
    rows = run.read("training/rlhf.jsonl")
    assert rows["kl"].iloc[0] == 0.1 + 0.2 and rows["kl"].isna().tolist() == [False, True]
    assert run.read("report.json") == {"methods": {}}
    record = read_record(run.folder, "train rlhf")
    assert record.versions["torch"] and damaged_files(run.folder, record) == []
    assert record.files["policies/rlhf/model.safetensors"] == checksum(run.path("policies/rlhf/model.safetensors"))
    shutil.copytree(run.folder, tmp_path / "copy")
    assert Run(tmp_path / "copy").read("report.json") == {"methods": {}}


@pytest.mark.parametrize("name", FILES)
def test_every_bit_flip_and_truncation_of_a_file_is_noticed_on_reading(name, run):
    path = run.path(name) if run.path(name).is_file() else run.path(name, "model.safetensors")
    whole, dice = path.read_bytes(), random.Random(0)

    def read():
        return run.read(name) if run.path(name).is_file() else run.require(name, made_by="02_baseline_rlhf")

    for _ in range(25):
        path.write_bytes(damage(whole, dice))
        with pytest.raises(UserError, match=rf"^{name}\S* is damaged or missing in run 'mine': .*02_baseline_rlhf.*$"):
            read()
    path.unlink()
    with pytest.raises(
        UserError, match="is damaged or missing|is missing in run 'mine': run notebook 02_baseline_rlhf"
    ):
        read()


def test_damage_of_manifest_and_record_is_noticed(run):
    dice = random.Random(1)
    manifest, record = run.path("manifest.json"), run.path("stages/train_rlhf.json")
    whole = manifest.read_bytes()
    for _ in range(50):
        manifest.write_bytes(damage(whole, dice))
        with pytest.raises(UserError, match=r"^manifest.json of run 'mine' is damaged: delete that file .*$"):
            run.manifest  # noqa: B018
    manifest.write_bytes(whole)
    assert run.manifest["seed"] == 1
    whole = record.read_bytes()
    for _ in range(50):
        record.write_bytes(damage(whole, dice))
        assert read_record(run.folder, "train rlhf") is None  # the stage is done again


def test_a_seal_holds_for_exactly_what_was_sealed():
    content = {"a": [1, 0.1, None], "b": {"c": "é"}}
    text = dumps_with_checksum(content)
    assert loads_with_checksum(text) == content
    for other in (text.replace("0.1", "0.2"), text.replace("  ", " ", 1), json.dumps(content), "[]", ""):
        with pytest.raises(ValueError):
            loads_with_checksum(other)


def test_what_no_stage_recorded_is_read_unless_it_is_no_table(run):
    run.path("evaluation/mine.parquet").write_bytes(b"PAR1 is all that is left")
    check_files(run.folder, "evaluation/mine.parquet")
    with pytest.raises(UserError, match="evaluation/mine.parquet of run 'mine' cannot be read .*: delete it"):
        run.read("evaluation/mine.parquet")
    run.path("training/mine.jsonl").write_text('{"iteration": 1}\n{"iter')  # as a killed training leaves it
    assert run.read("training/mine.jsonl")["iteration"].tolist() == [1]
    run.path("training/mine.jsonl").write_text('{"iteration": 1}\n{"iter\n')
    with pytest.raises(UserError, match="training/mine.jsonl of run 'mine' cannot be read"):
        run.read("training/mine.jsonl")


def test_a_folder_is_replaced_whole_or_not_at_all(run):
    with pytest.raises(OSError), run.new_folder("policies/rlhf") as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert damaged_files(run.folder, read_record(run.folder, "train rlhf")) == []
    with pytest.raises(TypeError):
        run.write("manifest.json", {"bad": object()})
    assert run.manifest["seed"] == 1 and not list(run.folder.glob(".*"))
    with run.new_folder("policies/rlhf") as folder:
        (folder / "other.json").write_text("{}")
    assert [path.name for path in run.path("policies").iterdir()] == ["rlhf"]
    assert [path.name for path in run.path("policies/rlhf").iterdir()] == ["other.json"]


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
