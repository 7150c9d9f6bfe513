"""What a run is: task, policy, reward, PPO, risk, SFT and evaluation, typed, validated, each number written once.

A profile is a YAML file in `rarlhf_nb/profiles/`. `load_profile` reads one, lays overrides by dotted key over it
(`{"risk.alpha": 0.2}`) and refuses whatever does not fit, before any work starts.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rarlhf_nb.errors import UserError
from rarlhf_nb.risk import SoftRiskSchedule

PROFILE_FOLDER = Path(__file__).parent / "profiles"
Share = Field(gt=0, le=1)


class Section(BaseModel):
    """A part of a profile: unknown keys are refused, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSettings(Section):
    """Which prompts: the first `prompt_length` tokens of each text."""

    name: Literal["imdb-gen", "jigsaw-gen"]
    source: Literal["pocket-imdb", "pocket-jigsaw", "files"]
    train_file: str | None = None  # JSONL, CSV or Parquet with `text` and an optional `label`
    test_file: str | None = None
    prompt_length: int = Field(gt=0)  # tokens
    train_prompts: int = Field(gt=0)  # at most this many are used
    test_prompts: int = Field(gt=0)
    minimum_characters: int = Field(ge=0)  # shorter texts give no prompt
    positive_label: int = 1  # SFT and perplexity use the texts with this label
    tail_threshold: float  # tail prompts: prompt_score <= this

    @model_validator(mode="after")
    def files_are_given(self) -> "TaskSettings":
        for field in ("train_file", "test_file"):
            path = getattr(self, field)
            if self.source == "files" and path is None:
                raise ValueError(
                    f"task.{field} is missing: name a JSONL, CSV or Parquet file with a `text` column, "
                    f"for example -p task.{field} reviews.jsonl"
                )
            if path is not None and not Path(path).is_file():
                raise ValueError(f"task.{field} = {path!r}: there is no such file")
        return self


class LoraSettings(Section):
    """A peft LoRA adapter on the policy; the reference is then the same network with the adapter off."""

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1, default=0.0)


class PolicySettings(Section):
    """The causal LM: `pocket`, `smollm2`, a folder, or a hub id."""

    model: str
    lora: LoraSettings | None = None
    mixed_precision: Literal["no", "bf16"] = "no"


class RewardSettings(Section):
    """The classifier whose raw logit of class `label`, times `sign`, is the reward of prompt + completion."""

    model: str  # `pocket`, `train` (on the labelled training texts), a folder, or a hub id
    label: int = 1
    accepted_label_names: list[str] = []
    sign: Literal[1, -1] = 1
    batch_size: int = Field(gt=0, default=128)


class SamplingSettings(Section):
    """How completions are drawn, the same for training and evaluation; no top-k, no top-p."""

    completion_length: int = Field(gt=0)  # most new tokens
    minimum_completion_length: int = Field(ge=0)  # EOS is forbidden before
    temperature: float = Field(gt=0, default=1.0)

    @model_validator(mode="after")
    def minimum_fits(self) -> "SamplingSettings":
        if self.minimum_completion_length > self.completion_length:
            raise ValueError(
                f"sampling.minimum_completion_length = {self.minimum_completion_length} is above "
                f"sampling.completion_length = {self.completion_length}; lower it"
            )
        return self


class SFTSettings(Section):
    """Supervised fine-tuning on the positive / non-toxic texts, the start and the reference of every RL method."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    epochs: float = Field(gt=0)
    max_length: int = Field(gt=1)  # tokens
    texts: int | None = Field(gt=0, default=None)  # at most this many; None: all


class PPOSettings(Section):
    """Algorithm 1's PPO."""

    iterations: int = Field(gt=0)  # M
    batch_size: int = Field(gt=1)  # B, episodes an iteration
    micro_batch_size: int | None = Field(gt=0, default=None)  # episodes a backward pass; None: all kept at once
    epochs: int = Field(gt=0)  # PPO epochs, one optimizer step each
    learning_rate: float = Field(gt=0)
    gamma: float = Field(ge=0, le=1, default=1.0)
    lam: float = Field(ge=0, le=1, default=0.95)  # GAE lambda
    cliprange: float = Field(gt=0, default=0.2)
    cliprange_value: float = Field(gt=0, default=0.2)
    vf_coef: float = Field(ge=0, default=0.1)
    kl_coef: float = Field(ge=0)  # beta_0
    kl_target: float | None = Field(gt=0, default=None)  # nats per episode; None: beta stays fixed
    kl_horizon: int = Field(gt=0, default=10_000)  # episodes; K_beta = B / horizon
    ratio_threshold: float = Field(gt=1, default=10.0)  # epochs stop where the mean ratio exceeds it
    max_grad_norm: float | None = Field(gt=0, default=None)


class RiskSettings(Section):
    """Which episodes count: RLHF is alpha = 1."""

    alpha: float = Share  # tail share
    warm_start: int = Field(ge=0)  # n, iterations that keep every episode
    rho: float = Share  # share of the iterations at which alpha is reached
    estimator: Literal["tail_selection", "rockafellar_uryasev"] = "tail_selection"
    rank_by: Literal["return", "env_reward"] = "return"  # return: the paper
    kl_average: Literal["kept", "batch"] = "kept"  # kept: the paper; batch: kept sum / B, the authors' code

    def for_method(self, method: str) -> "RiskSettings":
        """The settings that a method's name stands for; `ra_rlhf@0.2` is `ra_rlhf` at alpha = 0.2."""
        name, _, alpha = method.partition("@")
        changes: dict[str, dict[str, Any]] = {
            "rlhf": {"alpha": 1.0, "estimator": "tail_selection"},
            "ra_rlhf": {"estimator": "tail_selection"},
            "ra_rlhf_ru": {"estimator": "rockafellar_uryasev"},
        }
        if name not in changes:
            raise UserError(f"method = {method!r} is not trained by PPO; those that are: {', '.join(changes)}.")
        return RiskSettings(**self.model_dump() | changes[name] | ({"alpha": float(alpha)} if alpha else {}))


class EvaluationSettings(Section):
    """One way to measure every method: the same prompts, seeds and sampling."""

    samples_per_prompt: int = Field(gt=0, default=1)
    held_out_texts: int = Field(gt=0)
    held_out_length: int = Field(gt=1)  # tokens a text
    cvar_levels: list[float] = [0.01, 0.05, 0.1, 0.2, 0.4]
    resamples: int = Field(gt=0, default=2000)
    batch_size: int = Field(gt=0, default=128)


class Profile(Section):
    """A whole run, but for its seed."""

    name: str
    description: str
    task: TaskSettings
    policy: PolicySettings
    reward: RewardSettings
    sampling: SamplingSettings
    sft: SFTSettings
    ppo: PPOSettings
    risk: RiskSettings
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def schedule_fits(self) -> "Profile":
        self.schedule()
        return self

    def schedule(self) -> SoftRiskSchedule:
        """The soft-risk schedule of this profile's risk settings."""
        risk, ppo = self.risk, self.ppo
        return SoftRiskSchedule(ppo.batch_size, risk.alpha, ppo.iterations, risk.warm_start, risk.rho)


@cache
def profile_files() -> dict[str, Path]:
    """Every name a profile goes by, aliases included, with its file."""
    files = {path.stem: path for path in sorted(PROFILE_FOLDER.glob("*.yaml"))}
    return files | {"pocket": files["pocket-imdb"]}


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read the profile `name` and lay `overrides` (dotted key -> value) over it.

    Raises `UserError` for an unknown profile or key (with the nearest name) and for values that do not fit.
    """
    files = profile_files()
    if name not in files:
        raise UserError(f"profile = {name!r} is unknown{_nearest(name, files)}; there are: {', '.join(sorted(files))}.")
    settings = yaml.safe_load(files[name].read_text())
    for key, value in (overrides or {}).items():
        _override(settings, key, value)
    try:
        return Profile(**settings)
    except ValidationError as error:
        raise UserError("; ".join(_readable(item) for item in error.errors())) from None


def known_keys() -> list[str]:
    """Every dotted key that an override may name."""
    return [
        f"{section}.{key}"
        for section, field in Profile.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields
    ]


def _override(settings: dict[str, Any], key: str, value: Any) -> None:
    if key not in known_keys():
        raise UserError(f"parameter {key!r} is unknown{_nearest(key, known_keys())}; {_siblings(key)}.")
    section, field = key.split(".")
    settings[section][field] = value


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    # "alpha" alone means "risk.alpha": the last part of a dotted key is what people remember
    close = [key for key in known if key.split(".")[-1] == name] or close
    return f"; did you mean {close[0]!r}?" if close else ""


def _siblings(key: str) -> str:
    section = key.split(".")[0]
    keys = [known for known in known_keys() if known.startswith(f"{section}.")]
    return (
        f"{section} takes: {', '.join(keys)}" if keys else f"sections are: {', '.join(list(Profile.model_fields)[2:])}"
    )


def _readable(item: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], (dict, BaseModel)):
        return f"{field}: {message}" if item["type"] == "missing" else message
    return f"{field} = {item['input']!r}: {message[0].lower()}{message[1:]}"
