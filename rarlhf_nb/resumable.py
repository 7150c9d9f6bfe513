"""A training on transformers' `Trainer` that goes on where it was interrupted, number for number.

`Trainer` itself saves and loads weights, optimizer, schedule and random states, the latter three from pickles with
`weights_only=True`, which runs no code. Added here are the moments to save at, and checksums.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from rarlhf_nb.checkpoint import PREFIX, Checkpoints, read_state
from rarlhf_nb.interrupts import InterruptLater

# arguments of a `Trainer` that saves, reports and shows nothing by itself
QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}


class ResumableTrainer(Trainer):
    """A `Trainer` with exact resume, for one process."""

    title: ClassVar[str]  # of the training, printed when it is resumed
    steps_per_checkpoint: int = 1  # checkpoints only at its multiples, since the steps between share one batch

    def resumed(self) -> None:
        """Called when `state.log_history` is that of the checkpoint, for what else a subclass takes from it."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none, though TRL's trainers ask for one with every checkpoint."""

    def train_resumably(self, checkpoints: Checkpoints | None, settings: dict[str, Any]) -> None:
        """Train, from the last checkpoint if there is one. Ctrl-C saves a checkpoint after the step under way.

        Prints nothing but the step from which it resumes.

        Args:
            checkpoints: where to save them; with None the training is `train()`.
            settings: what determines the training, by name, in JSON's types; those of a checkpoint must be equal.

        Raises `UserError` if a checkpoint belongs to a training with other settings.
        """
        self.remove_callback(PrinterCallback)
        if checkpoints is None:
            self.train()
            return
        self.args.output_dir = str(checkpoints.folder)
        found = checkpoints.newest(settings)
        with InterruptLater() as interrupt:
            self.add_callback(_Checkpointing(self, checkpoints, settings, found, interrupt))
            with suppress(_Finished):
                self.train(resume_from_checkpoint=found and str(found))
        if interrupt.asked:
            raise KeyboardInterrupt


class _Finished(Exception):
    """The checkpoint is that of the last step: `Trainer` would make one more."""


@dataclass
class _Checkpointing(TrainerCallback):
    """Has `Trainer` save a checkpoint when one is due and at Ctrl-C, and completes what it saves and loads."""

    trainer: ResumableTrainer
    checkpoints: Checkpoints
    settings: dict[str, Any]
    found: Path | None
    interrupt: InterruptLater

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.found is None:
            return
        print(f"{self.trainer.title}: resumed at step {state.global_step}")
        state.log_history = read_state(self.found)["log"]
        self.trainer.resumed()
        if state.global_step >= state.max_steps:
            raise _Finished

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.trainer.steps_per_checkpoint:
            return
        asked = self.interrupt.asked  # read once, so that a stop never comes without a checkpoint
        control.should_save = asked or self.checkpoints.due()  # once it has logged
        control.should_training_stop = control.should_training_stop or asked

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = self.checkpoints.folder / f"{PREFIX}{state.global_step}"
        (folder / TRAINING_ARGS_NAME).unlink()  # a pickle of classes, which nothing reads
        log = state.log_history  # `Trainer` itself saves it with its keys in another order
        self.checkpoints.complete(folder, {"settings": self.settings, "log": log})
        self.checkpoints.drop_others(state.global_step)
