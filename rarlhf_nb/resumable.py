"""A training on transformers' `Trainer` that goes on where it was interrupted, number for number.

The checkpoints of `Trainer` itself are pickles. `ResumableTrainer` puts `Checkpoints` in their place: it overrides the
methods with which `Trainer` saves and loads one, and leaves to `Trainer` when to call them.
"""

import dataclasses
import json
import random
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from rarlhf_nb.checkpoint import (
    Checkpoint,
    Checkpoints,
    load_optimizer,
    load_parameters,
    optimizer_tensors,
    parameter_tensors,
)
from rarlhf_nb.interrupts import InterruptLater


class ResumableTrainer(Trainer, ABC):
    """A `Trainer` with exact resume, for one process; a subclass adds what else its steps depend on."""

    title: ClassVar[str]  # of the training, printed where it is resumed
    steps_per_checkpoint: int = 1  # checkpoints only at its multiples, since the steps between share one batch

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What the subclass must remember besides model, optimizer, log and the global random state; for JSON."""

    @abstractmethod
    def load_own_state(self, own: dict[str, Any]) -> None:
        """Restore what `own_state` gave."""

    def train_resumably(self, checkpoints: Checkpoints | None, settings: dict[str, Any]) -> None:
        """Train, from the last checkpoint if there is one. Ctrl-C saves a checkpoint after the steps under way.

        Prints nothing but the step from which it resumes.

        Args:
            checkpoints: where to save them; with None the training is `train()`.
            settings: what determines the training, by name, in JSON's types; those of a checkpoint must be equal.

        Raises `UserError` where a checkpoint belongs to a training with other settings.
        """
        self.remove_callback(PrinterCallback)
        if checkpoints is None:
            self.train()
            return
        self.checkpoints, self.settings = checkpoints, settings
        found = checkpoints.latest_with(settings)
        with InterruptLater() as interrupt:
            self.add_callback(_SaveWhenDue(checkpoints, interrupt, self.steps_per_checkpoint))
            if found is None:
                self.train()
            else:
                self._train_from(found)
        if interrupt.asked:
            raise KeyboardInterrupt

    def _train_from(self, found: Checkpoint) -> None:
        self.found, state = found, found.state["trainer"]
        print(f"{self.title}: resumed at step {state['global_step']}")
        if state["global_step"] == state["max_steps"]:  # `train` would make one step more
            self._load_from_checkpoint()
            self.state = TrainerState(**state)
            return
        with TemporaryDirectory() as folder:
            (Path(folder) / TRAINER_STATE_NAME).write_text(json.dumps(state))
            self.train(resume_from_checkpoint=folder)

    def _save_checkpoint(self, *arguments: Any) -> None:
        randomness = _random_states(self.args.device)
        tensors = parameter_tensors(self.model) | optimizer_tensors(self.optimizer) | randomness.tensors
        state = {
            "settings": self.settings,
            "trainer": dataclasses.asdict(self.state),
            "optimizer": self.optimizer.state_dict()["param_groups"],
            "schedule": self.lr_scheduler.state_dict(),
            "random": randomness.state,
            "own": self.own_state(),
        }
        self.checkpoints.save(self.state.global_step, Checkpoint(tensors, state))

    # `Trainer.train` calls these three in this order, the last one when it has skipped the batches of earlier steps.
    def _load_from_checkpoint(self, *arguments: Any) -> None:
        load_parameters(self.model, self.found.tensors)
        self.load_own_state(self.found.state["own"])

    def _load_optimizer_and_scheduler(self, *arguments: Any) -> None:
        load_optimizer(self.optimizer, self.found.tensors, self.found.state["optimizer"])
        self.lr_scheduler.load_state_dict(self.found.state["schedule"])

    def _load_rng_state(self, *arguments: Any) -> None:
        _load_random_states(self.args.device, Checkpoint(self.found.tensors, self.found.state["random"]))
        del self.found  # thrice as large as the model


class _SaveWhenDue(TrainerCallback):
    """After every `every` steps, has `Trainer` save a checkpoint (once it has logged) if one is due or at Ctrl-C."""

    def __init__(self, checkpoints: Checkpoints, interrupt: InterruptLater, every: int) -> None:
        self.checkpoints, self.interrupt, self.every = checkpoints, interrupt, every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        asked = self.interrupt.asked  # read once, so that a stop never comes without a checkpoint
        control.should_save = asked or self.checkpoints.due()
        control.should_training_stop = control.should_training_stop or asked


def python_random_state(saved: list) -> tuple:
    """The state of Python's `random`, from what JSON made of it."""
    version, numbers, next_gauss = saved
    return version, tuple(numbers), next_gauss


def _random_states(device: torch.device) -> Checkpoint:
    """The global random states: torch's as tensors, those of Python and NumPy for JSON."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    name, numbers, *rest = np.random.get_state()
    return Checkpoint(tensors, {"python": random.getstate(), "numpy": [name, numbers.tolist(), *rest]})


def _load_random_states(device: torch.device, saved: Checkpoint) -> None:
    torch.set_rng_state(saved.tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors["random.cuda"], device)
    random.setstate(python_random_state(saved.state["python"]))
    np.random.set_state(saved.state["numpy"])
