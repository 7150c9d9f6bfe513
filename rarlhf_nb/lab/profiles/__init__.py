"""The settings of a run: every section of `settings`, and what only the lab needs.

A profile is a YAML file beside this module, where each number of the paper is written once; it may extend another
profile, from which it takes all that it does not set. `load_profile` reads it, applies overrides by dotted key
(`{"risk.alpha": 0.2}`), and refuses what does not fit before any work starts.
"""

import difflib
import os
import reprlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.methods import CONDITIONED, CRITIC_FREE, MethodKey
from rarlhf_nb.risk import SoftRiskSchedule
from rarlhf_nb.settings import (
    ConditionedSettings,
    CriticFreeSettings,
    PolicySettings,
    PPOSettings,
    QuarkSettings,
    RewardSettings,
    RiskSettings,
    SamplingSettings,
    Section,
    SFTSettings,
    Share,
    TaskSettings,
    WatchSettings,
)

PROFILE_FOLDER = Path(__file__).parent


def risk_of_method(risk: RiskSettings, method: str) -> RiskSettings:
    """The risk settings with which a method is trained; `ra_rlhf@0.2` is `ra_rlhf` at alpha = 0.2."""
    name, alpha = MethodKey.parse(method)
    changes: dict[str, dict[str, Any]] = {
        "rlhf": {"alpha": 1.0, "estimator": "tail_selection", "above_share": 1.0, "whitening": "kept"},
        "ra_rlhf": {"estimator": "tail_selection", "above_share": 1.0},
        "ra_rlhf_ru": {"estimator": "rockafellar_uryasev", "whitening": "kept"},
        "grpo": {"alpha": 1.0},
        "rloo": {"alpha": 1.0},
        "cvar_grpo": {},
        "cvar_rloo": {},
    }
    if name not in changes:
        raise UserError(f"method = {method!r} is not trained with a tail share; choose one of {', '.join(changes)}.")
    return RiskSettings(**risk.model_dump() | changes[name] | ({} if alpha is None else {"alpha": alpha}))


class PromptedSettings(Section):
    """The base model with an instruction before every prompt; validation prompts decide which one."""

    prefixes: list[str] = Field(min_length=1)
    validation_prompts: int = Field(gt=0)  # of the training prompts

    @model_validator(mode="after")
    def prefixes_say_something(self) -> "PromptedSettings":
        empty = [i for i, prefix in enumerate(self.prefixes) if not prefix.strip()]
        if empty:
            raise ValueError(f"prompted.prefixes: number {empty[0] + 1} is empty; write an instruction or drop it")
        return self


class DExpertsSettings(Section):
    """Decoding-time experts: base logits + alpha * (expert - anti-expert), within the base's nucleus."""

    alpha: float
    top_p: float = Field(gt=0, le=1, default=0.9)  # the nucleus of the base alone
    experts: SFTSettings  # for training expert and anti-expert


class BestOfNSettings(Section):
    """Best-of-n: the SFT policy writes several completions per prompt, and the one with the highest reward counts."""

    samples: int = Field(gt=1, default=4)  # n, completions per prompt


class SweepSettings(Section):
    """Further tail shares to train on with both estimators, besides `risk.alpha`."""

    alphas: list[float] = []

    @field_validator("alphas")
    @classmethod
    def shares(cls, alphas: list[float]) -> list[float]:
        wrong = [alpha for alpha in alphas if not 0 < alpha < 1]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a tail share between 0 and 1; correct or remove it")
        if len(set(alphas)) < len(alphas):
            raise ValueError("an alpha is listed twice; remove one of them")
        return alphas


class EvaluationSettings(Section):
    """How every method is evaluated: on the same prompts, with the same seeds and sampling."""

    samples_per_prompt: int = Field(gt=0, default=1)
    repeated_prompts: int = Field(ge=0, default=0)  # test prompts that are sampled often, for within-prompt metrics
    repeated_samples: int = Field(gt=1, default=25)  # per such prompt, as in RealToxicityPrompts
    held_out_texts: int = Field(gt=0)
    held_out_length: int = Field(gt=1)  # tokens per text
    alphas: int = Field(gt=1, default=12)  # from alpha_min to 1, at which the conditioned policy is measured
    cvar_levels: list[Annotated[float, Share]] = [0.01, 0.05, 0.1, 0.2, 0.4]
    resamples: int = Field(gt=0, default=2000)
    batch_size: int = Field(gt=0, default=128)


class ComputeSettings(Section):
    """How the machine is used, as far as it changes numbers."""

    threads: int | None = Field(gt=0, default=None)  # of torch on the CPU; None: torch's default at the first use
    processes: int = Field(gt=0, default=1)  # that train and evaluate together, each with so many threads


class Profile(Section):
    """All settings of a run except its seed."""

    name: str
    description: str
    task: TaskSettings
    policy: PolicySettings
    reward: RewardSettings
    sampling: SamplingSettings
    sft: SFTSettings
    ppo: PPOSettings
    risk: RiskSettings
    sweep: SweepSettings = SweepSettings()
    conditioned: ConditionedSettings = ConditionedSettings()
    prompted: PromptedSettings
    dexperts: DExpertsSettings
    quark: QuarkSettings
    best_of_n: BestOfNSettings = BestOfNSettings()
    critic_free: CriticFreeSettings
    watch: WatchSettings = WatchSettings()
    evaluation: EvaluationSettings
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def schedule_fits(self) -> "Profile":
        self.schedule()
        return self

    @model_validator(mode="after")
    def pocket_models_have_their_world(self) -> "Profile":
        for name in ("policy", "reward"):
            if getattr(self, name).model == "pocket" and not self.task.source.startswith("pocket"):
                raise ValueError(
                    f"{name}.model = 'pocket' has learnt the texts of a pocket world, and task.source is "
                    f"{self.task.source!r}; name a folder or a hub id"
                )
        return self

    @model_validator(mode="after")
    def every_process_has_an_episode(self) -> "Profile":
        if self.compute.processes > self.ppo.batch_size:
            raise ValueError(
                f"compute.processes = {self.compute.processes} is above ppo.batch_size = {self.ppo.batch_size}, but "
                "each process must sample an episode; lower it"
            )
        return self

    def schedule(self) -> SoftRiskSchedule:
        """The soft-risk schedule of this profile's risk settings."""
        return self.risk.schedule(self.ppo)


def training_sections(profile: Profile, method: str) -> dict[str, Section]:
    """The sections of a profile that a method's trainer takes, by their names; `risk` is the method's own."""
    if method == "quark":
        return {"quark": profile.quark}
    if method == CONDITIONED:
        schedule = profile.risk.model_copy(update={"alpha": profile.conditioned.alpha_min})
        return {"ppo": profile.ppo, "risk": schedule, "conditioned": profile.conditioned}
    own = {"critic_free": profile.critic_free} if MethodKey.parse(method).name in CRITIC_FREE else {}
    return own | {"ppo": profile.ppo, "risk": risk_of_method(profile.risk, method)}


@cache
def profile_files() -> dict[str, Path]:
    """Every name of a profile, including aliases, with its file."""
    files = {path.stem: path for path in sorted(PROFILE_FOLDER.glob("*.yaml"))}
    return files | {"pocket": files["pocket-imdb"]}


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read the profile `name` and apply `overrides` (dotted key -> value).

    Raises `UserError` for an unknown profile or key, with the nearest known name, and for values that do not fit.
    """
    files = profile_files()
    if name not in files:
        raise UserError(f"profile = {name!r} is unknown{_nearest(name, files)}; there are: {', '.join(sorted(files))}.")
    settings = _read(files[name])
    for key, value in (overrides or {}).items():
        _override(settings, key, value)
    try:
        profile = Profile(**settings)
    except ValidationError as error:
        raise UserError("; ".join(_readable(item) for item in error.errors())) from None
    for field in ("train_file", "test_file"):  # a run that has its data is opened without them
        path = getattr(profile.task, field)
        if path is not None and not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            raise UserError(f"task.{field} = {shown(path)}: there is no such file")
    return profile


def read_settings(pairs: list[str], lists: bool = False) -> dict[str, Any]:
    """["risk.alpha=0.2"] -> {"risk.alpha": 0.2}; the values are YAML. lists: they are YAML lists without brackets.

    Raises `UserError` for a value that is missing or cannot be read.
    """
    missing, wanted = "value is missing; write -p KEY VALUE", "a YAML value; quote it, as in '\"...\"'"
    if lists:
        missing, wanted = "values are missing; write -p KEY VALUE,VALUE", "a list of YAML values, such as 0.1,0.2"
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or (lists and not text.strip()):
            raise UserError(f"-p {key}: the {missing}.")
        try:
            found[key] = yaml.safe_load(f"[{text}]" if lists else text)
        except Exception:  # besides its own errors, PyYAML lets those of int(), datetime() and deep nesting through
            raise UserError(f"-p {key} {text!r}: this is not {wanted}.") from None
    return found


def _read(file: Path) -> dict[str, Any]:
    """The settings in a profile's file, on top of those of the profile that it extends."""
    own = yaml.safe_load(file.read_text())
    base = own.pop("extends", None)
    return own if base is None else _merged(_read(profile_files()[base]), own)


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `own`, section by section."""
    sections = {key for key, value in own.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | own | {key: _merged(base[key], own[key]) for key in sections}


def known_keys(section: type[Section] = Profile) -> list[str]:
    """Every dotted key that can be overridden, such as `risk.alpha` and `dexperts.experts.learning_rate`."""
    keys = []
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None:
            keys += [f"{name}.{key}" for key in known_keys(inner)]
        if section is not Profile:
            keys.append(name)
    return keys


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds, also for `LoraSettings | None`; None for a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _override(settings: dict[str, Any], key: str, value: Any) -> None:
    if key not in known_keys():
        raise UserError(f"parameter {key!r} is unknown{_nearest(key, known_keys())}; {_siblings(key)}.")
    *sections, field = key.split(".")
    for section in sections:
        inner = settings.get(section) or {}  # an optional section that the profile lacks
        if not isinstance(inner, dict):
            outer = key.rpartition(".")[0]
            raise UserError(f"parameter {key!r}: another parameter sets {outer} to {shown(inner)}; drop one of them.")
        settings[section] = dict(inner)
        settings = settings[section]
    settings[field] = value


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    # people remember the last part of a dotted key ("alpha" for "risk.alpha"); prefer the shortest such key
    close = sorted((key for key in known if key.split(".")[-1] == name), key=lambda key: key.count(".")) or close
    return f" (did you mean {close[0]!r}?)" if close else ""


def _siblings(key: str) -> str:
    section = key.split(".")[0]
    keys = [known for known in known_keys() if known.startswith(f"{section}.")]
    return (
        f"{section} takes: {', '.join(keys)}" if keys else f"sections are: {', '.join(list(Profile.model_fields)[2:])}"
    )


def shown(value: Any) -> str:
    """The `repr` of a value, cut if it is long: YAML's aliases can make it grow without end."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 3, 200
    return short.repr(value)


def _readable(item: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_type" and item["input"] is not None:
        message = f"YAML reads this as {type(item['input']).__name__}; to give a text, put it in quotes, as in '\"7\"'"
    if item["type"] == "missing":
        return f"{field}: {message}"
    if item["type"] == "value_error" and isinstance(item["input"], (dict, BaseModel)):
        return message  # of a whole section, which names its fields itself
    return f"{field} = {shown(item['input'])}: {message[0].lower()}{message[1:]}"
