"""A sweep: the grid of what it varies, and its folder, which holds one run for every combination."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import SWEEP, dumps_with_checksum, loads_with_checksum
from rarlhf_nb.lab.methods import (
    ANALYSIS_NOTEBOOK,
    BASELINES_NOTEBOOK,
    DATA_NOTEBOOK,
    EXPLORER_NOTEBOOK,
    RISK_NOTEBOOK,
    SFT_NOTEBOOK,
)
from rarlhf_nb.lab.profiles import Profile, load_profile, read_settings
from rarlhf_nb.lab.runs import MANIFEST, Run, check_name, default_root

TRIAL_NOTEBOOKS = [DATA_NOTEBOOK, SFT_NOTEBOOK, RISK_NOTEBOOK, BASELINES_NOTEBOOK]
SWEEP_NOTEBOOKS = [ANALYSIS_NOTEBOOK, EXPLORER_NOTEBOOK]  # which run once, on the whole sweep
MANY = 200  # runs; a larger grid is more often a slip than a wish
RANGE = re.compile(r"(\d+)-(\d+)")


class Trial(NamedTuple):
    """One run of a sweep. free: its values of the settings that the grid varies besides α and seed."""

    name: str
    alpha: float
    seed: int
    free: dict[str, Any]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a sweep varies, and what it keeps.

    free: dotted key -> the values to try. fixed: dotted key -> value. Raises `UserError` for a value listed twice, for
    settings that do not fit, and for runs that would share a folder.
    """

    profile: str
    alphas: list[float]
    seeds: list[int]
    free: dict[str, list[Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("risk.alpha", "sweep.alphas"):
            if key in self.free or key in self.fixed:
                raise UserError(f"-p {key}: a sweep takes its α from --alpha; give it there.")
        object.__setattr__(self, "free", {key: self._read(key) for key in self.free})
        lists = {"--alpha": self.alphas, "--seed": self.seeds} | {f"-p {key}": self.free[key] for key in self.free}
        for name, values in lists.items():
            for value in _repeated(values):
                raise UserError(f"{name}: {value} is listed twice; remove one of them.")
        for name in _repeated([trial.name for trial in self.trials()]):
            raise UserError(f"two runs of the grid would share the folder {name}: leave out one of the close values.")
        for trial in self.trials():
            if trial.seed == self.seeds[0]:  # the seed is no setting
                self.settings(trial)

    def trials(self) -> list[Trial]:
        """All runs; those with the first α come first, since they do the work that the others share."""
        return [
            Trial(self._name(alpha, seed, free), alpha, seed, free, self._overrides(alpha, free))
            for alpha in self.alphas
            for free in (dict(zip(self.free, values, strict=True)) for values in product(*self.free.values()))
            for seed in self.seeds
        ]

    def settings(self, trial: Trial) -> Profile:
        """The profile of a run."""
        return load_profile(self.profile, trial.overrides)

    def extends(self, other: "Grid") -> bool:
        """Whether this grid has every run of `other`, so that a sweep may grow into it."""
        same = (self.profile, self.fixed, list(self.free)) == (other.profile, other.fixed, list(other.free))
        mine = {trial.name: trial.overrides for trial in self.trials()}
        return same and all(mine.get(trial.name) == trial.overrides for trial in other.trials())

    def columns(self, trial: Trial) -> dict[str, Any]:
        """The free settings of a run for a table: numbers, and text if not all values of a setting are numbers."""
        numeric = {key for key, values in self.free.items() if all(map(_is_number, values))}
        return {key: value if key in numeric else _text(value) for key, value in trial.free.items()}

    def described(self) -> str:
        """The grid in words."""
        alphas, seeds = ",".join(f"{alpha:g}" for alpha in self.alphas), ",".join(map(str, self.seeds))
        settings = "".join(f", {key} {values}" for key, values in (self.fixed | self.free).items())
        return f"profile {self.profile}, α {alphas}, seeds {seeds}{settings}"

    def _read(self, key: str) -> list[Any]:
        """The values of a free setting as the profile reads them: YAML takes 1e-4 for text."""
        others = {name: values[0] for name, values in self.free.items()}
        return [
            _setting(load_profile(self.profile, self._overrides(self.alphas[0], others | {key: value})), key)
            for value in self.free[key]
        ]

    def _overrides(self, alpha: float, free: dict[str, Any]) -> dict[str, Any]:
        return self.fixed | free | {"risk.alpha": alpha, "sweep.alphas": []}

    def _name(self, alpha: float, seed: int, free: dict[str, Any]) -> str:
        parts = [f"alpha_{alpha:g}"]
        for key, value in free.items():
            text = f"{value:g}" if isinstance(value, float) else _text(value)
            # a value that cannot be a file name is named by its place in the list
            shown = text if re.fullmatch(r"[A-Za-z0-9_.-]{1,20}", text) else f"no{self.free[key].index(value) + 1}"
            parts.append(f"{key.split('.')[-1]}_{shown}")
        return "-".join([*parts, f"seed_{seed}"])


@dataclass(frozen=True)
class Sweep(Run):
    """A grid and its folder, which is a run folder too: it holds the notebooks and the report of the whole sweep."""

    grid: Grid

    @classmethod
    def open(cls, name: str, grid: Grid, root: Path | None = None) -> "Sweep":
        """Begin the sweep `name`, or reopen it; it may grow by further α, seeds and values.

        Raises `UserError` for a name that is taken by a run or by another grid, which is left untouched.
        """
        check_name(name)
        if "/" in name:
            raise UserError(f"sweep = {name!r}: a sweep lies beside the runs; leave out the /.")
        folder = (root or default_root()) / name
        if (folder / MANIFEST).exists() and not (folder / SWEEP).exists():
            raise UserError(f"sweep = {name!r} is the name of a run; choose another.")
        if (folder / SWEEP).exists():
            earlier = cls.reopen(name, root).grid
            if not grid.extends(earlier):
                raise UserError(
                    f"sweep = {name!r} belongs to other parameters: {earlier.described()} in the folder, "
                    f"{grid.described()} now. A sweep may only grow. Choose another name, or delete the folder."
                )
        sweep = cls(folder, grid)
        sweep.write(SWEEP, dumps_with_checksum(asdict(grid)))
        if not sweep.path(MANIFEST).exists():
            sweep.begin(grid.settings(grid.trials()[0]).model_dump(mode="json"), grid.seeds[0])
        return sweep

    @classmethod
    def reopen(cls, name: str, root: Path | None = None) -> "Sweep":
        """Open an existing sweep. Raises `UserError` if there is none, and if its grid is damaged."""
        check_name(name)
        folder = (root or default_root()) / name
        try:
            return cls(folder, Grid(**loads_with_checksum((folder / SWEEP).read_text())))
        except FileNotFoundError:
            raise UserError(f"sweep = {name!r}: there is no such sweep.") from None
        except UserError:
            raise
        except (ValueError, TypeError):
            raise UserError(
                f"{SWEEP} of sweep {name!r} is damaged: delete that file and run the same `rarlhf sweep` command "
                "again, which keeps all that is finished."
            ) from None

    def trial_run(self, trial: Trial) -> Run:
        """The run folder of a trial, whether or not it has been begun."""
        return Run(self.folder / trial.name)

    def finished_trials(self) -> list[Trial]:
        """The runs that have a report."""
        return [trial for trial in self.grid.trials() if self.trial_run(trial).path("report.json").exists()]


def read_grid(profile: str, alpha: str | None, seed: str, pairs: list[str], any_size: bool = False) -> Grid:
    """The grid that a user has written: α as "1,0.4", seeds as "1-3,7", and pairs such as "ppo.kl_coef=0.1,0.2".

    alpha: None for that of the profile. any_size: whether the grid may have more than `MANY` runs. Raises `UserError`
    for what cannot be read.
    """
    values = read_settings(pairs, lists=True)
    free = {key: several for key, several in values.items() if len(several) > 1}
    fixed = {key: several[0] for key, several in values.items() if len(several) == 1}
    alphas = [load_profile(profile, fixed).risk.alpha] if alpha is None else read_alphas(alpha)
    seeds = read_seeds(seed)
    size = len(alphas) * len(seeds) * prod(map(len, free.values()))
    if size > MANY and not any_size:
        raise UserError(f"the grid has {size} runs: make it smaller, or say --yes.")
    return Grid(profile, alphas, seeds, free, fixed)


def read_alphas(text: str) -> list[float]:
    """ "1,0.4" -> [1.0, 0.4]. Raises `UserError` for what is not a number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--alpha {text!r} is not a number or several, such as 1,0.4,0.2.") from None


def read_seeds(text: str) -> list[int]:
    """ "1-3,7" -> [1, 2, 3, 7]. Raises `UserError` for what is neither a seed nor a range."""
    seeds: list[int] = []
    for part in map(str.strip, text.split(",")):
        ends = RANGE.fullmatch(part)
        first, last = map(int, ends.groups() if ends else (part, part)) if ends or part.isdecimal() else (1, 0)
        if first > last:
            raise UserError(f"--seed {part!r} is neither a seed nor a range; write for example --seed 1-5 or 1,4.")
        seeds += range(first, last + 1)
    return seeds


def _repeated(values: list[Any]) -> Iterable[Any]:
    """The values that occur earlier in the list; they need not be hashable."""
    return (value for place, value in enumerate(values) if value in values[:place])


def _setting(profile: Profile, key: str) -> Any:
    """The value under a dotted key, as JSON."""
    value = profile.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
