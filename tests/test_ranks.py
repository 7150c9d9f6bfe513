"""A training on several processes follows the same trajectory as on one; what cannot work is said on every process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from ranked import train_all
from safetensors.torch import load_file
from small_run import SMALL

from rarlhf_nb.core.checkpoint import Checkpoints
from rarlhf_nb.running.experiment import Experiment
from rarlhf_nb.running.launch import failure

TESTS = Path(__file__).parent
SAME = {
    "tail selection": {"risk": {"alpha": 0.3}},  # keeps 8, 6, 3, 3, 3
    "Rockafellar-Uryasev": {
        "risk": {"alpha": 0.3, "estimator": "rockafellar_uryasev"},
        "ppo": {"kl_target": 2.0, "kl_horizon": 100, "max_grad_norm": 0.5},
    },
    "one kept": {"risk": {"alpha": 0.125}, "spread": 1.0},
    "seven prompts": {"ppo": {"batch_size": 7, "micro_batch_size": None}},
    "less memory on one": {"ppo": {"micro_batch_size": "auto"}, "on rank 1": {"fits": 1}},
}
SINGLE = {"float32": {"dtype": "float32"}}
WRONG = {
    "other settings": ({"on rank 1": {"ppo": {"learning_rate": 0.5}}}, "ppo.learning_rate is 0.5 on rank 1 and 0.01"),
    "too few": ({"ppo": {"batch_size": 2}}, "ppo.batch_size = 2: each of the 3 processes"),
    "missing reward": ({"missing_on": 1}, "rank 1: .*finite"),
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
        launch(root / "3", 3, SAME | {name: wrong[name] for name in ("other settings", "too few")}),
        launch(root / "fsdp", 2, {"tail selection": SAME["tail selection"] | {"sharded": True}}),
    ]
    train_all(root / "1", SAME | SINGLE)
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return root


def weights(folder):
    return [load_file(path) for path in sorted(folder.glob("weights-*.safetensors"))]


def seen(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen-*.json"))]


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("training", SAME)
def test_several_processes_follow_the_trajectory_of_one(folders, processes, training):
    alone, together = folders / "1" / training, folders / str(processes) / training
    assert seen(together) == seen(alone) * processes  # prompts, the tokens of the completions and the tail
    assert len(weights(together)) == processes
    for found in weights(together):
        assert difference(found, weights(alone)[0]) < 1e-9
    logs = [pd.read_json(folder / "log.jsonl", lines=True).drop(columns="seconds") for folder in (alone, together)]
    pd.testing.assert_frame_equal(*logs, rtol=0, atol=1e-9)


def test_in_single_precision_the_logs_agree(folders):
    logs = [pd.read_json(folders / count / "float32" / "log.jsonl", lines=True) for count in "12"]
    pd.testing.assert_frame_equal(*(log.drop(columns="seconds") for log in logs), rtol=0, atol=1e-4)


def test_a_tail_may_lie_in_the_share_of_one_process(folders):
    kept = [len(iteration["tail"]) for iteration in seen(folders / "3" / "one kept")[0]]
    assert kept[-1] == 1 < 3  # and two processes update on an episode that does not count


def test_fsdp_on_the_cpu_follows_it_as_well(folders):
    assert (folders / "fsdp" / "tail selection" / "engine-0.txt").read_text() == "FullyShardedDataParallel"
    sharded, alone = (weights(folders / name / "tail selection")[0] for name in ("fsdp", "1"))
    assert difference(sharded, alone) < 1e-6


@pytest.mark.parametrize("training, processes", [("other settings", 3), ("too few", 3), ("missing reward", 2)])
def test_what_cannot_work_is_said_on_every_process(folders, training, processes):
    told = sorted((folders / str(processes) / training).glob("error-*.txt"))
    assert len(told) == processes
    for path in told:
        assert re.search(WRONG[training][1], path.read_text())


def test_a_killed_process_ends_the_others_and_is_named(tmp_path):
    training = {"slow": {"ppo": {"iterations": 500}, "seconds": 0.02, "checkpoints": True}}
    process = launch(tmp_path / "run", 2, training)
    victim = tmp_path / "run" / "slow" / "process-1.txt"
    while not victim.exists() or not victim.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    started = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - started < 30
    message = str(failure(process.returncode, output.splitlines()))
    assert "rank 1" in message and "SIGKILL" in message
    assert Checkpoints(tmp_path / "run" / "slow" / "checkpoints").latest() is not None
    lines = (tmp_path / "run" / "slow" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, len(lines) + 1))


def test_a_run_trains_on_two_processes_and_shows_their_log(tmp_path, monkeypatch, capfd):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data_prep.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    logs = []
    for processes in (1, 2):
        experiment = Experiment.open("pocket", f"on_{processes}", overrides=SMALL | {"compute.processes": processes})
        experiment.prepare_data()
        experiment.train_sft()
        logs.append(experiment.train("ra_rlhf").drop(columns="seconds"))
        experiment.saved("ra_rlhf")
    pd.testing.assert_frame_equal(*logs, rtol=0, atol=1e-4)
    assert "ra_rlhf: iteration 4 of 4" in capfd.readouterr().out
    experiment.train("ra_rlhf")
    assert "train ra_rlhf: kept" in capfd.readouterr().out
