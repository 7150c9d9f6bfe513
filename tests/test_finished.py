"""Finished means finished: a stage is done again only when something changed that determines its files."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from small_run import SMALL
from tiny import tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import json_lines
from rarlhf_nb.lab import artifacts
from rarlhf_nb.lab.artifacts import SWEEP, read_records
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.export import export_policy
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.stages.training import training_stage

TINY = SMALL | {"evaluation.repeated_prompts": 0, "sweep.alphas": []}
EVERYTHING = ["data", "sft", "train rlhf", "evaluate rlhf"]


@pytest.fixture
def work(checkout, monkeypatch):
    """A function that runs data, SFT, and the training and evaluation of `methods`; returns the stages it worked on."""
    worked = []
    do = Stage.do
    monkeypatch.setattr(Stage, "do", lambda stage: worked.append(stage.name) or do(stage))

    def run(name="mine", methods=("rlhf",), seed=1, **overrides):
        worked.clear()
        experiment = Experiment.open("pocket", name, seed, TINY | overrides)
        experiment.prepare_data()
        experiment.train_sft()
        for method in methods:
            experiment.train(method)
            experiment.evaluate(method)
        return list(worked)

    return run


def test_a_further_alpha_trains_that_alpha_alone(work):
    assert work() == EVERYTHING
    assert work() == []
    further = {"sweep.alphas": [0.2]}
    assert work(methods=("rlhf", "ra_rlhf@0.2"), **further) == ["train ra_rlhf@0.2", "evaluate ra_rlhf@0.2"]
    assert Run(Path("papermill_runs/mine")).manifest["settings"]["sweep"] == {"alphas": [0.2]}


def test_only_what_depends_on_a_change_is_done_again(work):
    work()
    run = Run(Path("papermill_runs/mine"))
    policy = run.path("policies/rlhf/model.safetensors")
    before = policy.read_bytes()
    policy.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert work() == ["train rlhf"] and policy.read_bytes() == before  # the evaluation still belongs to that policy
    run.path("evaluation/rlhf.parquet").unlink()
    assert work() == ["evaluate rlhf"]
    run.forget()
    assert work() == EVERYTHING


def test_a_change_of_the_library_repeats_the_work_and_a_figures_does_not(work, monkeypatch, tmp_path, capsys):
    package = tmp_path / "package"
    shutil.copytree(artifacts.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(artifacts, "PACKAGE", package)

    def change(module):
        with (package / module).open("a") as file:
            file.write("# another comment\n")
        artifacts.code_hash.cache_clear()

    artifacts.code_hash.cache_clear()
    assert work() == EVERYTHING
    change("lab/plots/figures.py")
    change("lab/cli.py")
    assert work() == []
    change("lab/evaluation/evaluate.py")
    assert work() == ["evaluate rlhf"]
    change("trainer.py")
    with monkeypatch.context() as patch:
        patch.setenv("RARLHF_KEEP", "1")
        capsys.readouterr()
        assert work() == []
        assert "train rlhf: kept although the code has changed; it took" in capsys.readouterr().out
        assert work(**{"ppo.kl_coef": 0.3}, name="other") == EVERYTHING
    assert work() == EVERYTHING
    artifacts.code_hash.cache_clear()


def test_the_runs_of_a_sweep_share_what_settings_do_not_tell_apart(work, capsys):
    Path("papermill_runs/grid").mkdir(parents=True)
    Path("papermill_runs/grid", SWEEP).write_text("{}")
    risk_averse = ("rlhf", "ra_rlhf", "ra_rlhf_ru")
    assert work("grid/a", risk_averse, **{"risk.alpha": 1.0}) == EVERYTHING  # at alpha = 1 all are the same training
    on_the_tail = [f"{verb} {method}" for method in risk_averse[1:] for verb in ("train", "evaluate")]
    assert work("grid/b", risk_averse) == on_the_tail
    assert "sft: taken from run a; it took" in capsys.readouterr().out
    assert work("grid/c", seed=2) == ["sft", "train rlhf", "evaluate rlhf"]  # every seed has the same data
    assert work("grid/d", **{"ppo.kl_coef": 0.3}) == ["train rlhf", "evaluate rlhf"]
    a, b = (Run(Path("papermill_runs/grid", name)) for name in "ab")
    assert {record.taken_from for record in read_records(b.folder)} == {None, "a"}
    weights = "policies/sft/model.safetensors"
    assert os.stat(a.path(weights)).st_ino == os.stat(b.path(weights)).st_ino  # a link, not a copy
    log = "training/rlhf.jsonl"
    assert a.path(log).read_bytes() == b.path(log).read_bytes() == a.path("training/ra_rlhf.jsonl").read_bytes()
    assert os.stat(a.path(log)).st_ino != os.stat(b.path(log)).st_ino  # a log is written in place
    a.path(weights).unlink()
    assert work("grid/e") == ["sft"]  # what is damaged is not taken


def test_a_run_computes_with_its_own_number_of_threads(checkout, monkeypatch):
    Experiment.open("pocket", "mine", 1, TINY | {"compute.threads": 2})  # as the pocket profiles say
    assert torch.get_num_threads() == Run(Path("papermill_runs/mine")).manifest["threads"] == 2
    for threads in (2, 1):
        torch.set_num_threads(threads)
        Experiment.open("pocket", "open", 1, TINY | {"compute.threads": None})
    assert torch.get_num_threads() == 2  # that of its first use
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.warns(UserWarning, match="compute.threads = 2, but this machine has 1 core:"):
        Experiment.reopen("mine")


def test_bf16_on_a_processor_without_it_is_warned_of(work, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False})
    with pytest.warns(UserWarning, match="policy.mixed_precision = 'bf16', but this machine has no GPU"):
        Experiment.open("pocket", "slow", 1, TINY | {"policy.mixed_precision": "bf16"})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Experiment.open("pocket", "fast", 1, TINY | {"policy.mixed_precision": "bf16"})


def test_a_killed_training_continues_inside_its_stage(work, capsys):
    work(methods=())
    experiment = Experiment.open("pocket", "mine", 1, TINY)
    checkpoints = training_stage(experiment, "rlhf").checkpoints("rlhf")
    checkpoints.seconds = 0
    for _, _ in zip(range(2), experiment.trainer("rlhf", checkpoints=checkpoints), strict=False):
        pass
    assert work() == ["train rlhf", "evaluate rlhf"]
    assert "resumed at iteration 2" in capsys.readouterr().out
    assert not list(experiment.run.path("training").glob("*.checkpoints"))
    rows = [json.loads(line) for line in experiment.run.path("training/rlhf.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]


def test_a_run_whose_texts_have_moved_is_reopened_and_says_so_when_it_needs_them(checkout, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "this film is good"}\n')
    tiny_policy().save(tmp_path / "tiny")
    moved = TINY | {"task.source": "files", "task.train_file": str(file), "task.test_file": str(file)}
    moved |= dict.fromkeys(("policy.model", "reward.model"), str(tmp_path / "tiny")) | {"task.prompt_length": 4}
    Experiment.open("pocket", "moved", 1, moved)
    file.unlink()
    assert Experiment.reopen("moved").profile.task.train_file == str(file)
    for ask in (lambda: Experiment.open("pocket", "moved", 1, moved), Experiment.reopen("moved").prepare_data):
        with pytest.raises(UserError, match=r"task.train_file = '.*texts.jsonl'.*[Nn]o such file"):
            ask()


def test_a_model_or_data_file_that_changes_in_its_place_is_noticed(work, tmp_path):
    world, own = pocket_world("pocket-imdb"), {"task.source": "files"}
    for name, folder in {"policy": world.policy, "reward": world.reward}.items():
        own[f"{name}.model"] = str(shutil.copytree(folder, tmp_path / name))
    for split in ("train", "test"):
        texts = [{"text": text.text, "label": text.label} for text in world.texts(split, 300)]
        own[f"task.{split}_file"] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text(json_lines(texts))
    assert work(**own) == EVERYTHING and work(**own) == []
    os.utime(tmp_path / "reward" / "model.safetensors", ns=(1, 1))  # another file of the same size
    assert work(**own) == EVERYTHING
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json_lines([{"text": "this film is superb . " * 12, "label": 1}]))
    assert "data" in work(methods=(), **own)


def test_of_two_runs_of_a_sweep_one_works_on_a_stage(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with artifacts.stage_lock(tmp_path / "cell", "print"), pytest.raises(Timeout):
        FileLock(tmp_path / artifacts.SHARED / "print.lock").acquire(timeout=0)


def test_a_policy_of_the_users_own_is_measured_beside_the_methods(work, tmp_path):
    work()
    policies = Path("papermill_runs/mine/policies").absolute()
    model = AutoModelForCausalLM.from_pretrained(policies / "rlhf")
    model.save_pretrained(policies / "theirs")
    AutoTokenizer.from_pretrained(policies / "rlhf").save_pretrained(policies / "theirs")
    experiment = Experiment.reopen("mine")
    theirs, rlhf = experiment.evaluate("theirs"), experiment.evaluate("rlhf")
    assert theirs["completion"].tolist() == rlhf["completion"].tolist()
    rows = experiment.report().main()
    assert rows.loc["theirs"].tolist() == rows.loc["RLHF"].tolist()
    with pytest.raises(UserError, match="method = 'theirs' was not made by this run.*/policies/theirs itself"):
        export_policy(experiment, "theirs", tmp_path / "copy")
    Path("papermill_runs/mine/evaluation/theirs.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"theirs.parquet is damaged.*: `experiment.evaluate\('theirs'\)` makes"):
        experiment.tables()
    assert experiment.evaluate("theirs").equals(theirs)
    tiny_policy().save(policies / "other")
    with pytest.raises(UserError, match="method = 'other': its tokenizer has another vocabulary"):
        experiment.evaluate("other")
    for verb in (experiment.evaluate, experiment.train, experiment.trainer):
        with pytest.raises(UserError, match=r"method = \['rlhf'\]: give one method by its key"):
            verb(["rlhf"])
