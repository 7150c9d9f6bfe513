"""The tables of a run folder: reading them, and checking that methods can be compared."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.methods import method_order
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.monitor import INCIDENTS

EPISODE_COLUMNS = ["prompt", "completion", "prompt_score", "reward", "label", "group", "seed"]
HELD_OUT, SAMPLES, ALPHAS = ".held_out.parquet", ".samples.parquet", ".alphas.parquet"  # of files in evaluation/


class Tables(NamedTuple):
    """A run folder's tables by method.

    episodes: of the test prompts. held_out: log-likelihoods of held-out texts. training: logs (keys in `glossary`).
    samples: episodes of a few prompts with many samples each. alphas: episodes of the conditioned policy at many
    values of alpha, in the column alpha.
    """

    episodes: dict[str, pd.DataFrame]
    held_out: dict[str, pd.DataFrame]
    training: dict[str, pd.DataFrame]
    samples: dict[str, pd.DataFrame]
    alphas: dict[str, pd.DataFrame] = {}


def load_tables(run: Run) -> Tables:
    """Reads all tables that a run has left so far.

    Raises `UserError` if nothing has been evaluated, and for a damaged file.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {".parquet": {}, HELD_OUT: {}, SAMPLES: {}, ALPHAS: {}}
    for path in run.path("evaluation").glob("[!.]*.parquet"):
        ending = next((ending for ending in (HELD_OUT, SAMPLES, ALPHAS) if path.name.endswith(ending)), ".parquet")
        found[ending][path.name.removesuffix(ending)] = run.read(f"evaluation/{path.name}")
    episodes, held_out, samples, alphas = found.values()
    if not episodes:
        raise UserError(f"run {run.folder.name!r} has no evaluation/: run notebook 02_baseline_rlhf first.")
    files = [path for path in run.path("training").glob("*.jsonl") if not path.name.endswith(INCIDENTS)]
    logs = {path.stem: run.read(f"training/{path.name}") for path in files}
    kinds = (episodes, held_out, logs, samples, alphas)
    return Tables(*({method: tables[method] for method in method_order(tables)} for tables in kinds))


def check_episodes(episodes: dict[str, pd.DataFrame]) -> None:
    """Raises `UserError` unless the tables have all columns, finite numbers and the same prompts in every sample."""
    if not episodes:
        raise UserError("episodes is empty: evaluate at least one method first.")
    for method, table in episodes.items():
        missing = [column for column in EPISODE_COLUMNS if column not in table]
        if missing or not len(table):
            what = f"lacks the column {missing[0]}" if missing else "has no rows"
            raise UserError(f"evaluation/{method}.parquet {what}: evaluate {method} again.")
        for column in (name for name in ("reward", "kl", "prompt_score") if name in table):
            bad = ~np.isfinite(table[column].to_numpy(dtype=np.float64))
            if bad.any():
                row = int(bad.argmax())
                raise UserError(
                    f"evaluation/{method}.parquet: {column} = {table[column].iloc[row]} in row {row} is not finite: "
                    f"check the reward model or reward function, and evaluate {method} again."
                )
        samples = table.groupby("seed", sort=False)["prompt"].agg(tuple)
        if samples.nunique() > 1:
            raise UserError(
                f"evaluation/{method}.parquet: the prompts differ between its samples; evaluate {method} again."
            )
    check_paired(episodes, ["prompt", "prompt_score", "seed"])


def check_paired(tables: dict[str, pd.DataFrame], columns: list[str]) -> None:
    """Raises `UserError` unless the tables of all methods agree in `columns`, row by row."""
    methods = method_order(tables)
    for method in methods[1:]:
        for column in columns:
            ours, first = tables[method][column].to_numpy(), tables[methods[0]][column].to_numpy()
            if len(ours) != len(first) or not (ours == first).all():
                place = "" if len(ours) != len(first) else f", first in row {int((ours != first).argmax())}"
                raise UserError(
                    f"{method} and {methods[0]} were evaluated on different rows: {column} differs{place} "
                    f"({len(ours)} rows against {len(first)}); evaluate both on the same test data and seeds."
                )
