"""A training that is interrupted, killed or whose checkpoint is damaged ends like one that never was."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_classifier import labelled
from test_critic_free import train
from tiny import good_minus_bad, ppo_trainer, quark_trainer, saved_policy
from tiny_classifier import classifier_tokenizer, distilbert

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.data.classifier import train_classifier
from rarlhf_nb.errors import UserError
from rarlhf_nb.settings import ConditionedSettings, LoraSettings, SFTSettings

LORA = LoraSettings(r=2, alpha=4)


def rewards_after(each):
    def reward(**texts):
        each()
        return good_minus_bad(**texts)

    return reward


def loop(make, folder, checkpoints=None, lora=None, each=lambda: None, **changes):
    log_file = folder / "log.jsonl"
    policy, options = saved_policy(folder, lora), {"log_file": log_file, "checkpoints": checkpoints}
    trainer = make(policy, rewards_after(each), **options, **changes)
    trainer.train()
    assert [json.loads(line) for line in log_file.read_text().splitlines()] == trainer.rows
    return trainer.policy, trainer.rows


SETTINGS = {"iterations": 7, "kl_target": 2.0, "kl_horizon": 100}
ppo = partial(ppo_trainer, **SETTINGS)
groups = ConditionedSettings(groups=3, iterations=7)
conditioned = partial(ppo_trainer, kind=AlphaConditionedTrainer, conditioned=groups)
quark = partial(quark_trainer, steps=7, sample_interval=3, batch_size=4, learning_rate=1e-2, warmup_steps=2)


def critic_free(algorithm, folder, checkpoints=None, lora=None, each=lambda: None):
    options = {"log_file": folder / "log.jsonl", "checkpoints": checkpoints}
    policy, log = train(folder, algorithm, rewards_after(each), saved_policy(folder, lora), **options)
    return policy, log.to_dict("records")


def sft(folder, checkpoints=None, lora=None, each=lambda: None, seed=1, **changes):
    policy = saved_policy(folder, lora)
    policy.model.register_forward_pre_hook(lambda model, _: each() if model.training else None)  # in every step
    settings = {"learning_rate": 1e-2, "batch_size": 10, "epochs": 2.5, "max_length": 16} | changes
    texts = ["the film is very good", "the plot was good", "very good film"] * 20
    log = train_sft(policy, texts, SFTSettings(**settings), seed, checkpoints=checkpoints)
    assert not policy.training
    return policy, log


def classifier(folder, checkpoints=None, **changes):
    """Two epochs of seven steps."""
    model = distilbert()
    model.distilbert.embeddings.requires_grad_(False)
    options = {"epochs": 2, "batch_size": 16, "head_learning_rate": 1e-2, "windows": (3, 6), "seed": 3} | changes
    texts = (labelled(100, 1), labelled(50, 2), folder / "classifier")
    metrics = train_classifier(model, classifier_tokenizer(), *texts, checkpoints=checkpoints, **options)
    return model, [metrics]


PPO, QUARK, CONDITIONED = (partial(loop, make) for make in (ppo, quark, conditioned))
GRPO, RLOO = (partial(critic_free, algorithm) for algorithm in ("grpo", "rloo"))
DROPPING = LoraSettings(r=2, alpha=4, dropout=0.2)
# the last step of an epoch has one batch alone
ACCUMULATED = {"batch_size": 7, "gradient_accumulation_steps": 2}
PACKED = {"batch_size": 4, "packing": True, "max_steps": 12}
KINDS = {  # and steps after which to stop: of SFT within an epoch, at its end, within the second one, at the end of all
    "ppo": (PPO, (1, 4)),
    "ppo with lora": (partial(PPO, lora=LORA), (1, 4)),
    "conditioned": (CONDITIONED, (4,)),
    "conditioned with lora": (partial(CONDITIONED, lora=LORA), (4,)),
    "quark": (QUARK, (1, 4)),
    "quark with lora": (partial(QUARK, lora=LORA), (1, 4)),
    "grpo": (GRPO, (6, 12)),
    "grpo with lora": (partial(GRPO, lora=DROPPING), (6,)),
    "rloo": (RLOO, (6,)),
    "rloo with lora": (partial(RLOO, lora=DROPPING), (6,)),
    "sft": (sft, (3, 6, 8, 15)),
    "sft with lora": (partial(sft, lora=DROPPING), (8,)),
    "sft, accumulated": (partial(sft, **ACCUMULATED), (3, 5)),
    "sft, packed": (partial(sft, **PACKED), (5, 12)),
    "classifier": (classifier, (3, 7, 14)),
}


class Killed(Exception):
    """The end of a process."""


class Deadly(Checkpoints):
    """Checkpoints after every step, until the process dies while it saves the first one after the one named."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder, seconds=0)
        self.last = last

    def complete(self, folder, state):
        if int(folder.name.removeprefix("checkpoint-")) > self.last:
            raise Killed
        super().complete(folder, state)


@pytest.fixture(autouse=True)
def no_pickle_runs_code(monkeypatch):
    load = torch.load

    def watched(*arguments, weights_only, **options):
        assert weights_only
        return load(*arguments, weights_only=True, **options)

    monkeypatch.setattr(torch, "load", watched)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training gives that nothing interrupts: its model and its log."""

    @cache
    def trained(kind):
        disturb(6)
        return KINDS[kind][0](tmp_path_factory.mktemp("whole"))

    return trained


def disturb(seed):
    """Let everything random start anywhere: it must not matter."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def every_step(folder):
    return Checkpoints(folder / "checkpoints", seconds=0)


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def same(one, other):
    """Whether two trainings gave the same weights, and the same log in the same order of its keys."""
    weights = all(a.equal(b) for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True))
    return weights and json.dumps(without_seconds(one[1])) == json.dumps(without_seconds(other[1]))


@pytest.mark.parametrize("kind, stopped_after", [(kind, stop) for kind in KINDS for stop in KINDS[kind][1]])
def test_a_resumed_training_is_the_uninterrupted_one_number_for_number(kind, stopped_after, whole, tmp_path, capsys):
    train, _ = KINDS[kind]
    expected = whole(kind)
    try:
        train(tmp_path, Deadly(tmp_path / "checkpoints", stopped_after))
    except Killed:
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"iteration": 99}\n{"iter')  # written after the checkpoint, and cut off by the kill
    disturb(5)
    capsys.readouterr()
    resumed = train(tmp_path, every_step(tmp_path))
    assert re.search(rf"^[\w -]+: resumed at (iteration|step) {stopped_after}$", capsys.readouterr().out, re.MULTILINE)
    assert same(resumed, expected)
    if kind == "classifier":
        assert {path.name for path in (tmp_path / "classifier").iterdir()} == {
            "config.json", "metrics.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
        }  # fmt: skip


def test_the_global_random_states_are_those_of_the_training(tmp_path):
    def draws(checkpoints=None):
        found = []
        sft(tmp_path, checkpoints, each=lambda: found.append((random.random(), np.random.random())))
        return found

    disturb(6)
    expected = draws()
    with pytest.raises(Killed):
        draws(Deadly(tmp_path / "checkpoints", 4))
    disturb(5)
    found = draws(every_step(tmp_path))
    assert found == expected[4:] and len(found) == 11


@pytest.mark.parametrize("train, last, suffixes", [(PPO, 7, set()), (sft, 15, {".pt", ".pth"})], ids=["ppo", "sft"])
def test_the_last_two_are_kept_and_rare_ones_are_not_saved(train, last, suffixes, tmp_path):
    checkpoints = every_step(tmp_path)
    train(tmp_path, checkpoints)
    assert {path.name for path in checkpoints.folder.iterdir()} == {f"checkpoint-{last - 1}", f"checkpoint-{last}"}
    found = {path.suffix for path in checkpoints.folder.rglob("*") if path.is_file()}
    assert found == {".json", ".safetensors"} | suffixes
    checkpoints.clear()
    assert not checkpoints.folder.exists() and checkpoints.newest() is None
    rare = Checkpoints(tmp_path / "rare", seconds=600)
    train(tmp_path, rare)
    assert not rare.folder.exists()


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys):
    with pytest.raises(Killed):
        sft(tmp_path, Deadly(tmp_path / "checkpoints", 8))
    tensors = tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        resumed = sft(tmp_path, every_step(tmp_path))
    assert "SFT: resumed at step 7\n" in capsys.readouterr().out
    assert same(resumed, whole("sft"))


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("ppo", {"iterations": 9}),
        ("sft", {"learning_rate": 2e-2}),
        ("sft", {"seed": 2}),
        ("classifier", {"windows": (3, 5)}),
        ("classifier", {"head_learning_rate": 2e-2}),
    ],
)
def test_checkpoints_of_other_settings_are_refused(kind, changes, tmp_path):
    train, _ = KINDS[kind]
    with pytest.raises(Killed):
        train(tmp_path, Deadly(tmp_path / "checkpoints", 1))
    with pytest.raises(UserError, match=r"checkpoints belong to a training with other settings: delete that folder"):
        train(tmp_path, every_step(tmp_path), **changes)


@pytest.mark.parametrize("kind, saved", [("ppo", 3), ("sft", 3), ("grpo", 6)])  # GRPO makes two steps an iteration
def test_ctrl_c_saves_after_the_step_and_a_second_one_stops_at_once(kind, saved, whole, tmp_path):
    rare, steps = Checkpoints(tmp_path / "checkpoints", seconds=600), []

    def interrupt(step, times):
        steps.append(1)
        for _ in range(times if len(steps) == step else 0):
            os.kill(os.getpid(), signal.SIGINT)

    for step, times in ((3, 1), (2, 2)):
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            KINDS[kind][0](tmp_path, rare, each=partial(interrupt, step, times))
        assert len(steps) == step and rare.newest().name == f"checkpoint-{saved}"  # the fifth never ended
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(KINDS[kind][0](tmp_path, rare), whole(kind))


TRAINING = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_resumable import KINDS, every_step
folder = Path(sys.argv[1])
print("ready", flush=True)
policy, log = KINDS[sys.argv[2]][0](folder, every_step(folder))
policy.save(folder / "policy")
(folder / "rows.json").write_text(json.dumps(log))
"""


@pytest.mark.parametrize("kind", ["ppo", "sft"])
def test_a_training_killed_at_random_moments_ends_like_one_that_was_not(kind, whole, tmp_path):
    dice, kills = random.Random(1), []
    policy, rows = whole(kind)
    policy.save(tmp_path / "whole")
    saved_policy(tmp_path)
    command = [sys.executable, "-c", TRAINING, str(tmp_path), kind, str(Path(__file__).parent)]
    for _ in range(2):
        before = saved(tmp_path)
        training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        training.stdout.readline()
        while saved(tmp_path) == before and training.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.2))
        training.kill()
        kills.append(training.wait() == -signal.SIGKILL)
        training.stdout.close()
    assert any(kills)
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ": resumed at " in finished.stdout
    assert without_seconds(json.loads((tmp_path / "rows.json").read_text())) == without_seconds(rows)
    for name in ("model.safetensors", "value_head.safetensors"):
        assert (tmp_path / "policy" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def saved(folder: Path) -> list[Path]:
    """The checksums of the checkpoints."""
    return sorted((folder / "checkpoints").glob("*/checksums.json"))
