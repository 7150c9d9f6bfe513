"""A training on several processes follows the same trajectory as on one; what cannot work is said on every process."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from ranked import train_all
from small_run import SMALL

from rarlhf_nb.lab.evaluation.tables import HELD_OUT, SAMPLES
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.processes import RankLost
from rarlhf_nb.lab.stages.training import training_stage
from rarlhf_nb.lab.verify import verify
from rarlhf_nb.risk_embedding import RiskEmbedding

TESTS = Path(__file__).parent
SAME = {
    "tail selection": {"risk": {"alpha": 0.3}},  # keeps 8, 6, 3, 3, 3
    "Rockafellar-Uryasev": {
        "risk": {"alpha": 0.3, "estimator": "rockafellar_uryasev", "above_share": 0.4},
        "ppo": {"kl_target": 2.0, "kl_horizon": 100, "max_grad_norm": 0.5},
    },
    "one kept": {"risk": {"alpha": 0.125}, "spread": 1.0},
    "conditioned on alpha": {"conditioned": {"groups": 3, "iterations": 5}},
    "seven prompts": {"ppo": {"batch_size": 7, "micro_batch_size": None}},
    "less memory on one": {"ppo": {"micro_batch_size": "auto"}, "on rank 1": {"fits": 1}},
    "Quark": {"quark": {"max_grad_norm": 0.5}},
    "Quark in two batches": {"quark": {"exploration_prompts": 7, "batch_size": 2}},  # with three, one has no episode
}
SINGLE = {"float32": {"dtype": "float32"}}
WRONG = {
    "other settings": ({"on rank 1": {"ppo": {"learning_rate": 0.5}}}, "ppo.learning_rate is 0.5 on rank 1 and 0.01"),
    "too few": ({"ppo": {"batch_size": 2}}, "ppo.batch_size = 2: each of the 3 processes"),
    "missing reward": ({"missing_on": 1}, "rank 1: .*finite"),
    "other packages": ({"on rank 1": {"versions": {"torch": "1.0"}}}, "the version of torch is '1.0' on rank 1"),
    "too few to explore": ({"quark": {"quantiles": 2, "exploration_prompts": 2}}, "each of the 3 processes"),
}


def launch(folder, processes, trainings):
    folder.mkdir()
    (folder / "trainings.json").write_text(json.dumps(trainings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, TESTS / "ranked.py", folder], env=environment, **streams)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each number of processes, with every training in it."""
    root = tmp_path_factory.mktemp("ranks")
    wrong = {name: settings for name, (settings, _) in WRONG.items()}
    started = [
        launch(root / "2", 2, SAME | SINGLE | {"missing reward": wrong["missing reward"]}),
        launch(root / "3", 3, SAME | {name: told for name, told in wrong.items() if name != "missing reward"}),
        launch(root / "fsdp", 2, {"tail selection": SAME["tail selection"] | {"sharded": True}}),
    ]
    train_all(root / "1", SAME | SINGLE)
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return root


def found(folder):
    """What each rank left: the name of its engine, what it has seen in each iteration, and its weights."""
    return [torch.load(path) for path in sorted(folder.glob("found-*.pt"))]


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def logs(folders, training, *counts):
    files = [folders / count / training / "log.jsonl" for count in counts]
    return [pd.read_json(file, lines=True).drop(columns="seconds") for file in files]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("training", SAME)
def test_several_processes_follow_the_trajectory_of_one(folders, processes, training):
    ((_, seen, weights),) = found(folders / "1" / training)
    together = found(folders / str(processes) / training)
    assert len(together) == processes
    for _, own_seen, own_weights in together:
        assert own_seen == seen  # prompts, tokens, and the tail or the quantiles
        assert difference(own_weights, weights) < 1e-9
    pd.testing.assert_frame_equal(*logs(folders, training, "1", str(processes)), rtol=0, atol=1e-9)


def test_in_single_precision_the_logs_agree(folders):
    pd.testing.assert_frame_equal(*logs(folders, "float32", "1", "2"), rtol=0, atol=1e-4)


def test_a_tail_may_lie_in_the_share_of_one_process(folders):
    _, seen, _ = found(folders / "3" / "one kept")[0]
    assert len(seen[-1]["tail"]) == 1 < 3  # and two processes update on an episode that does not count


def test_fsdp_on_the_cpu_follows_it_as_well(folders):
    (engine, _, sharded), (_, _, alone) = (found(folders / name / "tail selection")[0] for name in ("fsdp", "1"))
    assert engine == "FullyShardedDataParallel"
    assert difference(sharded, alone) < 1e-6


@pytest.mark.parametrize("training", WRONG)
def test_what_cannot_work_is_said_on_every_process(folders, training):
    processes = 2 if training == "missing reward" else 3
    told = sorted((folders / str(processes) / training).glob("error-*.txt"))
    assert len(told) == processes
    for path in told:
        assert re.search(WRONG[training][1], path.read_text())


@contextmanager
def once_it_changes(file, action):
    """Call `action` when the file is next written, while the block works."""
    before, ended = file.stat().st_mtime_ns if file.exists() else None, threading.Event()

    def watch():
        while not ended.wait(0.01):
            if file.exists() and file.stat().st_mtime_ns != before:
                return action()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def kill_rank_1():
    next(process for process in multiprocessing.active_children() if process.name == "rank 1").kill()


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def leave_conditioned(experiment):
    """The SFT policy, with an embedding of alpha that nobody trained."""
    policy = experiment.saved("sft")
    policy.risk = RiskEmbedding(policy.model.config.n_embd, alpha_min=0.1)
    policy.risk.weight.data.copy_(torch.linspace(-0.2, 0.2, policy.model.config.n_embd))
    policy.save(experiment.run.path("policies", "conditioned"))


def test_a_run_on_two_processes_is_interrupted_loses_one_and_ends_as_on_one(tmp_path, monkeypatch, capfd):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    settings = SMALL | {"ppo.iterations": 12}
    alone, experiment = (
        Experiment.open("pocket", f"on_{count}", overrides=settings | {"compute.processes": count}) for count in (1, 2)
    )
    for each in (alone, experiment):
        each.prepare_data()
        each.train_sft()
    log = experiment.run.path("training", "ra_rlhf.jsonl")
    with pytest.raises(KeyboardInterrupt), once_it_changes(log, press_ctrl_c):
        experiment.train("ra_rlhf")
    saved = training_stage(experiment, "ra_rlhf").checkpoints("ra_rlhf").latest().state["iteration"]
    assert 1 <= saved == len(log.read_text().splitlines()) < 12

    started = time.monotonic()
    with pytest.raises(RankLost, match="rank 1 was ended by SIGKILL"), once_it_changes(log, kill_rank_1):
        experiment.train("ra_rlhf")
    assert time.monotonic() - started < 60  # to start them as well
    assert not experiment.run.path("policies", "ra_rlhf").exists()
    capfd.readouterr()

    logs = [each.train("ra_rlhf").drop(columns="seconds") for each in (alone, experiment)]
    told = capfd.readouterr().out
    assert f"resumed at iteration {saved}" in told and "ra_rlhf: iteration 12 of 12" in told
    assert [len(log) for log in logs] == [12, 12]
    # float32 rounds otherwise on two processes, which grows with every iteration until another token is drawn
    pd.testing.assert_frame_equal(*(log.head(5) for log in logs), rtol=0, atol=1e-4)
    pd.testing.assert_frame_equal(*(each.train("quark").drop(columns="seconds") for each in (alone, experiment)))

    for each in (alone, experiment):
        leave_conditioned(each)
    for method in ("sft", "conditioned"):
        tables = [each.evaluate(method) for each in (alone, experiment)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    for ending in (SAMPLES, HELD_OUT):
        samples = [each.run.read(f"evaluation/sft{ending}") for each in (alone, experiment)]
        pd.testing.assert_frame_equal(*samples, check_exact=True)
    assert "processes started" not in capfd.readouterr().out  # those of the first training do all the rest

    findings = verify(experiment, iterations=2, say=print)
    assert findings and not [finding for finding in findings if not finding.agrees]
