"""Processes that do stages ahead of the notebooks: who does what, what the notebook shows of it, and how they end."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from filelock import Timeout
from small_run import SMALL, rarlhf

from rarlhf_nb.lab.ahead import affordable_workers, do_stages, work_ahead
from rarlhf_nb.lab.artifacts import stage_lock
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.methods import BASELINES_NOTEBOOK, DATA_NOTEBOOK, SFT_NOTEBOOK
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.stages.training import sft_stage


@pytest.fixture
def experiment(checkout):
    return Experiment.open("pocket", "mine", overrides=SMALL)


def done(experiment):
    """The finished stages, in the order in which they were finished."""
    records = sorted((experiment.run.folder / "stages").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [path.stem for path in records]


def test_what_others_wait_for_comes_first_and_then_the_last(experiment):
    do_stages(experiment, [DATA_NOTEBOOK, SFT_NOTEBOOK])
    first, *others = done(experiment)
    assert (first, others) == ("data", ["sft", "train_rlhf", "evaluate_rlhf", "evaluate_sft", "evaluate_base"])


def test_a_stage_under_way_elsewhere_is_left_to_whoever_is_at_it(experiment):
    experiment.prepare_data()
    stage = sft_stage(experiment)
    with stage_lock(experiment.run.folder, stage.fingerprint):
        with pytest.raises(Timeout):
            stage.run(ahead=True)
        waiting = threading.Thread(target=experiment.train_sft)  # as the notebook, which waits
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and "sft" not in done(experiment)
    waiting.join()
    assert "sft" in done(experiment)


def test_the_notebook_shows_once_what_a_stage_said_ahead_of_it(experiment, monkeypatch, capsys):
    experiment.prepare_data()
    monkeypatch.setattr("rarlhf_nb.lab.stages.training.train_sft", lambda *_: print("two texts are long") or [])
    sft_stage(experiment).run(ahead=True)
    assert "two texts" not in capsys.readouterr().out
    sft_stage(experiment).run()
    assert "two texts are long\nsft: kept" in capsys.readouterr().out
    sft_stage(experiment).run()
    assert "two texts" not in capsys.readouterr().out


def test_a_stage_that_fails_is_left_to_its_notebook(experiment, monkeypatch):
    def fail(*anything):
        raise RuntimeError("no luck")

    monkeypatch.setattr("rarlhf_nb.lab.stages.training._choose_prefix", fail)
    stages = [stage for stage in experiment.stages() if stage.name in ("data", "choose prefix", "sft")]
    monkeypatch.setattr(Experiment, "stages", lambda self: stages)
    do_stages(experiment, [DATA_NOTEBOOK, SFT_NOTEBOOK, BASELINES_NOTEBOOK])
    assert done(experiment) == ["data", "sft"]
    with pytest.raises(RuntimeError, match="no luck"):
        experiment.choose_prefix()


def test_the_processes_end_with_the_block_and_with_the_command(experiment):
    with work_ahead(experiment.run, [Path(f"{SFT_NOTEBOOK}.ipynb")], workers=3):  # which wait for notebook 01
        helpers = psutil.Process().children()
        assert len(helpers) == 2 and all(helper.is_running() for helper in helpers)
    assert not any(helper.is_running() for helper in helpers)
    code = (
        "import os, psutil, sys; from pathlib import Path; from rarlhf_nb.lab.ahead import work_ahead\n"
        "from rarlhf_nb.lab.runs import Run\n"
        "with work_ahead(Run(Path(sys.argv[1])), [Path(sys.argv[2])], 2):\n"
        "    print(psutil.Process().children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(experiment.run.folder), f"{SFT_NOTEBOOK}.ipynb"]
    helper = int(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    if psutil.pid_exists(helper):
        psutil.Process(helper).wait(60)


def test_as_many_processes_as_cores_and_memory_allow(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100_000_000))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    memory = psutil.virtual_memory()

    def count(available, **settings):
        free = memory._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
        return affordable_workers(load_profile("pocket", {"compute.threads": 2} | settings))

    assert count(100e9) == 4  # cores / threads
    assert count(5e9) == 3  # of 1.5 GB each
    assert count(9e9, **{"policy.model": str(tmp_path)}) == 3  # and 12 times the weights
    assert count(1e9) == 1
    assert count(100e9, **{"compute.threads": None}) == 1  # torch takes all cores
    assert count(100e9, **{"compute.processes": 2}) == 1
    assert count(100e9, **{"policy.model": "gpt2"}) == 1  # a hub's, of unknown size


def test_more_processes_than_the_machine_can_bear_are_not_started(checkout, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    started = []
    monkeypatch.setattr("rarlhf_nb.lab.notebooks.run_notebooks", lambda *_, workers, **more: started.append(workers))
    answer = rarlhf("run", "--workers", "7")
    assert "--workers 7: the cores and the free memory of this machine allow 1" in answer.stdout and started == [1]
