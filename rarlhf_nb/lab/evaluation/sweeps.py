"""The scores of runs that differ only in the seed, or in the seed and a few settings, compared over seeds.

Scores are a table with one row per run and method: columns run, seed, kl_coef, further settings under their dotted key
(`ppo.learning_rate`), method, and one column per metric.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import interval_cell
from rarlhf_nb.lab.evaluation.metrics import seed_interval, stratified_interval
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.methods import MethodKey, method_name, method_order
from rarlhf_nb.lab.runs import MANIFEST, Run
from rarlhf_nb.risk import cvar

SAME_AS_RLHF = ("ra_rlhf@1", "ra_rlhf_ru@1")  # step for step


def related_scores(run: Run, free: Sequence[str] = ()) -> pd.DataFrame:
    """The reports of `run` and of all runs beside it that differ from it only in the seed and the `free` settings.

    free: dotted keys such as "ppo.kl_coef". One row per run and method: columns run, seed, kl_coef, the other free
    settings under their dotted key, method and every metric of report.json. Of two runs with the same seed and settings
    only the first by name is kept.
    """
    wanted = _comparable(run.manifest["settings"], free)
    rows = []
    for folder in sorted(path.parent for path in run.folder.parent.glob(f"*/{MANIFEST}")):
        try:
            manifest = Run(folder).manifest
            if (folder / "report.json").exists() and _comparable(manifest["settings"], free) == wanted:
                values = _free_values(manifest["settings"], free)
                rows += [values | row for row in run_scores(Run(folder))]
        except UserError as error:
            warnings.warn(f"a run is left out: {error}", stacklevel=2)
    scores = pd.DataFrame(rows)
    return scores.drop_duplicates([*grid_settings(scores), "seed", "method"], ignore_index=True) if rows else scores


def _free_values(settings: dict, free: Sequence[str]) -> dict[str, float | str]:
    """The free settings of a run, besides kl_coef: numbers, and all else as text."""
    values = {}
    for key in sorted(set(free) - {"ppo.kl_coef"}):
        section, _, name = key.partition(".")
        value = settings.get(section, {}).get(name)
        values[key] = value if isinstance(value, (int, float)) else str(value)
    return values


def _comparable(settings: dict, free: Sequence[str]) -> dict:
    """The settings without those that may differ. A run's sweep may differ too: it adds methods and changes none."""
    return {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in free}
        for section, values in settings.items()
        if isinstance(values, dict) and section != "sweep"
    }


def run_scores(run: Run) -> list[dict]:
    """The rows of one run, from its report.json. Raises `UserError` where that is missing or damaged."""
    manifest, report = run.manifest, run.read_json("report.json")
    common = {"run": run.folder.name, "seed": manifest["seed"], "kl_coef": manifest["settings"]["ppo"]["kl_coef"]}
    return [
        common | {"method": method} | {key: _number(cell["value"]) for key, cell in metrics.items()}
        for method, metrics in report["methods"].items()
    ]


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def seed_table(scores: pd.DataFrame, metrics: dict[str, str], baseline: str = "rlhf") -> pd.DataFrame:
    """Metrics over seeds, for reading: one row per method.

    metrics: key -> its name for readers. Each metric has three columns: its mean over seeds with the 95 % t interval,
    its interquartile mean with the 95 % bootstrap interval over seeds, and the mean difference from the baseline,
    paired by seed, with its t interval.
    """
    rows = {}
    for method in method_order(scores["method"].unique()):
        own = scores[scores["method"] == method]
        differences = paired_differences(scores, list(metrics), method, baseline)
        row = {"seeds": str(len(own))}
        for key, name in metrics.items():
            values = own[key].to_numpy()
            difference = seed_interval(differences[key].dropna())
            row[f"{name}: mean"] = interval_cell(seed_interval(values))
            row[f"{name}: interquartile mean"] = interval_cell(stratified_interval(values[:, None]))
            row[f"{name}: − {method_name(baseline)}"] = "–" if method == baseline else interval_cell(difference)
        rows[method_name(method)] = row
    return pd.DataFrame(rows).T


def paired_differences(scores: pd.DataFrame, metrics: Sequence[str], method: str, baseline: str) -> pd.DataFrame:
    """Method minus baseline: one row per seed and one column per metric, NaN where one of the two has no value."""
    ours, theirs = (scores[scores["method"] == name].set_index("seed")[[*metrics]] for name in (method, baseline))
    return ours - theirs


def grid_settings(scores: pd.DataFrame) -> list[str]:
    """The columns that hold settings of the runs: kl_coef (`ppo.kl_coef` is the same), and those with a dotted key."""
    dotted = re.compile(r"(?!ppo\.kl_coef$)[a-z_]+(\.[a-z]\w*)+")
    return [column for column in scores if column == "kl_coef" or dotted.fullmatch(column)]


def settings_title(keys: Iterable[str], values: Iterable[Any]) -> str:
    """A setting of the grid as text: "kl_coef 0.2, ppo.learning_rate 0.0003"."""
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))


def distinct_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, seed and method, in the order of the table.

    A method that does not depend on a setting of the sweep appears once per run, and its first row is kept. Those of
    `SAME_AS_RLHF` are left out.
    """
    own = scores[~scores["method"].isin(SAME_AS_RLHF)]
    return own.drop_duplicates([*grid_settings(scores), "seed", "method"], ignore_index=True)


def alpha_scores(tables: Tables, profile_alpha: float, seed: int) -> pd.DataFrame:
    """The scores of one run's policies that differ in alpha alone: RLHF, both estimators, and the conditioned policy.

    profile_alpha: of the estimators' plain names. Columns seed, method (with its alpha, but for RLHF), reward, cvar_10
    and kl; the conditioned policy has one row per evaluated alpha.
    """
    episodes = {"rlhf": tables.episodes["rlhf"]} if "rlhf" in tables.episodes else {}
    for method, table in tables.episodes.items():
        base, alpha = MethodKey.parse(method)
        if base in ("ra_rlhf", "ra_rlhf_ru"):
            episodes[str(MethodKey(base, alpha or profile_alpha))] = table
    for method, table in tables.alphas.items():
        episodes |= {str(MethodKey(method, alpha)): part for alpha, part in table.groupby("alpha")}
    rows = [
        {
            "seed": seed,
            "method": method,
            "reward": table["reward"].mean(),
            "cvar_10": cvar(table["reward"].to_numpy(), 0.1),
            "kl": table["kl"].mean(),
        }
        for method, table in episodes.items()
    ]
    return pd.DataFrame(rows)


def sweep_families(methods: Sequence[str], profile_alpha: float | None = None) -> dict[str, dict[float, str]]:
    """The sweeps among `methods`: name -> trained alpha -> method.

    profile_alpha: the alpha of the sweep's plain name; None leaves the plain name out.
    """
    families: dict[str, dict[float, str]] = {}
    for method in methods:
        name, alpha = MethodKey.parse(method)
        if alpha is not None:
            families.setdefault(name, {})[alpha] = method
    for name, members in families.items():
        if name in methods and profile_alpha is not None:
            members.setdefault(profile_alpha, name)
    return families
