"""A training that is interrupted, killed or whose checkpoint is damaged ends like one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import PROMPTS, good_minus_bad, ppo_settings, risk_settings, sampling_settings, tiny_policy

from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.checkpoint import Checkpoint, Checkpoints
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import load_policy
from rarlhf_nb.settings import ConditionedSettings, LoraSettings, QuarkSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

SAMPLING = sampling_settings(minimum_completion_length=2)
TEXTS = Dataset.from_dict({"prompt": PROMPTS})


def cvar_ppo(policy, reward=good_minus_bad, args=None, **options):
    args = args or ppo_settings(iterations=7, kl_target=2.0, kl_horizon=100)
    return CVaRPPOTrainer(policy, reward, args, risk_settings(), SAMPLING, TEXTS, seed=1, **options)


def conditioned(policy, reward=good_minus_bad, **options):
    args, groups = ppo_settings(), ConditionedSettings(groups=3, iterations=7)
    options |= {"train_dataset": TEXTS, "seed": 1}
    return AlphaConditionedTrainer(policy, reward, args, risk_settings(), SAMPLING, groups, **options)


def quark(policy, reward=good_minus_bad, **options):
    args = QuarkSettings(quantiles=3, steps=7, sample_interval=3, batch_size=4, learning_rate=1e-2, warmup_steps=2)
    return QuarkTrainer(policy, reward, args, SAMPLING, TEXTS, seed=1, **options)


def every_iteration(folder):
    return Checkpoints(folder / "checkpoints", seconds=0)


def without_seconds(log_file):
    rows = [json.loads(line) for line in log_file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(params=["plain", "lora"])
def make_policy(request, tmp_path):
    tiny_policy().save(tmp_path / "start")
    lora = LoraSettings(r=2, alpha=4) if request.param == "lora" else None
    return lambda: load_policy(tmp_path / "start", lora, seed=1)


@pytest.mark.parametrize("make_trainer", [cvar_ppo, conditioned, quark])
@pytest.mark.parametrize("stopped_after", [1, 4])
def test_a_resumed_training_is_the_uninterrupted_one_number_for_number(
    make_trainer, stopped_after, make_policy, tmp_path, capsys
):
    whole = make_trainer(make_policy(), log_file=tmp_path / "whole.jsonl")
    expected = whole.train()
    log_file = tmp_path / "parts.jsonl"
    stopped = make_trainer(make_policy(), log_file=log_file, checkpoints=every_iteration(tmp_path))
    for _, _ in zip(range(stopped_after), stopped, strict=False):
        pass
    with log_file.open("a") as file:
        file.write('{"iteration": 99}\n{"iter')  # written after the checkpoint, and cut off by the kill
    torch.manual_seed(5)  # the global state must not matter
    resumed = make_trainer(make_policy(), log_file=log_file, checkpoints=every_iteration(tmp_path))
    found = resumed.train()
    assert f"resumed at {resumed.unit} {stopped.iteration}" in capsys.readouterr().out
    assert len(found) == 7 and found.drop(columns="seconds").equals(expected.drop(columns="seconds"))
    assert without_seconds(log_file) == without_seconds(tmp_path / "whole.jsonl")
    for (name, one), other in zip(whole.policy.named_parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_last_two_are_kept_and_none_after_the_training(tmp_path):
    checkpoints = every_iteration(tmp_path)
    cvar_ppo(tiny_policy(), checkpoints=checkpoints).train()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["checkpoint-6", "checkpoint-7"]
    assert {path.suffix for path in checkpoints.folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    checkpoints.clear()
    assert not checkpoints.folder.exists() and checkpoints.latest() is None
    rare = Checkpoints(tmp_path / "rare", seconds=600)
    cvar_ppo(tiny_policy(), checkpoints=rare).train()
    assert not rare.folder.exists()


def test_a_damaged_checkpoint_is_none_of_the_two_that_are_kept(tmp_path):
    checkpoints = every_iteration(tmp_path)
    for iteration in (10, 20):
        checkpoints.save(iteration, Checkpoint({}, {"iteration": iteration}))
    (checkpoints.folder / "checkpoint-20" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="is damaged: an older checkpoint is used"):
        assert checkpoints.latest().state["iteration"] == 10
    checkpoints.save(11, Checkpoint({}, {"iteration": 11}))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["checkpoint-10", "checkpoint-11"]


def test_ctrl_c_saves_after_the_iteration_and_a_second_one_stops_at_once(tmp_path):
    interrupts = {3: 1}

    def reward(prompts, completions):
        for _ in range(interrupts.get(trainer.iteration, 0)):
            os.kill(os.getpid(), signal.SIGINT)
        return good_minus_bad(prompts, completions)

    rare = Checkpoints(tmp_path / "checkpoints", seconds=600)
    trainer = cvar_ppo(tiny_policy(), reward, checkpoints=rare)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert rare.latest().state["iteration"] == 3 and len(trainer.rows) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts = {5: 2}
    trainer = cvar_ppo(tiny_policy(), reward, checkpoints=rare)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.iteration == 5 and len(trainer.rows) == 4  # the fifth never ended
    assert rare.latest().state["iteration"] == 3


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    checkpoints = every_iteration(tmp_path)
    next(iter(cvar_ppo(tiny_policy(), checkpoints=checkpoints)))
    with pytest.raises(UserError, match=r"checkpoints belong to a training with other settings: delete that folder"):
        cvar_ppo(tiny_policy(), args=ppo_settings(iterations=9), checkpoints=checkpoints).train()


def test_every_bit_flip_and_truncation_is_noticed_and_the_older_one_used(tmp_path):
    checkpoints, dice = every_iteration(tmp_path), random.Random(0)
    tensors = {"a": torch.arange(12.0), "b": torch.ones(3, dtype=torch.int64)}
    for iteration in (1, 2):
        checkpoints.save(iteration, Checkpoint(tensors, {"iteration": iteration, "rows": [{"kl": 0.125}]}))
    older, newer = sorted(checkpoints.folder.iterdir())
    files = sorted(newer.iterdir())
    whole = {path: path.read_bytes() for path in files}
    for _ in range(60):
        path = dice.choice(files)
        content = bytearray(whole[path])
        if dice.random() < 0.5:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        else:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged"):
            found = checkpoints.latest()
        assert found.state["iteration"] == 1 and torch.equal(found.tensors["a"], tensors["a"])
        path.write_bytes(whole[path])
    assert checkpoints.latest().state["iteration"] == 2
    for folder in (older, newer):
        (folder / "state.json").unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.latest() is None


TRAINING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import cvar_ppo, every_iteration
from tiny import tiny_policy
folder = Path(sys.argv[1])
trainer = cvar_ppo(tiny_policy(), log_file=folder / "log.jsonl", checkpoints=every_iteration(folder))
print("ready", flush=True)
trainer.train()
trainer.policy.save(folder / "policy")
"""


def test_a_training_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    dice = random.Random(1)
    whole = cvar_ppo(tiny_policy(), log_file=tmp_path / "whole.jsonl")
    whole.train()
    whole.policy.save(tmp_path / "whole")
    command, kills = [sys.executable, "-c", TRAINING, str(tmp_path), str(Path(__file__).parent)], 0
    for _ in range(3):
        training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        training.stdout.readline()
        time.sleep(dice.uniform(0.02, 0.3))
        training.kill()
        kills += training.wait() == -signal.SIGKILL
        training.stdout.close()
    assert kills > 0
    subprocess.run(command, check=True, capture_output=True)
    assert without_seconds(tmp_path / "log.jsonl") == without_seconds(tmp_path / "whole.jsonl")
    for name in ("model.safetensors", "value_head.safetensors"):
        assert (tmp_path / "policy" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
