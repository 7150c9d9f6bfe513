"""A sweep opened by its name: what notebooks 05 and 06 show of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.scores import distinct_scores, run_scores
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables
from rarlhf_nb.lab.methods import RISK_AVERSE, RISK_NEUTRAL, MethodKey, method_order
from rarlhf_nb.lab.profiles import profile_files
from rarlhf_nb.lab.results import Results
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.sweep import Sweep, Trial


@dataclass(frozen=True)
class SweepExperiment(Results):
    """The runs of a sweep with one seed, side by side: each method trained on the tail has its α in its key.

    Data and models are those of the first of these runs; reports are written to the sweep's folder.
    """

    sweep: Sweep
    chosen: tuple[Trial, ...]

    @classmethod
    def open_sweep(cls, sweep: Sweep, profile: str, seed: int, overrides: dict[str, Any]) -> "SweepExperiment":
        """The finished runs with `seed`; `overrides` choose among the values of other settings that the sweep varies.

        Raises `UserError` for a profile, seed or setting that the sweep does not have, and if no such run is finished.
        """
        grid = sweep.grid
        if profile_files().get(profile) != profile_files()[grid.profile]:  # one profile may have two names
            raise UserError(f"profile = {profile!r}: sweep {sweep.folder.name!r} has {grid.profile!r}; give that.")
        if seed not in grid.seeds:
            raise UserError(f"seed = {seed}: sweep {sweep.folder.name!r} has {', '.join(map(str, grid.seeds))}.")
        free = {key: values[0] for key, values in grid.free.items()} | {
            key: value for key, value in overrides.items() if grid.fixed.get(key) != value
        }
        trials = [trial for trial in grid.trials() if trial.seed == seed and trial.free == free]
        if not trials:
            raise UserError(f"overrides = {overrides}: sweep {sweep.folder.name!r} varies {grid.free or 'no setting'}.")
        finished = tuple(trial for trial in trials if trial in sweep.finished_trials())
        if not finished:
            raise UserError(
                f"sweep {sweep.folder.name!r} has no finished run with seed {seed}: run `rarlhf sweep` first."
            )
        first = finished[0]
        return cls(grid.settings(first), sweep.trial_run(first), seed, sweep, finished).prepare_process()

    @property
    def output(self) -> Run:
        """The sweep's own folder."""
        return self.sweep

    def tables(self) -> Tables:
        """The tables of the chosen runs together."""
        return _merged([(trial.alpha, load_tables(self.sweep.trial_run(trial))) for trial in self.chosen])

    def other_seeds(self) -> dict[int, dict[str, pd.DataFrame]]:
        """The episodes tables of the same settings and α with the sweep's other seeds: seed -> method -> table."""
        free, alphas, found = self.chosen[0].free, {trial.alpha for trial in self.chosen}, {}
        for trial in self.sweep.finished_trials():
            if trial.seed != self.seed and trial.free == free and trial.alpha in alphas:
                found.setdefault(trial.seed, []).append((trial.alpha, load_tables(self.sweep.trial_run(trial))))
        return {seed: _merged(parts).episodes for seed, parts in found.items()}

    def scores(self, free: Sequence[str] = ()) -> pd.DataFrame:
        """The scores of the sweep's runs whatever their seed and α; other settings are the chosen ones unless `free`.

        A method that does not depend on α has one row per seed, not one per run.
        """
        scores = distinct_scores(sweep_scores(self.sweep))
        for key, value in self.sweep.grid.columns(self.chosen[0]).items():
            if key not in free:
                scores = scores[[other == value for other in scores[key]]]
        return scores.reset_index(drop=True)


def sweep_scores(sweep: Sweep) -> pd.DataFrame:
    """One row per finished run and method; see `evaluation.scores` for the columns, to which `alpha` is added.

    alpha is what the method was trained with: 1 for RLHF, GRPO and RLOO, NaN for a method without a tail share.
    """
    found = []
    for trial in sweep.finished_trials():
        scores = run_scores(sweep.trial_run(trial), sweep.grid.columns(trial))
        alphas = dict.fromkeys(RISK_AVERSE, trial.alpha) | dict.fromkeys(RISK_NEUTRAL, 1.0)
        keys = [_key(method, trial.alpha) for method in scores["method"]]
        found.append(scores.assign(alpha=scores["method"].map(alphas), method=keys))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _key(method: str, alpha: float) -> str:
    return str(MethodKey(method, alpha)) if method in RISK_AVERSE else method


def _merged(parts: list[tuple[float, Tables]]) -> Tables:
    """The tables of several runs that differ in α alone; a method that does not depend on it is taken once."""
    kinds = []
    for kind in Tables._fields:
        found = {
            _key(method, alpha): table for alpha, tables in parts for method, table in getattr(tables, kind).items()
        }
        kinds.append({method: found[method] for method in method_order(found)})
    return Tables(*kinds)
