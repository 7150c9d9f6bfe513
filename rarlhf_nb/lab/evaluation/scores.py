"""The scores of several runs: collected from their reports, and compared over seeds and at equal KL.

Scores are a table with one row per run and method: columns run, seed, kl_coef, further settings under their dotted key
(`ppo.learning_rate`), method, and one column per metric.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.metrics import Interval
from rarlhf_nb.lab.evaluation.report import read_report, wide
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.methods import CRITIC_FREE, MethodKey
from rarlhf_nb.lab.runs import MANIFEST, Run
from rarlhf_nb.risk import cvar

ESTIMATORS = ("ra_rlhf", "ra_rlhf_ru")
SAME_AS_RLHF = tuple(f"{method}@1" for method in ESTIMATORS)  # step for step


def run_scores(run: Run, settings: dict[str, Any]) -> pd.DataFrame:
    """The rows of one run, from its report.json. settings: further columns. Raises the errors of `read_report`."""
    scores = wide(read_report(run).own, "value").reset_index(names="method")
    kl_coef = run.manifest["settings"]["ppo"]["kl_coef"]
    common = settings | {"run": run.folder.name, "seed": run.manifest["seed"], "kl_coef": kl_coef}
    return scores.assign(**common)[[*common, *scores]]


def related_scores(run: Run, free: Sequence[str] = ()) -> pd.DataFrame:
    """The reports of `run` and of all runs beside it that differ from it only in the seed and the `free` settings.

    free: dotted keys such as "ppo.kl_coef". One row per run and method: columns run, seed, kl_coef, the other free
    settings under their dotted key, method and every metric of report.json. Of two runs with the same seed and settings
    only the first by name is kept.
    """
    wanted, _ = _settings(run, free)
    found = []
    for path in sorted(run.folder.parent.glob(f"*/{MANIFEST}")):
        other = Run(path.parent)
        try:
            fixed, varied = _settings(other, free)
            if fixed == wanted and other.path("report.json").exists():
                found.append(run_scores(other, varied))
        except UserError as error:
            warnings.warn(f"a run is left out: {error}", stacklevel=2)
    if not found:
        return pd.DataFrame()
    scores = pd.concat(found, ignore_index=True)
    return scores.drop_duplicates([*grid_settings(scores), "seed", "method"], ignore_index=True)


def _settings(run: Run, free: Sequence[str]) -> tuple[dict[str, Any], dict[str, float | str]]:
    """The settings of a run that must not differ, and the free ones besides kl_coef: numbers, and all else as text.

    A run's sweep is in neither, since it adds methods and changes none.
    """
    sections = {
        name: own for name, own in run.manifest["settings"].items() if isinstance(own, dict) and name != "sweep"
    }
    settings = {f"{name}.{key}": value for name, own in sections.items() for key, value in own.items()}
    varied = {key: settings.get(key) for key in sorted(set(free) - {"ppo.kl_coef"})}
    texts = {key: value if isinstance(value, (int, float)) else str(value) for key, value in varied.items()}
    return {key: value for key, value in settings.items() if key not in free}, texts


def alpha_scores(tables: Tables, profile_alpha: float, seed: int) -> pd.DataFrame:
    """The scores of one run's policies that differ in alpha alone: RLHF, both estimators, and the conditioned policy.

    profile_alpha: of the estimators' plain names. Columns seed, method (with its alpha, but for RLHF), reward, cvar_10
    and kl; the conditioned policy has one row per evaluated alpha.
    """
    episodes = {"rlhf": tables.episodes["rlhf"]} if "rlhf" in tables.episodes else {}
    for method, table in tables.episodes.items():
        base, alpha = MethodKey.parse(method)
        if base in ESTIMATORS or (alpha is not None and base not in CRITIC_FREE):
            episodes[str(MethodKey(base, alpha or profile_alpha))] = table
    for method, table in tables.alphas.items():
        episodes |= {str(MethodKey(method, alpha)): part for alpha, part in table.groupby("alpha")}
    rows = [
        (seed, method, table["reward"].mean(), cvar(table["reward"], 0.1), table["kl"].mean())
        for method, table in episodes.items()
    ]
    return pd.DataFrame(rows, columns=["seed", "method", "reward", "cvar_10", "kl"])


# Comparisons


def paired_differences(scores: pd.DataFrame, metrics: Sequence[str], method: str, baseline: str) -> pd.DataFrame:
    """Method minus baseline: one row per seed and one column per metric, NaN if one of the two has no value."""
    ours, theirs = (scores[scores["method"] == name].set_index("seed")[[*metrics]] for name in (method, baseline))
    return ours - theirs


def gain_at_equal_kl(scores: pd.DataFrame, metric: str, method: str, baseline: str) -> Interval:
    """Method minus baseline at equal KL, which takes out what is bought with less regularisation.

    It is d in metric = a(seed) + b √KL + d [method], with its 95 % t interval, fitted by least squares to all runs of
    the two methods that have a value. Rewards are close to a straight line in √KL (Gao, Schulman and Hilton 2023,
    "Scaling laws for reward model overoptimization"), and the line is taken to be equally steep for both.

    scores: columns seed, method, kl (nats) and the metric. NaN if the runs are too few, or the two methods have no KL
    in common.
    """
    runs = scores[scores["method"].isin([method, baseline])].dropna(subset=["kl", metric])
    ours, kl = (runs["method"] == method).to_numpy(), runs["kl"].to_numpy(dtype=float)
    nothing = Interval(np.nan, np.nan, np.nan)
    if not ours.any() or ours.all() or max(kl[ours].min(), kl[~ours].min()) > min(kl[ours].max(), kl[~ours].max()):
        return nothing
    others = np.column_stack([np.sqrt(kl.clip(min=0)), pd.get_dummies(runs["seed"])]).astype(float)
    terms = np.column_stack([ours, others])
    rank = np.linalg.matrix_rank(terms)
    freedom = len(runs) - rank
    if freedom == 0 or rank == np.linalg.matrix_rank(others):
        return nothing
    inverse, values = np.linalg.pinv(terms), runs[metric].to_numpy(dtype=float)
    fitted = inverse @ values
    gain = float(fitted[0])
    variance = np.square(values - terms @ fitted).sum() / freedom
    half = float(special.stdtrit(freedom, 0.975) * np.sqrt(variance) * np.linalg.norm(inverse[0]))
    return Interval(gain, gain - half, gain + half)


# The grid of a sweep


def grid_settings(scores: pd.DataFrame) -> list[str]:
    """The columns that hold settings of the runs: kl_coef (`ppo.kl_coef` is the same), and those with a dotted key."""
    dotted = re.compile(r"(?!ppo\.kl_coef$)[a-z_]+(\.[a-z]\w*)+")
    return [column for column in scores if column == "kl_coef" or dotted.fullmatch(column)]


def settings_title(keys: Iterable[str], values: Iterable[Any]) -> str:
    """A setting of the grid as text, without what is NaN: "kl_coef 0.2, ppo.learning_rate 0.0003"."""
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True) if not pd.isna(value))


def distinct_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, seed and method, in the order of the table.

    A method that does not depend on a setting of the sweep appears once per run, and its first row is kept. Those of
    `SAME_AS_RLHF` are left out.
    """
    own = scores[~scores["method"].isin(SAME_AS_RLHF)]
    return own.drop_duplicates([*grid_settings(scores), "seed", "method"], ignore_index=True)


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
