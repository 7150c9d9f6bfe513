"""GRPO and RLOO as methods of a run: TRL's trainers, with and without the tail, on the prompts and rewards of the run.

`grpo` and `rloo` are TRL's own at alpha = 1, and `cvar_grpo` and `cvar_rloo` train on the tail (see `grpo`).
An iteration is like one of PPO: B episodes, here several samples of each prompt, then one optimizer step per epoch at a
constant learning rate, with PPO's clipping and its limit on the gradient norm.

Departures from PPO in this package: TRL takes log-probabilities over the whole vocabulary, including the tokens that
the sampler forbids; its KL is the estimate that each trainer has; and every episode costs a forward and a backward
pass, even outside the tail.
"""

import math
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, RLOOConfig

from rarlhf_nb.baselines.grpo import CVaRConfig, CVaRGRPOTrainer, CVaRRLOOTrainer
from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.conversations import Prompt
from rarlhf_nb.files import json_lines
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.resumable import QUIET, ResumableTrainer
from rarlhf_nb.rewards import Reward, episode_rewards
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.seeding import library_seed, seeded, shuffled_stream
from rarlhf_nb.settings import CriticFreeSettings, PPOSettings, RiskSettings, SamplingSettings


def train_critic_free(
    policy: ActorCritic,
    reward: Reward,
    train_dataset: Dataset,
    settings: CriticFreeSettings,
    ppo: PPOSettings,
    risk: RiskSettings,
    sampling: SamplingSettings,
    algorithm: str,
    seed: int,
    mixed_precision: str = "no",
    log_file: Path | None = None,
    checkpoints: Checkpoints | None = None,
    stop_after: int | None = None,
) -> pd.DataFrame:
    """Train the policy in place with TRL's trainer, alone (alpha = 1) or on the tail; returns the log.

    The log has one row per iteration (`glossary.yaml` explains the keys). It is written to `log_file` as it grows.

    train_dataset: has a `prompt` column; its other columns are handed to the reward.
    ppo: gives epochs, clipping, and the limits on the gradient norm and on the size of a micro-batch.
    risk: gives alpha and the schedule, whose warm-up is the same share of these iterations as of PPO's.
    algorithm: "grpo" or "rloo".
    stop_after: ends after so many iterations of the schedule; None: after all.

    pi_ref is the policy that its folder holds. With `checkpoints` the training goes on from the last one; the result
    is the same, number for number, as without an interruption. Ctrl-C saves one after the iteration under way. Raises
    `UserError` for settings that do not fit, and for rewards that are not one finite number each.
    """
    estimator = settings.estimator if risk.alpha < 1 else "tail_selection"  # TRL's own trainer at alpha = 1
    warm_start = risk.warm_start * settings.iterations // ppo.iterations
    whole, most = settings.batch_size, ppo.micro_batch_size  # TRL finds no size by itself, so "auto" is the whole
    limit = min(most, whole) if isinstance(most, int) else whole
    size = next(size for size in range(limit, 0, -1) if whole % size == 0)
    prompts = settings.iterations * settings.batch_size // settings.samples_per_prompt  # in PPO's order
    drawn = {"min_new_tokens": sampling.minimum_completion_length, "suppress_tokens": policy.forbidden_ids}
    config, kind = {"grpo": (GRPOConfig, _GRPO), "rloo": (RLOOConfig, _RLOO)}[algorithm]
    with tempfile.TemporaryDirectory() as folder, seeded(seed, policy.device), warnings.catch_warnings():
        # TRL and peft use names that transformers is about to drop
        warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated")
        trainer = kind(
            model=policy.model,
            reward_funcs=_of_whole_texts(reward, policy),
            args=config(
                output_dir=folder,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=settings.batch_size // size,
                num_generations=settings.samples_per_prompt,
                num_iterations=ppo.epochs,
                max_steps=settings.iterations * ppo.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="constant",
                beta=settings.kl_coef,
                epsilon=ppo.cliprange,
                max_grad_norm=ppo.max_grad_norm or math.inf,
                temperature=sampling.temperature,
                max_completion_length=sampling.completion_length,
                generation_kwargs=drawn,
                disable_dropout=True,
                bf16=mixed_precision == "bf16",
                use_cpu=policy.device.type == "cpu",
                seed=library_seed(seed),
                shuffle_dataset=False,
                logging_steps=ppo.epochs,
                gradient_checkpointing=False,
                **QUIET,
            ),
            train_dataset=train_dataset.select(shuffled_stream(len(train_dataset), seed, 0, prompts)),
            processing_class=policy.processing_class,
            risk=CVaRConfig(risk.alpha, warm_start * ppo.epochs, risk.rho, estimator, settings.tail),
        )
        trainer.log_file, trainer.steps_per_checkpoint = log_file, ppo.epochs
        if stop_after is not None:
            trainer.add_callback(_StopAfter(stop_after * ppo.epochs))
        sections = {"critic_free": settings, "ppo": ppo, "risk": risk, "sampling": sampling}
        determined_by = {name: section.model_dump(mode="json") for name, section in sections.items()}
        others = {"algorithm": algorithm, "seed": seed, "mixed_precision": mixed_precision}
        trainer.train_resumably(checkpoints, determined_by | others)
    policy.eval()
    return pd.DataFrame(trainer.rows())


def _of_whole_texts(reward: Reward, policy: ActorCritic) -> Reward:
    """The reward of completions with their leading space, which TRL loses, as it decodes them without the prompt."""

    def of_whole_texts(
        prompts: list[Prompt], completions: list[Prompt], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        rows = [torch.tensor(row, device=policy.device) for row in completion_ids]
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
        tokens = *policy.tokenize(prompts), pad_sequence(rows, batch_first=True), mask
        episodes = Rollout(prompts, policy.completion_texts(*tokens), *tokens)
        return episode_rewards([reward], episodes, columns).tolist()

    return of_whole_texts


class _StopAfter(TrainerCallback):
    """Ends a training after so many optimizer steps, as if it had been interrupted there."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.steps


class _Method(ResumableTrainer):
    """A trainer of TRL with exact resume, whose log has a row for each iteration and the names of PPO's."""

    log_file: Path | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            self.log_file.write_text(json_lines(self.rows()))

    def rows(self) -> list[dict[str, float]]:
        """The log so far, a row each iteration."""
        entries = [entry for entry in self.state.log_history if "loss" in entry]
        read = pairwise([0, *(int(entry["num_tokens"]) for entry in entries)])  # tokens, until then and with it
        return [self._row(entry, after - before) for entry, (before, after) in zip(entries, read, strict=True)]

    def _row(self, entry: dict[str, float], tokens: int) -> dict[str, float]:
        """The row of an iteration that read so many tokens, from what TRL logged of it."""
        episodes, epochs = self.args.generation_batch_size, self.num_iterations
        return {
            "iteration": entry["step"] // epochs,
            "kept": int(entry["cvar/kept"]),
            "env_reward_mean": entry["reward"],
            "env_reward_std": entry["reward_std"] * math.sqrt(1 - 1 / episodes),  # TRL divides by B - 1
            "tail_env_reward_mean": entry["cvar/cvar"],
            "kl": self._kl(entry),
            "entropy": entry["entropy"],
            "completion_length": entry["completions/mean_length"],
            "kl_coef": self.beta,
            "loss": entry["loss"],
            "clip_fraction": entry["clip_ratio/region_mean"],
            "gradient_tokens": tokens * epochs,
            "seconds": entry["step_time"] * epochs,
        }


class _GRPO(_Method, CVaRGRPOTrainer):
    title = "GRPO"

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if {"old_per_token_logps", "ref_per_token_logps"} <= output.keys():
            log_ratio = output["old_per_token_logps"] - output["ref_per_token_logps"]
            kl = (log_ratio * output["completion_mask"]).sum(1).mean()
            self._metrics["train"]["completion_kl"].append(kl.item())
        return output

    def _kl(self, entry: dict[str, float]) -> float | None:
        return entry.get("completion_kl")  # none without a reference, nor if GRPO makes a single epoch


class _RLOO(_Method, CVaRRLOOTrainer):
    title = "RLOO"

    def _kl(self, entry: dict[str, float]) -> float | None:
        return entry["kl"] * entry["completions/mean_length"] if "kl" in entry else None
