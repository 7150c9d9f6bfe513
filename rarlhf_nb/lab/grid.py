"""The grid of a sweep: every combination of α, seed and other settings, one run each."""

import json
import re
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, NamedTuple

import yaml

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.risk import check_alpha

RANGE = re.compile(r"(\d+)-(\d+)")


class Cell(NamedTuple):
    """One run of a sweep. free: its values of the settings that the grid varies besides α and seed."""

    name: str
    alpha: float
    seed: int
    free: dict[str, Any]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a sweep varies, and what it keeps.

    free: dotted key -> the values to try. fixed: dotted key -> value. Raises `UserError` for an α outside (0, 1], for
    a value listed twice, for settings that do not fit, and for runs that would share a folder.
    """

    profile: str
    alphas: list[float]
    seeds: list[int]
    free: dict[str, list[Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            check_alpha(alpha)
        for name, values in self._lists().items():
            if not values:
                raise UserError(f"{name} is empty: give at least one value.")
        for key in ("risk.alpha", "sweep.alphas"):
            if key in self.free or key in self.fixed:
                raise UserError(f"-p {key}: a sweep takes its α from --alpha; give it there.")
        object.__setattr__(self, "free", {key: self._read(key) for key in self.free})
        for name, values in self._lists().items():
            twice = _repeated(values)
            if twice:
                raise UserError(f"{name}: {twice[0]} is listed twice; remove one of them.")
        alike = _repeated([cell.name for cell in self.cells()])
        if alike:
            raise UserError(
                f"two runs of the grid would share the folder {alike[0]}: leave out one of the close values."
            )
        for combination in self._combinations():
            for alpha in self.alphas:
                load_profile(self.profile, self._overrides(alpha, combination))

    def cells(self) -> list[Cell]:
        """All cells; those with the first α come first, since they do the work that the others share."""
        return [
            Cell(self._name(alpha, seed, free), alpha, seed, free, self._overrides(alpha, free))
            for alpha in self.alphas
            for free in self._combinations()
            for seed in self.seeds
        ]

    def settings(self, cell: Cell) -> Profile:
        """The profile of a cell."""
        return load_profile(self.profile, cell.overrides)

    def extends(self, other: "Grid") -> bool:
        """Whether this grid has every cell of `other`, so that a sweep may grow into it."""
        same = (self.profile, self.fixed, list(self.free)) == (other.profile, other.fixed, list(other.free))
        mine = {cell.name: cell.overrides for cell in self.cells()}
        return same and all(mine.get(cell.name) == cell.overrides for cell in other.cells())

    def columns(self, cell: Cell) -> dict[str, Any]:
        """The free settings of a cell for a table: numbers, and text where not all values of a setting are numbers."""
        return {key: value if self._numeric(key) else _text(value) for key, value in cell.free.items()}

    def _numeric(self, key: str) -> bool:
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.free[key])

    def _lists(self) -> dict[str, list[Any]]:
        return {"--alpha": self.alphas, "--seed": self.seeds} | {f"-p {key}": self.free[key] for key in self.free}

    def _read(self, key: str) -> list[Any]:
        """The values of a free setting as the profile reads them: YAML takes 1e-4 for text."""
        others = {name: values[0] for name, values in self.free.items()}
        return [
            _setting(load_profile(self.profile, self._overrides(self.alphas[0], others | {key: value})), key)
            for value in self.free[key]
        ]

    def _combinations(self) -> list[dict[str, Any]]:
        return [dict(zip(self.free, values, strict=True)) for values in product(*self.free.values())]

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


def _repeated(values: list[Any]) -> list[Any]:
    """The values that occur earlier in the list; they need not be hashable."""
    return [value for place, value in enumerate(values) if value in values[:place]]


def _setting(profile: Profile, key: str) -> Any:
    """The value under a dotted key, as JSON."""
    value = profile.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def to_json(grid: Grid) -> dict[str, Any]:
    """The grid as JSON; `Grid(**...)` reads it."""
    return asdict(grid)


def read_alphas(text: str) -> list[float]:
    """ "1,0.4" -> [1.0, 0.4]. Raises `UserError` for what is not a number."""
    return [_number("--alpha", part) for part in text.split(",")]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} {text!r} is not a number; write for example {option} 1,0.4,0.2.") from None


def read_seeds(text: str) -> list[int]:
    """ "1-3,7" -> [1, 2, 3, 7]. Raises `UserError` for what is neither a seed nor a range."""
    seeds: list[int] = []
    for part in text.split(","):
        found = RANGE.fullmatch(part.strip())
        if found and int(found[1]) <= int(found[2]):
            seeds += range(int(found[1]), int(found[2]) + 1)
        elif part.strip().isdecimal():
            seeds.append(int(part))
        else:
            raise UserError(f"--seed {part!r} is neither a seed nor a range; write for example --seed 1-5 or 1,4.")
    return seeds


def read_values(pairs: list[str]) -> dict[str, list[Any]]:
    """["ppo.kl_coef=0.1,0.2"] -> {"ppo.kl_coef": [0.1, 0.2]}; the values are a YAML list without its brackets."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            found = yaml.safe_load(f"[{text}]")
        except Exception:  # besides its own errors, PyYAML lets those of int(), datetime() and deep nesting through
            raise UserError(f"-p {key} {text!r}: this is not a list of YAML values, such as 0.1,0.2.") from None
        if not equals or not found:
            raise UserError(f"-p {key}: the values are missing; write -p KEY VALUE or -p KEY VALUE,VALUE.")
        values[key] = found
    return values
