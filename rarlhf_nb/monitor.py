"""A training that goes wrong is noticed: symptoms in its numbers, each answered as `WatchSettings` says.

The answers: a warning; a skip, which is no further optimizer step in the iteration, so that the policy stays as it is;
or a stop, which is a skip and, once the statistics of the iteration are known, `TrainingStopped`. Each incident is one
line of text, and one JSON line in `<log file>.incidents.jsonl` with its numbers and its episodes.
"""

import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rarlhf_nb.errors import UserError
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.settings import WatchSettings

INCIDENTS = ".incidents.jsonl"
SHOWN = 16  # episodes in the line of an incident, at most
LEAST_VARIANCE = 1e-8  # what `whiten` adds: advantages that vary less are not scaled to a variance of 1

DONE = {"warn": "the training goes on", "skip": "the rest of this update is skipped", "stop": "the training stops"}
REMEDIES = {
    "not_finite": "Lower learning_rate, or set or lower max_grad_norm.",
    "kl": "Lower learning_rate, or raise kl_coef or watch.kl_bound.",
    "negative_kl": "Check that model and reference are the ones that you mean.",
    "ratio": "Lower learning_rate or epochs.",
    "value_loss": "Lower learning_rate or vf_coef, or raise watch.value_loss_bound.",
    "equal_rewards": "Check the reward function, or raise batch_size.",
    "no_variance": "Check the reward function, or raise batch_size or alpha.",
    "collapse": "Lower learning_rate, or raise kl_coef or watch.collapse_bound.",
}


class TrainingStopped(UserError):
    """A training was stopped because it went wrong; the message says where, why, and what to change.

    stats: the statistics of the iteration, or None if it did not get that far. at_once: whether it was stopped before
    its first optimizer step, so that the weights that it began with are suspect.
    """

    def __init__(
        self, message: str, *, iteration: int = 0, stats: dict[str, float] | None = None, at_once: bool = False
    ) -> None:
        super().__init__(message)
        self.iteration, self.stats, self.at_once = iteration, stats, at_once


class Watch:
    """Looks at the numbers of one training, and changes none of them.

    A trainer calls `begin` in each iteration, then the checks, asks `allows_step` before every optimizer step, and ends
    with `conclude`.

    log_file: the training's log, beside which the incidents are written; None writes none. unit: what the trainer calls
    an iteration. aloud: whether it warns of incidents, which one of several processes does. past: the statistics of the
    iterations so far.
    """

    def __init__(
        self, settings: WatchSettings, log_file: Path | None = None, unit: str = "iteration", aloud: bool = True
    ) -> None:
        self.settings, self.unit, self.aloud = settings, unit, aloud
        self.file = log_file and log_file.with_suffix(INCIDENTS)
        self.past: list[dict[str, float]] = []
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Begin an iteration, counted from 1; the first one starts the file anew."""
        self.iteration = iteration
        self.held, self.stepped = False, False  # whether optimizer steps are forbidden, and whether one was made
        self.noticed: set[str] = set()  # symptoms; each counts once in an iteration
        self.stops: list[str] = []
        self.at_once = False  # whether the first of these came before any step
        self.squared_reward = 0.0  # mean over the batch
        self.first_value_loss: float | None = None
        if iteration == 1 and self.file:
            self.file.unlink(missing_ok=True)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Stop where the policy's probabilities are not finite, so that nothing can be drawn from them."""
        try:
            yield
        except FloatingPointError as error:
            self._stop_at_once(str(error))

    def completions(self, episodes: Rollout) -> None:
        """Notice a batch that is one completion over and over, or whose rewards are all equal."""
        settings, size = self.settings, len(episodes.completions)
        self.squared_reward = episodes.env_rewards.square().mean().item()
        most, count = Counter(episodes.completions).most_common(1)[0]
        if count / size > settings.collapse_bound:
            what = f"{count} of {size} completions are the same, a share above watch.collapse_bound = "
            same = [row for row, completion in enumerate(episodes.completions) if completion == most]
            numbers = {"share": count / size, "bound": settings.collapse_bound}
            self._notice("collapse", f"{what}{settings.collapse_bound:g}", numbers, episodes.take(torch.tensor(same)))
        rewards = episodes.env_rewards[~episodes.env_rewards.isnan()]
        if len(rewards) > 1 and (rewards == rewards[0]).all():
            reward = rewards[0].item()
            self._notice("equal_rewards", f"all {len(rewards)} rewards are {reward:g}", {"reward": reward}, episodes)

    def kl(self, episodes: Rollout) -> None:
        """Notice a mean KL beyond its bound, or clearly below 0, where the log-probabilities are not the sampler's.

        Raises `TrainingStopped` for a KL that is not finite, whatever the settings: its episode has no rank.
        """
        kl, bound = episodes.kl, self.settings.kl_bound
        wrong = (~torch.isfinite(kl)).nonzero().flatten().tolist()
        if wrong:
            self._stop_at_once(
                f"the KL of {len(wrong)} of {len(kl)} episodes is not finite", episodes.take(torch.tensor(wrong))
            )
        mean, order = kl.mean().item(), kl.argsort(descending=True, stable=True)
        if mean > bound:
            what = f"the mean KL is {mean:.1f} nats per completion, above watch.kl_bound = {bound:g}"
            self._notice("kl", what, {"kl": mean, "bound": bound}, episodes.take(order))
        standard_error = kl.std().item() / math.sqrt(len(kl)) if len(kl) > 1 else math.inf
        least = -4 * standard_error - 0.01
        if mean < least:
            what = f"the mean KL from the reference is {mean:.2f}, clearly negative (four standard errors: {least:.2f})"
            what += ", so the log-probabilities do not describe the distribution that the completions were drawn from"
            self._notice("negative_kl", what, {"kl": mean, "bound": least}, episodes.take(order.flip(0)))

    def advantages(self, advantages: torch.Tensor, mask: torch.Tensor, episodes: Rollout) -> None:
        """Notice an update without anything to learn: advantages (N, T), before whitening, of N episodes."""
        variance = advantages[mask].var(correction=0).item()
        if variance < LEAST_VARIANCE:
            what = f"the advantages of the {len(advantages)} kept episodes have a variance of {variance:.1e}, below "
            numbers = {"variance": variance, "bound": LEAST_VARIANCE}
            self._notice("no_variance", f"{what}{LEAST_VARIANCE:g}", numbers, episodes)

    def losses(self, losses: dict[str, float], episodes: Rollout, ratio_threshold: float) -> None:
        """Notice a mean ratio beyond its threshold, and a value loss that explodes; `losses` are those of an epoch."""
        ratio, value_loss = losses["ratio_mean"], losses["value_loss"]
        if ratio > ratio_threshold:
            what = f"the mean ratio is {ratio:.1f}, above ratio_threshold = {ratio_threshold:g}"
            self._notice("ratio", what, {"ratio_mean": ratio, "bound": ratio_threshold}, episodes)
        bound = self.settings.value_loss_bound * self._usual_value_loss(value_loss)
        if value_loss > bound:
            what = f"the value loss is {value_loss:.3g}, above {bound:.3g}: watch.value_loss_bound = "
            what += f"{self.settings.value_loss_bound:g} times what is usual"
            self._notice("value_loss", what, {"value_loss": value_loss, "bound": bound}, episodes)

    def _usual_value_loss(self, value_loss: float) -> float:
        """The lower median of the past, but no less than the largest mean squared reward, the scale of the targets.

        In the first iteration, its first epoch is the past.
        """
        if self.first_value_loss is None:
            self.first_value_loss = value_loss
        past = [row["value_loss"] for row in self.past if math.isfinite(row["value_loss"])]
        squares = [row["env_reward_mean"] ** 2 + row["env_reward_std"] ** 2 for row in self.past]
        return max(statistics.median_low(past or [self.first_value_loss]), self.squared_reward, *squares)

    def allows_step(self, losses: dict[str, float], gradient_norm: float, episodes: Rollout) -> bool:
        """Whether the optimizer may step; notices losses or a gradient that are not finite.

        An overflowing ratio is left to ratio_threshold, and the gradient matters only if a step would follow.
        """
        numbers = {key: value for key, value in losses.items() if key != "ratio_mean"}
        numbers |= {} if self.held else {"gradient norm": gradient_norm}
        wrong = {key: value for key, value in numbers.items() if not math.isfinite(value)}
        if wrong:
            what = ", ".join(f"{key} is {value}" for key, value in wrong.items())
            self._notice("not_finite", what, wrong, episodes)
        self.stepped = self.stepped or not self.held
        return not self.held

    def conclude(self, stats: dict[str, float]) -> None:
        """End an iteration with its statistics; raises `TrainingStopped` where one of its incidents is a stop."""
        self.past.append(stats)
        if self.stops:
            raise TrainingStopped(" ".join(self.stops), iteration=self.iteration, stats=stats, at_once=self.at_once)

    def _stop_at_once(self, what: str, episodes: Rollout | None = None) -> None:
        """Stop an iteration that cannot go on to its end."""
        self._notice("not_finite", what, {}, episodes, action="stop")
        raise TrainingStopped(" ".join(self.stops), iteration=self.iteration, at_once=True)

    def _notice(
        self, symptom: str, what: str, numbers: dict[str, float], episodes: Rollout | None, action: str | None = None
    ) -> None:
        """Write an incident down, and warn of it unless it is a stop, whose line becomes the error's message."""
        if symptom in self.noticed:
            return
        self.noticed.add(symptom)
        action = action or getattr(self.settings, symptom)
        line = f"{self.unit} {self.iteration}: {what}; {DONE[action]} ({symptom}: {action}). {REMEDIES[symptom]}"
        if self.file:
            shown = as_dictionaries(episodes.take(torch.arange(min(SHOWN, len(episodes))))) if episodes else []
            incident = {self.unit: self.iteration, "symptom": symptom, "action": action, "numbers": numbers}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps(incident | {"message": line, "episodes": shown}) + "\n")
        if action == "stop":
            self.at_once = self.at_once or not self.stepped
            self.stops.append(line)
        elif self.aloud:
            warnings.warn(line, stacklevel=4)
        self.held = self.held or action != "warn"


def as_dictionaries(episodes: Rollout) -> list[dict[str, Any]]:
    """One dictionary per episode, for the file of incidents."""
    kl = [None] * len(episodes) if episodes.kl is None else episodes.kl.tolist()
    columns = zip(episodes.prompts, episodes.completions, episodes.env_rewards.tolist(), kl, strict=True)
    return [dict(zip(("prompt", "completion", "reward", "kl"), row, strict=True)) for row in columns]
