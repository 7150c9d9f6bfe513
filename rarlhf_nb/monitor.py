"""A training that goes wrong is noticed: checks of its numbers, and the answer to each symptom that they find.

The checks are functions that change nothing and return incidents. The monitor answers each incident as `WatchSettings`
says: with a warning; with a skip, which is no further optimizer step in the iteration; or with a stop, which is a skip
and, once the statistics of the iteration are known, `TrainingStopped`.
"""

import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rarlhf_nb.conversations import transcript
from rarlhf_nb.errors import UserError
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.settings import WatchSettings

INCIDENTS = ".incidents.jsonl"
MAX_EPISODES = 16  # in the line of an incident
MIN_VARIANCE = 1e-8  # what `whiten` adds: advantages that vary less are not scaled to a variance of 1

ACTIONS = {"warn": "the training goes on", "skip": "the rest of this update is skipped", "stop": "the training stops"}
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
    """A training was stopped because it went wrong; the message says where, why, and what to change."""


class Incident(NamedTuple):
    """A symptom in the numbers of an iteration."""

    symptom: str  # its name in `WatchSettings`
    what: str
    numbers: dict[str, float]
    rows: Sequence[int] | None = None  # the episodes that it is about, those to show first; None: all
    fatal: bool = False  # the iteration cannot go on to its end, so the training stops whatever the settings


def check_completions(rollout: Rollout, collapse_bound: float) -> list[Incident]:
    """A batch that is one completion over and over, or whose rewards are all equal."""
    found, size = [], len(rollout)
    most, count = Counter(rollout.completions).most_common(1)[0]
    if count / size > collapse_bound:
        what = f"{count} of {size} completions are the same, a share above watch.collapse_bound = {collapse_bound:g}"
        same = [row for row, completion in enumerate(rollout.completions) if completion == most]
        found.append(Incident("collapse", what, {"share": count / size, "bound": collapse_bound}, same))
    rewards = rollout.env_rewards[~rollout.env_rewards.isnan()]
    if len(rewards) > 1 and (rewards == rewards[0]).all():
        reward = rewards[0].item()
        found.append(Incident("equal_rewards", f"all {len(rewards)} rewards are {reward:g}", {"reward": reward}))
    return found


def check_kl(kl: torch.Tensor, bound: float) -> list[Incident]:
    """A mean KL (B,) beyond its bound, or clearly below 0: then the log-probabilities are not the sampler's.

    A KL that is not finite is fatal, since its episode has no rank.
    """
    wrong = (~torch.isfinite(kl)).nonzero().flatten().tolist()
    if wrong:
        what = f"the KL of {len(wrong)} of {len(kl)} episodes is not finite"
        return [Incident("not_finite", what, {}, wrong, fatal=True)]
    found, mean, order = [], kl.mean().item(), kl.argsort(descending=True, stable=True).tolist()
    if mean > bound:
        what = f"the mean KL is {mean:.1f} nats per completion, above watch.kl_bound = {bound:g}"
        found.append(Incident("kl", what, {"kl": mean, "bound": bound}, order))
    standard_error = kl.std().item() / math.sqrt(len(kl)) if len(kl) > 1 else math.inf
    lowest = -4 * standard_error - 0.01
    if mean < lowest:
        what = f"the mean KL from the reference is {mean:.2f}, clearly negative (four standard errors: {lowest:.2f})"
        what += ", so the log-probabilities do not describe the distribution that the completions were drawn from"
        found.append(Incident("negative_kl", what, {"kl": mean, "bound": lowest}, order[::-1]))
    return found


def check_advantages(advantages: torch.Tensor, mask: torch.Tensor) -> list[Incident]:
    """An update without anything to learn: advantages (N, T), before whitening, that do not vary."""
    variance = advantages[mask].var(correction=0).item()
    if variance >= MIN_VARIANCE:
        return []
    what = f"the advantages of the {len(advantages)} kept episodes have a variance of {variance:.1e}, below "
    return [Incident("no_variance", f"{what}{MIN_VARIANCE:g}", {"variance": variance, "bound": MIN_VARIANCE})]


def check_losses(
    epochs: list[dict[str, float]],
    past: list[dict[str, float]],
    env_rewards: torch.Tensor,
    value_loss_bound: float,
    ratio_threshold: float,
) -> list[Incident]:
    """The losses of the last epoch: a mean ratio beyond its threshold, or a value loss that explodes.

    A usual value loss is the lower median of those in `past`, the statistics of earlier iterations, but no less than
    the largest mean squared reward, the scale of the targets. In the first iteration, its first epoch is the past.
    """
    found, ratio, value_loss = [], epochs[-1]["ratio_mean"], epochs[-1]["value_loss"]
    if ratio > ratio_threshold:
        what = f"the mean ratio is {ratio:.1f}, above ratio_threshold = {ratio_threshold:g}"
        found.append(Incident("ratio", what, {"ratio_mean": ratio, "bound": ratio_threshold}))
    losses = [row["value_loss"] for row in past if math.isfinite(row["value_loss"])] or [epochs[0]["value_loss"]]
    squares = [row["env_reward_mean"] ** 2 + row["env_reward_std"] ** 2 for row in past]
    bound = value_loss_bound * max(statistics.median_low(losses), env_rewards.square().mean().item(), *squares)
    if value_loss > bound:
        what = f"the value loss is {value_loss:.3g}, above {bound:.3g}: watch.value_loss_bound = "
        what += f"{value_loss_bound:g} times what is usual"
        found.append(Incident("value_loss", what, {"value_loss": value_loss, "bound": bound}))
    return found


def check_finite(numbers: dict[str, float]) -> list[Incident]:
    """Losses, or the norm of their gradient, that are not finite."""
    wrong = {key: value for key, value in numbers.items() if not math.isfinite(value)}
    what = ", ".join(f"{key} is {value}" for key, value in wrong.items())
    return [Incident("not_finite", what, wrong)] if wrong else []


class Monitor:
    """Answers the incidents of one training, and writes each as a line of JSON.

    log_file: the training's log, beside which the incidents are written; None writes none. unit: what the trainer calls
    an iteration. verbose: whether it warns of incidents, which one of several processes does.
    """

    def __init__(self, settings: WatchSettings, log_file: Path | None, unit: str, verbose: bool) -> None:
        self.settings, self.unit, self.verbose = settings, unit, verbose
        self.file = log_file and log_file.with_suffix(INCIDENTS)
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Begin an iteration, counted from 1; the first one starts the file anew."""
        self.iteration = iteration
        self.noticed: set[str] = set()  # symptoms; each counts once in an iteration
        self.skipping, self.stepped = False, False  # whether optimizer steps are forbidden, and whether one was made
        self.stops: list[str] = []
        self.at_once = False  # whether one of these came before any step, so that the weights at the start are suspect
        if iteration == 1 and self.file:
            self.file.unlink(missing_ok=True)

    def notice(self, incidents: list[Incident], rollout: Rollout | None) -> None:
        """Answer incidents in these episodes; raises `TrainingStopped` for one that is fatal."""
        for incident in incidents:
            if incident.symptom in self.noticed:
                continue
            self.noticed.add(incident.symptom)
            action = "stop" if incident.fatal else getattr(self.settings, incident.symptom)
            what = f"{self.unit} {self.iteration}: {incident.what}; {ACTIONS[action]}"
            line = f"{what} ({incident.symptom}: {action}). {REMEDIES[incident.symptom]}"
            if self.file is not None:
                entry = {self.unit: self.iteration, "symptom": incident.symptom, "numbers": incident.numbers}
                entry |= {"action": action, "message": line, "episodes": _episodes(rollout, incident.rows)}
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            self.skipping = self.skipping or action != "warn"
            if action == "stop":
                self.at_once = self.at_once or not self.stepped
                self.stops.append(line)
            elif self.verbose:
                warnings.warn(line, stacklevel=3)
            if incident.fatal:
                self.conclude()

    def allows_step(self) -> bool:
        """Whether the optimizer may step, which it then does."""
        self.stepped = self.stepped or not self.skipping
        return not self.skipping

    def conclude(self) -> None:
        """End an iteration; raises `TrainingStopped` if one of its incidents is a stop."""
        if self.stops:
            raise TrainingStopped(" ".join(self.stops))


def _episodes(rollout: Rollout | None, rows: Sequence[int] | None) -> list[dict[str, str | float | None]]:
    """The first of the episodes at `rows`, as an incident shows them."""
    if rollout is None:
        return []
    shown = range(len(rollout)) if rows is None else rows
    return [
        {
            "prompt": transcript(rollout.prompts[row]),
            "completion": rollout.completions[row],
            "reward": rollout.env_rewards[row].item(),
            "kl": None if rollout.kl is None else rollout.kl[row].item(),
        }
        for row in shown[:MAX_EPISODES]
    ]
