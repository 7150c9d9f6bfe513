"""SFT or a classifier's training that is interrupted or killed ends like one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_classifier import labelled
from tiny import tiny_policy
from tiny_classifier import classifier_tokenizer, distilbert

from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.checkpoint import Checkpoints, read_state
from rarlhf_nb.data.classifier import train_classifier
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import load_policy
from rarlhf_nb.settings import LoraSettings, SFTSettings

TEXTS = ["the film is very good", "the plot was good", "very good film"] * 20


def settings(**changes) -> SFTSettings:
    return SFTSettings(**{"learning_rate": 1e-2, "batch_size": 10, "epochs": 2.5, "max_length": 16} | changes)


ACCUMULATED = settings(batch_size=7, gradient_accumulation_steps=2)  # the last step of an epoch has one batch alone
KINDS = {  # and steps after which to stop: within an epoch, at its end, within the second one, at the end of all
    "plain": (settings(), (3, 6, 8, 15)),
    "lora": (settings(), (3, 6, 8, 15)),
    "accumulated": (ACCUMULATED, (3, 5, 8, 13)),
    "packed": (settings(batch_size=4, packing=True, max_steps=12), (3, 5, 8, 12)),
}


class Killed(Exception):
    """The end of a process."""


class Deadly(Checkpoints):
    """Checkpoints after every step, until the process dies while it saves the one after the one named."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder, seconds=0)
        self.last = last

    def complete(self, folder, state):
        if folder.name == f"checkpoint-{self.last + 1}":
            raise Killed
        super().complete(folder, state)


@pytest.fixture(autouse=True)
def no_pickle_runs_code(monkeypatch):
    load = torch.load

    def watched(*arguments, weights_only, **options):
        assert weights_only
        return load(*arguments, weights_only=True, **options)

    monkeypatch.setattr(torch, "load", watched)


def every_step(folder):
    return Checkpoints(folder / "checkpoints", seconds=0)


def disturb(seed):
    """Let everything random start anywhere: it must not matter."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def same_weights(one, other):
    return all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind, stopped_after", [(kind, stop) for kind in KINDS for stop in KINDS[kind][1]])
def test_resumed_sft_is_the_uninterrupted_one_number_for_number(kind, stopped_after, tmp_path, capsys):
    tiny_policy().save(tmp_path / "start")
    capsys.readouterr()
    args, (*_, steps) = KINDS[kind]
    lora = LoraSettings(r=2, alpha=4, dropout=0.2) if kind == "lora" else None

    def train(checkpoints=None):
        disturb(5 if checkpoints else 6)
        policy, draws = load_policy(tmp_path / "start", lora, seed=1), []
        policy.model.register_forward_pre_hook(lambda *_: draws.append((random.random(), np.random.random())))
        return policy, train_sft(policy, TEXTS, args, seed=1, checkpoints=checkpoints), draws

    whole, expected, expected_draws = train()
    assert [row["step"] for row in expected] == list(range(1, steps + 1))
    if stopped_after < steps:
        with pytest.raises(Killed):
            train(Deadly(tmp_path / "checkpoints", stopped_after))
    else:
        train(every_step(tmp_path))
    resumed, log, draws = train(every_step(tmp_path))
    assert capsys.readouterr().out == f"SFT: resumed at step {stopped_after}\n"
    assert log == expected and [list(row) for row in log] == [list(row) for row in expected]
    assert same_weights(whole, resumed) and not resumed.training
    assert draws == expected_draws[len(expected_draws) - len(draws) :] and bool(draws) == (stopped_after < steps)


def small_classifier(folder, checkpoints=None, **changes):
    """Two epochs of seven steps."""
    model = distilbert()
    model.distilbert.embeddings.requires_grad_(False)
    options = {"epochs": 2, "batch_size": 16, "head_learning_rate": 1e-2, "windows": (3, 6), "seed": 3} | changes
    disturb(5 if checkpoints else 6)
    metrics = train_classifier(
        model, classifier_tokenizer(), labelled(100, 1), labelled(50, 2), folder, checkpoints=checkpoints, **options
    )
    return model, metrics


@pytest.mark.parametrize("stopped_after", [3, 6, 7, 10, 14])
def test_a_resumed_classifier_is_the_uninterrupted_one_number_for_number(stopped_after, tmp_path, capsys):
    whole, expected = small_classifier(tmp_path / "whole")
    if stopped_after < 14:
        with pytest.raises(Killed):
            small_classifier(tmp_path / "parts", Deadly(tmp_path / "checkpoints", stopped_after))
    else:
        small_classifier(tmp_path / "parts", every_step(tmp_path))
    checkpoints = every_step(tmp_path)
    spent = read_state(checkpoints.newest())["own"]["seconds"]
    resumed, metrics = small_classifier(tmp_path / "parts", checkpoints)
    assert f"Classifier: resumed at step {stopped_after}\n" in capsys.readouterr().out
    assert metrics["accuracy"] == expected["accuracy"] and metrics["seconds"] >= round(spent, 1)
    assert same_weights(whole, resumed)
    files = [sorted(path.name for path in (tmp_path / part).rglob("*")) for part in ("whole", "parts")]
    assert files[0] == files[1]


def test_the_last_two_are_kept_and_rare_ones_are_not_saved(tmp_path):
    train_sft(tiny_policy(), TEXTS, settings(), seed=1, checkpoints=every_step(tmp_path))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-14", "checkpoint-15"]
    tensors_alone = {".safetensors", ".pt", ".pth"}  # the latter are unpickled by `no_pickle_runs_code`
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", *tensors_alone}
    rare = Checkpoints(tmp_path / "rare", seconds=600)
    train_sft(tiny_policy(), TEXTS, settings(), seed=1, checkpoints=rare)
    assert not rare.folder.exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    whole = tiny_policy()
    expected = train_sft(whole, TEXTS, settings(), seed=1)
    with pytest.raises(Killed):
        train_sft(tiny_policy(), TEXTS, settings(), seed=1, checkpoints=Deadly(tmp_path / "checkpoints", 8))
    tensors = tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    resumed = tiny_policy()
    with pytest.warns(UserWarning, match="is damaged"):
        log = train_sft(resumed, TEXTS, settings(), seed=1, checkpoints=every_step(tmp_path))
    assert "SFT: resumed at step 7\n" in capsys.readouterr().out
    assert log == expected and same_weights(whole, resumed)


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    def sft(seed=1, **changes):
        train_sft(
            tiny_policy(), TEXTS, settings(max_steps=2, **changes), seed, checkpoints=every_step(tmp_path / "sft")
        )

    def classifier(**changes):
        small_classifier(tmp_path / "model", every_step(tmp_path / "classifier"), **changes)

    sft()
    classifier()
    for train, changes in (
        (sft, {"learning_rate": 2e-2}),
        (sft, {"seed": 2}),
        (classifier, {"windows": (3, 5)}),
        (classifier, {"head_learning_rate": 2e-2}),
    ):
        with pytest.raises(
            UserError, match=r"checkpoints belong to a training with other settings: delete that folder"
        ):
            train(**changes)


def test_ctrl_c_saves_after_the_step_and_a_second_one_stops_at_once(tmp_path):
    rare = Checkpoints(tmp_path / "checkpoints", seconds=600)

    def train(interrupted_step, times):
        policy, steps = tiny_policy(), []

        def interrupt(*arguments):
            steps.append(1)
            for _ in range(times if len(steps) == interrupted_step else 0):
                os.kill(os.getpid(), signal.SIGINT)

        policy.model.register_forward_pre_hook(interrupt)
        log = train_sft(policy, TEXTS, settings(), seed=1, checkpoints=rare)
        return policy, log

    with pytest.raises(KeyboardInterrupt):
        train(interrupted_step=3, times=1)
    assert [row["step"] for row in read_state(rare.newest())["log"] if "loss" in row] == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        train(interrupted_step=2, times=2)
    assert rare.newest().name == "checkpoint-3"  # the fifth step never ended
    policy, log = train(interrupted_step=None, times=0)
    whole = tiny_policy()
    assert log == train_sft(whole, TEXTS, settings(), seed=1) and same_weights(whole, policy)


TRAINING = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_resumable import LONG, TEXTS, every_step, settings
from tiny import tiny_policy
from rarlhf_nb.baselines.sft import train_sft
folder, policy = Path(sys.argv[1]), tiny_policy()
print("ready", flush=True)
log = train_sft(policy, TEXTS, LONG, seed=1, checkpoints=every_step(folder))
policy.save(folder / "policy")
(folder / "log.json").write_text(json.dumps(log))
"""
LONG = settings(epochs=10)


def test_sft_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    dice, whole = random.Random(1), tiny_policy()
    expected = train_sft(whole, TEXTS, LONG, seed=1)
    whole.save(tmp_path / "whole")
    command = [sys.executable, "-c", TRAINING, str(tmp_path), str(Path(__file__).parent)]
    kills = []
    for _ in range(2):
        before = _saved(tmp_path)
        training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        training.stdout.readline()
        while _saved(tmp_path) == before and training.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.2))
        training.kill()
        kills.append(training.wait() == -signal.SIGKILL)
        training.stdout.close()
    assert any(kills)
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "SFT: resumed at step" in finished.stdout
    assert json.loads((tmp_path / "log.json").read_text()) == expected
    for name in ("model.safetensors", "value_head.safetensors"):
        assert (tmp_path / "policy" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _saved(folder: Path) -> list[Path]:
    """The checksums of the checkpoints."""
    return sorted((folder / "checkpoints").glob("*/checksums.json"))
