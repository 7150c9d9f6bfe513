"""The loop that every trainer shares: repeat a step, log its statistics, save checkpoints, show the progress."""

import hashlib
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerState

from rarlhf_nb.checkpoint import (
    Checkpoint,
    Checkpoints,
    load_optimizer,
    load_parameters,
    optimizer_tensors,
    parameter_tensors,
)
from rarlhf_nb.data.prompts import prompt_dataset
from rarlhf_nb.distributed import Ranks, accelerator, connect
from rarlhf_nb.errors import UserError
from rarlhf_nb.interrupts import InterruptLater
from rarlhf_nb.monitor import Incident, Monitor, TrainingStopped, check_finite
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.rewards import Reward, episode_rewards
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.settings import Section, WatchSettings, flat


class TrainingLoop(ABC):
    """A trainer that repeats one step: `CVaRPPOTrainer` and `QuarkTrainer` differ in that step alone.

    `train()` runs all iterations. Iterating over the trainer runs them one at a time and yields the statistics of each
    (`glossary.yaml` explains the keys). Both go on from the last checkpoint if there is one; the result is the same,
    number for number, as without an interruption. Ctrl-C saves a checkpoint after the iteration under way. If the
    training goes wrong, both raise `TrainingStopped`, whose message names the last good checkpoint. Of several
    processes (see `distributed`) one logs, saves and shows the progress.

    Args:
        policy: the policy, trained in place.
        reward_funcs: one callable or several with TRL's signature.
        train_dataset: a `Dataset`, a pandas table or a list of dictionaries with a `prompt` column, of texts or
            conversations.
        iterations: how many steps to make.
        settings: by name, the sections of the profile that determine the training; a checkpoint must agree in them.
        watch: what is done when the training goes wrong, by default that of the profiles; one of these settings.
        seed: determines the training as well. mixed_precision: "no" or "bf16", for every pass.
        log_file: gets one JSON line per iteration; the first iteration starts the file anew. Incidents of `watch` are
            written beside it.
        checkpoints: where to save them; none by default.
        report_to: trackers of accelerate, such as "tensorboard", which write into project_dir; none by default.
    """

    title: ClassVar[str]  # of the progress bar
    unit: ClassVar[str] = "iteration"
    progress: ClassVar[dict[str, str]]  # shown beside the bar: name -> key of the statistics

    def __init__(
        self,
        policy: ActorCritic,
        reward_funcs: Reward | list[Reward],
        train_dataset: Dataset | None,
        iterations: int,
        settings: dict[str, Section],
        watch: WatchSettings | None = None,
        seed: int = 0,
        mixed_precision: str = "no",
        log_file: Path | None = None,
        checkpoints: Checkpoints | None = None,
        report_to: str | Sequence[str] = (),
        project_dir: Path | None = None,
    ) -> None:
        self.policy, self.iterations, self.seed = policy, iterations, seed
        self.train_dataset = None if train_dataset is None else prompt_dataset(train_dataset, policy.processing_class)
        self.reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        self.watch = watch or WatchSettings()
        sections = settings | {"watch": self.watch}
        self.settings = {name: section.model_dump(mode="json") for name, section in sections.items()} | {"seed": seed}
        report_to = [report_to] if isinstance(report_to, str) else list(report_to)
        connect()
        self.mixed_precision = mixed_precision
        self.accelerator = accelerator(mixed_precision, log_with=report_to or None, project_dir=project_dir)
        if report_to:
            self.accelerator.init_trackers("rarlhf_nb", config=flat(self.settings))
        self.ranks = Ranks(self.accelerator)
        self._check_ranks(checkpoints)
        self.log_file, self.checkpoints = log_file if self.ranks.main else None, checkpoints
        self.monitor = Monitor(self.watch, self.log_file, self.unit, verbose=self.ranks.main)
        self.iteration = 0  # the last one's number, counted from 1
        self.rows: list[dict[str, float]] = []  # the statistics so far
        self.wrapped: torch.nn.Module  # accelerate's wrapper of the policy; made by the subclass, as the next
        self.optimizer: torch.optim.Optimizer

    def _check_ranks(self, checkpoints: Checkpoints | None) -> None:
        """Raise `UserError`, on every rank, if the processes of this training do not belong together."""
        if self.ranks.count == 1:
            return
        prompts = self.train_dataset["prompt"] if self.train_dataset is not None else []
        digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        own = {"mixed_precision": self.mixed_precision, "the checksum of the prompts": digest[:12]}
        self.ranks.check_agreement(flat(self.settings) | own)
        if self.ranks.sharded and checkpoints is not None:
            raise UserError("checkpoints: none can be saved if FSDP shards the training; give none.")

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Run one iteration, in a block of `counted`, and return its statistics. It is given `next_prompts`."""

    def next_prompts(self) -> dict[str, list]:
        """The arguments of the next `step`; none by default."""
        return {}

    @contextmanager
    def counted(self) -> Iterator[dict[str, float]]:
        """A block that is one iteration: counts, times and monitors it; gives the statistics, which the block fills in.

        Raises `TrainingStopped` if the iteration went wrong.
        """
        started = time.perf_counter()
        self.iteration += 1
        self.monitor.begin(self.iteration)
        stats = {self.unit: self.iteration}
        try:
            yield stats
        except FloatingPointError as error:  # from such probabilities nothing can be drawn
            self.monitor.notice([Incident("not_finite", str(error), {}, fatal=True)], None)
        stats["seconds"] = time.perf_counter() - started
        self.rows.append(stats)
        self.monitor.conclude()

    def env_rewards(self, rollout: Rollout, columns: dict[str, list], missing: bool = False) -> torch.Tensor:
        """See `episode_rewards`; the training's state counts the iterations that are complete."""
        state = TrainerState(global_step=self.iteration - 1, max_steps=self.iterations, log_history=self.rows)
        return episode_rewards(self.reward_funcs, rollout, columns, state, missing)

    def optimizer_step(self, losses: dict[str, float], rollout: Rollout, max_grad_norm: float | None) -> bool:
        """Clip the gradient of `losses` on these episodes, and step unless an incident forbids it; says whether.

        Losses and gradient must be finite.
        """
        # without a limit nothing is clipped, and the norm tells whether the gradient is finite
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), max_grad_norm or math.inf)
        numbers = losses if self.monitor.skipping else losses | {"gradient norm": norm.item()}
        self.monitor.notice(check_finite(numbers), rollout)
        allowed = self.monitor.allows_step()
        if allowed:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return allowed

    @abstractmethod
    def own_state(self) -> Checkpoint:
        """What the subclass must remember besides policy, optimizer and log."""

    @abstractmethod
    def load_own_state(self, own: Checkpoint) -> None:
        """Restore what `own_state` gave."""

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Run the remaining iterations one at a time."""
        self.resume()
        self.ranks.check_agreement({f"the last {self.unit}": self.iteration})
        interrupt = InterruptLater()
        hidden = not self.ranks.main or bool(os.environ.get("TQDM_DISABLE"))  # which tqdm's bar for notebooks ignores
        options = {"desc": self.title, "unit": self.unit, "disable": hidden or None}  # None: not into a file
        with tqdm(total=self.iterations, initial=self.iteration, **options) as bar:
            while self.iteration < self.iterations:
                with interrupt:
                    try:
                        stats = self.step(**self.next_prompts())
                    except TrainingStopped as stop:
                        stop.args = (f"{stop} {self._last_good_checkpoint()}".strip(),)
                        raise stop from None
                    self.log(stats)
                    asked = self.ranks.any(interrupt.asked)  # one that comes later is answered an iteration later
                    if self.checkpoints and self.ranks.main and (asked or self.checkpoints.due()):
                        self.checkpoints.save(self.iteration, self.checkpoint())
                if asked:
                    raise KeyboardInterrupt
                bar.set_postfix({name: f"{stats[key]:.3g}" for name, key in self.progress.items()})
                bar.update()
                yield stats
        if self.ranks.any(interrupt.asked):
            raise KeyboardInterrupt
        for tracker in self.accelerator.trackers:  # `end_training` would end the processes' connection as well
            tracker.finish()

    def _last_good_checkpoint(self) -> str:
        """Says from which checkpoint another training may go on if this iteration was stopped; logs it as evidence.

        If it was stopped at once, the checkpoint that it began with is dropped: a checkpoint is good if the weights in
        it passed the checks of the next iteration.
        """
        if self.rows and self.rows[-1][self.unit] == self.iteration:  # it came to its end
            self.log(self.rows[-1])
        if self.checkpoints is None:
            return ""
        if self.monitor.at_once and self.ranks.main:
            self.checkpoints.drop(self.iteration - 1)
        self.ranks.all_gather(None)  # a barrier: the others must look only after it is gone
        found = self.checkpoints.latest()
        if found is None:
            return "There is no good checkpoint yet, so a new training starts from the beginning."
        return (
            f"The last good checkpoint is that of {self.unit} {found.state['iteration']} in {self.checkpoints.folder}: "
            "a new trainer with other settings goes on from it after trainer.resume(other_settings=True)."
        )

    def train(self) -> pd.DataFrame:
        """Run the remaining iterations; returns the statistics of all iterations, one row each."""
        for _ in self:
            pass
        return pd.DataFrame(self.rows)

    def log(self, stats: dict[str, float]) -> None:
        """Append the statistics of an iteration to `log_file` and hand them to the trackers."""
        self._write_log([stats], "w" if self.iteration == 1 else "a")
        self.accelerator.log(stats, step=self.iteration)

    def _write_log(self, rows: list[dict[str, float]], mode: str) -> None:
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open(mode) as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def checkpoint(self) -> Checkpoint:
        """All that the next iteration depends on."""
        own, rest = self.own_state(), {"settings": self.settings, "iteration": self.iteration, "rows": self.rows}
        tensors = parameter_tensors(self.policy) | optimizer_tensors(self.optimizer) | own.tensors
        return Checkpoint(tensors, rest | {"own": own.state})

    def resume(self, other_settings: bool = False) -> None:
        """Go on from the last checkpoint if there is one and nothing was trained yet; the log is cut back to it.

        Weights, the optimizer's moments, an adaptive beta and the number of the iteration are the checkpoint's, and all
        else is this trainer's, with its learning rate. Raises `UserError` if the checkpoint belongs to a training
        with other settings, unless `other_settings` says that this is meant.
        """
        if self.checkpoints is None or self.iteration:
            return
        settings = None if other_settings else self.settings
        found = self.checkpoints.latest(settings, "call trainer.resume(other_settings=True) first")
        if found is None:
            return
        tensors, state = found
        load_parameters(self.policy, tensors)
        load_optimizer(self.optimizer, tensors)
        self.load_own_state(Checkpoint(tensors, state["own"]))
        self.iteration, self.rows = state["iteration"], state["rows"]
        self._write_log(self.rows, "w")
        if self.ranks.main:
            print(f"{self.title}: resumed at {self.unit} {self.iteration}")
