"""From the tables of a run to its report: every metric of every method, and their paired differences."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.methods import method_name, method_order
from rarlhf_nb.measuring.metrics import Interval, bootstrap_interval, bootstrap_weights, perplexity
from rarlhf_nb.measuring.report_metrics import (
    Metric,
    Statistic,
    episode_metrics,
    pooled_dist,
    prompt_positions,
    sample_metrics,
)
from rarlhf_nb.training.risk import cvar

BASELINES = ("rlhf", "sft")  # what the others are compared with
FEW = 10  # a mean of fewer episodes than this is named in the notes
EPISODE_COLUMNS = ["prompt", "completion", "prompt_score", "reward", "label", "group", "seed"]
MAIN_METRICS = ("reward", "tail_reward", "cvar_10", "perplexity", "dist_1", "dist_2", "dist_3", "kl")

HELD_OUT, SAMPLES = ".held_out.parquet", ".samples.parquet"
ENDS = ("", "_low", "_high")
Named = dict[str, tuple[str, np.ndarray]]  # metric -> what it is called, and (1 + R,) the estimate and its resamples


@dataclass(frozen=True)
class Report:
    """What a run found.

    table: index method; for each metric the columns `<metric>`, `<metric>_low`, `<metric>_high`.
    differences: the same columns, index (method, baseline): method minus baseline on the same resamples.
    names: what each metric is called. notes: what a reader must know of the numbers.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    names: dict[str, str]
    notes: list[str]

    def cells(self, numbers: pd.DataFrame) -> pd.DataFrame:
        """Numbers for reading: a row per metric, a column per method, "0.57 [0.51, 0.63]"."""
        columns = {
            index: [interval_cell(Interval(*(row[metric + end] for end in ENDS))) for metric in self.names]
            for index, row in numbers.iterrows()
        }
        return pd.DataFrame(columns, index=list(self.names.values()), dtype=object)

    def main(self) -> pd.DataFrame:
        """The paper's main table, for reading: a row per method, a column for each of `MAIN_METRICS` that there is."""
        names = {key: self.names[key] for key in MAIN_METRICS if key in self.names}
        return self.cells(self.table).loc[list(names.values())].T.rename(index=method_name)

    def sections(self) -> dict[str, pd.DataFrame]:
        """The tables behind the main one by title, as `cells`."""
        sections = {"Every metric": self.cells(self.table).rename(columns=method_name)}
        for baseline, rows in self.differences.groupby(level="baseline", sort=False):
            cells = self.cells(rows.droplevel("baseline")).rename(columns=method_name)
            sections[f"Difference to {method_name(baseline)} (* the interval leaves out 0)"] = cells.where(
                ~self._clear(rows), cells + " *"
            )
        return sections

    def _clear(self, rows: pd.DataFrame) -> np.ndarray:
        """Which intervals leave out 0: (metrics, methods)."""
        low, high = (rows[[f"{metric}_{end}" for metric in self.names]].to_numpy().T for end in ("low", "high"))
        return (low > 0) | (high < 0)

    def to_json(self) -> str:
        """{"methods": {method: {metric: {value, low, high}}}, "differences": [...], ...}; NaN is null."""
        return json.dumps(
            {
                "methods": {method: self._numbers(row) for method, row in self.table.iterrows()},
                "differences": [
                    {"method": method, "baseline": baseline} | self._numbers(row)
                    for (method, baseline), row in self.differences.iterrows()
                ],
                "names": self.names,
                "notes": self.notes,
            },
            indent=1,
            allow_nan=False,
        )

    def _numbers(self, row: pd.Series) -> dict[str, dict[str, float | None]]:
        found = {metric: [row[metric + end] for end in ENDS] for metric in self.names}
        return {
            metric: {name: None if np.isnan(x) else x for name, x in zip(Interval._fields, numbers, strict=True)}
            for metric, numbers in found.items()
        }

    def to_markdown(self) -> str:
        """The tables behind the main one, and the notes, aligned so that they also read well in a terminal."""
        tables = [f"**{title}**\n\n{markdown_table(cells)}" for title, cells in self.sections().items()]
        return "\n\n".join([*tables, "\n".join(f"- {_one_line(note)}" for note in self.notes)]) + "\n"

    def to_html(self) -> str:
        """The same for notebooks; every text escaped."""
        tables = [f"<h4>{html.escape(title)}</h4>{cells.to_html()}" for title, cells in self.sections().items()]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return "\n".join([*tables, f"<ul>{notes}</ul>"])

    _repr_html_ = to_html


def build_report(
    episodes: dict[str, pd.DataFrame],
    held_out: dict[str, pd.DataFrame],
    *,
    tail_threshold: float,
    tail_share: float = 0.1,
    cvar_levels: Sequence[float],
    resamples: int,
    seed: int = 0,
    samples: dict[str, pd.DataFrame] | None = None,
    toxicity: bool = False,
) -> Report:
    """Every metric of every method with 95 % percentile bootstrap intervals, and paired differences.

    Prompts are resampled (with all their samples), not episodes; all methods share the resamples, which is
    what pairs them. Perplexity resamples the held-out texts. episodes: a table a method; held_out: likewise,
    a method without one has no perplexity. tail_threshold: tail prompts score at most this; tail_share: the
    lowest share of prompts. samples: tables with many completions a prompt, for Dist-n by prompt and, where the
    reward is civility (`toxicity`), expected maximum toxicity. Raises `UserError` where methods were not measured on
    the same prompts.
    """
    check_episodes(episodes)
    check_paired(held_out, ["text"])
    check_paired(samples or {}, ["prompt", "seed"])
    methods = method_order(episodes)
    prompt_index = prompt_positions(episodes[methods[0]])
    prompt_weights = bootstrap_weights(prompt_index.max() + 1, resamples, np.random.default_rng([seed, 0]))
    metrics = {method: episode_metrics(episodes[method], tail_threshold, tail_share, cvar_levels) for method in methods}
    found: dict[str, Named] = {
        method: {
            key: (metric.name, _resampled(metric.statistic, prompt_weights, prompt_index))
            for key, metric in own.items()
        }
        | _perplexity(held_out.get(method), resamples, seed)
        | {
            key: (name, _without_interval(value, resamples))
            for key, (name, value) in pooled_dist(episodes[method]).items()
        }
        | _of_samples((samples or {}).get(method), toxicity, resamples, seed)
        for method, own in metrics.items()
    }
    names = {key: name for own in found.values() for key, (name, _) in own.items()}
    absent = "", np.full(1 + resamples, np.nan)
    statistics = {method: {key: own.get(key, absent)[1] for key in names} for method, own in found.items()}
    return Report(
        table=_table(statistics, "method"),
        differences=_table(_paired_differences(statistics), ["method", "baseline"]),
        names=names,
        notes=_notes(metrics[methods[0]], len(prompt_index), prompt_weights.shape[1], resamples),
    )


def _of_samples(table: pd.DataFrame | None, toxicity: bool, resamples: int, seed: int) -> Named:
    """What varies within a prompt, resampled over the prompts that have many samples."""
    if table is None:
        return {}
    metrics = sample_metrics(table, toxicity)
    prompts = int(next(iter(metrics.values())).rows)
    weights = bootstrap_weights(prompts, resamples, np.random.default_rng([seed, 2]))
    return {key: (metric.name, metric.statistic(weights)) for key, metric in metrics.items()}


def _without_interval(value: float, resamples: int) -> np.ndarray:
    return np.concatenate([[value], np.full(resamples, np.nan)])


def _perplexity(held_out: pd.DataFrame | None, resamples: int, seed: int) -> Named:
    """Perplexity, resampled over the held-out texts."""
    if held_out is None:
        return {}
    weights = bootstrap_weights(len(held_out), resamples, np.random.default_rng([seed, 1]))
    values = perplexity(held_out["log_likelihood"].to_numpy(), held_out["tokens"].to_numpy(), weights)
    return {"perplexity": ("perplexity, held-out texts (lower is better)", values)}


def _resampled(statistic: Statistic, prompt_weights: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
    """A statistic of the episodes for each resample of the prompts: (1 + R, P), (N,) -> (1 + R,)."""
    pieces = np.array_split(prompt_weights, 16)  # bounds the memory of the (R, N) temporaries
    return np.concatenate([statistic(piece[:, prompt_index]) for piece in pieces])


def _paired_differences(
    statistics: dict[str, dict[str, np.ndarray]],
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    return {
        (method, baseline): {key: values - statistics[baseline][key] for key, values in statistics[method].items()}
        for baseline in BASELINES
        if baseline in statistics
        for method in statistics
        if method != baseline
    }


def _table(statistics: dict[Any, dict[str, np.ndarray]], index: str | list[str]) -> pd.DataFrame:
    """A row per key of `statistics`; per metric its estimate and both ends of its interval."""
    rows = []
    for found in statistics.values():
        intervals = {key: bootstrap_interval(values) for key, values in found.items()}
        rows.append({key + end: x for key, xs in intervals.items() for end, x in zip(ENDS, xs, strict=True)})
    names = [index] if isinstance(index, str) else index
    keys = pd.DataFrame(list(statistics), columns=names)
    return pd.concat([keys, pd.DataFrame(rows)], axis=1).set_index(index)


def _notes(metrics: dict[str, Metric], episodes: int, prompts: int, resamples: int) -> list[str]:
    few = [
        f"{metric.name} rests on {metric.rows:.3g} of {episodes} episodes only: read it with care."
        if metric.rows
        else f"{metric.name} has no value: there is no such episode."
        for metric in metrics.values()
        if metric.rows < FEW
    ]
    return [
        f"{episodes} episodes of {prompts} prompts a method; in brackets the 95 % bootstrap interval, "
        f"{resamples} resamples of the prompts (perplexity: of the texts). Training seeds differ beyond it.",
        "Differences take the same resamples for both methods; they are not corrected for being many.",
        *few,
    ]


# Checks


def check_episodes(episodes: dict[str, pd.DataFrame]) -> None:
    """Raise `UserError` unless the tables can be compared: all columns, finite rewards, same prompts."""
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
                    f"evaluation/{method}.parquet: {column} = {table[column].iloc[row]} in row {row}; "
                    "a number is needed: look at the reward model or callable, and evaluate again."
                )
        samples = table.groupby("seed", sort=False)["prompt"].agg(tuple)
        if samples.nunique() > 1:
            raise UserError(f"evaluation/{method}.parquet: the prompts differ between its samples; evaluate it again.")
    check_paired(episodes, ["prompt", "prompt_score", "seed"])


def check_paired(tables: dict[str, pd.DataFrame], columns: list[str]) -> None:
    """Raise `UserError` unless the tables of all methods agree in `columns`, row by row."""
    methods = method_order(tables)
    for method in methods[1:]:
        for column in columns:
            ours, first = tables[method][column].to_numpy(), tables[methods[0]][column].to_numpy()
            if len(ours) != len(first) or not (ours == first).all():
                where = "" if len(ours) != len(first) else f", first in row {int((ours != first).argmax())}"
                raise UserError(
                    f"{method} and {methods[0]} were measured on different rows: {column} differs{where} "
                    f"({len(ours)} rows against {len(first)}); evaluate both on the same test data and seeds."
                )


# For reading


def summary(table: pd.DataFrame, tail_threshold: float) -> dict[str, float]:
    """An episodes table in four numbers: reward, tail reward, CVaR 10 % of reward, and KL in nats per episode.

    Tail reward is the mean over the prompts that score at most `tail_threshold`.
    """
    return {
        "reward": float(table["reward"].mean()),
        "tail reward": float(table.loc[table["prompt_score"] <= tail_threshold, "reward"].mean()),
        "CVaR 10 %": cvar(table["reward"], 0.1),
        "KL": float(table["kl"].mean()),
    }


def summary_table(episodes: dict[str, pd.DataFrame], tail_threshold: float) -> pd.DataFrame:
    """`summary` of several methods, one row per method; `build_report` adds intervals and every other metric."""
    rows = {method_name(method): summary(episodes[method], tail_threshold) for method in method_order(episodes)}
    return pd.DataFrame.from_dict(rows, orient="index")


# Tail prompts


def tail_prompts_table(episodes: dict[str, pd.DataFrame], n: int = 8, seed: int = 0) -> pd.DataFrame:
    """The n prompts with the lowest score and what every method makes of them.

    A row a prompt (index prompt, prompt_score), columns (method, "completion") and (method, "reward").
    seed: which of the samples is shown, where prompts have several.
    """
    check_episodes(episodes)
    columns = {}
    for method in method_order(episodes):
        sample = episodes[method].query("seed == @seed").drop_duplicates("prompt")
        if sample.empty:
            raise UserError(f"seed = {seed}: no such sample; there are {sorted(set(episodes[method]['seed']))}.")
        rows = sample.sort_values("prompt_score", kind="stable").head(n).set_index(["prompt", "prompt_score"])
        columns |= {(method, column): rows[column] for column in ("completion", "reward")}
    return pd.DataFrame(columns)


def tail_prompts_html(table: pd.DataFrame) -> str:
    """`tail_prompts_table` for notebooks: long texts wrapped, everything escaped."""
    methods = table.columns.get_level_values(0).unique()
    head = "".join(f"<th>{html.escape(method_name(method))}</th>" for method in methods)
    body = ""
    for (prompt, score), row in table.iterrows():
        cells = "".join(_text_cell(row[method, "reward"], row[method, "completion"]) for method in methods)
        body += f"<tr>{_text_cell(score, prompt)}{cells}</tr>\n"
    return f"<table><thead><tr><th>Prompt (its score)</th>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def _text_cell(score: float, text: str) -> str:
    style = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere; min-width: 9em"
    return f'<td style="{style}"><b>{score:+.2f}</b> {html.escape(text)}</td>'


# Files


class Tables(NamedTuple):
    """A run folder's tables by method: test episodes, held-out log-likelihoods, training logs (see `glossary`), and
    the episodes of few prompts with many samples each."""

    episodes: dict[str, pd.DataFrame]
    held_out: dict[str, pd.DataFrame]
    training: dict[str, pd.DataFrame]
    samples: dict[str, pd.DataFrame]


def load_tables(run_folder: Path) -> Tables:
    """Read what a run has left so far.

    Raises `UserError` where nothing has been evaluated.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {"": {}, HELD_OUT: {}, SAMPLES: {}}
    for path in sorted((run_folder / "evaluation").glob("*.parquet")):
        kind = next((ending for ending in (HELD_OUT, SAMPLES) if path.name.endswith(ending)), "")
        found[kind][path.name.removesuffix(kind or ".parquet")] = pd.read_parquet(path)
    if not found[""]:
        raise UserError(f"run {run_folder.name!r} holds no evaluation/: run notebook 02_baseline_rlhf first.")
    logs = {path.stem: pd.read_json(path, lines=True) for path in (run_folder / "training").glob("*.jsonl")}
    episodes, held_out, training, samples = (
        {method: tables[method] for method in method_order(tables)}
        for tables in (found[""], found[HELD_OUT], logs, found[SAMPLES])
    )
    return Tables(episodes, held_out, training, samples)


# Text


def interval_cell(interval: Interval) -> str:
    """ "0.57 [0.51, 0.63]", without brackets where there is no interval, a dash where there is no value."""
    value, low, high = interval
    if np.isnan(value):
        return "–"
    if np.isnan(low):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"  # Dist-1 of many texts is tiny
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def markdown_table(cells: pd.DataFrame) -> str:
    """A table of texts as Markdown, its columns aligned for a terminal; every text escaped."""
    rows = [
        ["", *cells.columns],
        *([name, *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)),
    ]
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _one_line(text: str) -> str:
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
