"""What the explorer shows, without a widget: panels, tables and texts for a measured and a trained alpha."""

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import interval_cell
from rarlhf_nb.lab.evaluation.metrics import Interval, perplexity
from rarlhf_nb.lab.evaluation.report import BASELINES
from rarlhf_nb.lab.evaluation.sweeps import sweep_families
from rarlhf_nb.lab.explorer.explorer_figures import (
    CURVE_STYLES,
    DISTRIBUTION_STYLES,
    TAIL_OPACITY,
    Sweeps,
    bin_counts,
    curve_figure,
    distribution_figure,
    price_changes,
    price_figure,
    price_title,
    shared_axes,
)
from rarlhf_nb.lab.explorer.interpolation import between, steps_between
from rarlhf_nb.lab.explorer.tails import ALPHAS, RANKINGS, Ranking, Slot, Tails, alpha_index, measure_tails, tail_table
from rarlhf_nb.lab.explorer.text import framed, name_cell, number_cell, table_html, text_cell, visible
from rarlhf_nb.lab.methods import MethodKey, method_name
from rarlhf_nb.lab.plots.theme import faint, label_text, line_style, method_color
from rarlhf_nb.risk import check_alpha, tail_count

BY = {"reward": "reward", "prompt_score": "prompt score"}
FIRST = ("rlhf", "ra_rlhf", "ra_rlhf_ru")  # shown at first, with the conditioned policy
TEXTS = 4  # episodes of a tail whose texts are shown
COMPARED = 3  # prompts whose completions are shown at three trained alphas


class Exploration:
    """The tails of several methods, for every measured and trained alpha; see `risk_explorer` for the arguments.

    Methods named `name@alpha` form a sweep, which is shown as one method with a trained alpha; `profile_alpha` adds the
    plain `name` to it. A policy that is conditioned on alpha, the first in `alphas`, is a sweep without gaps: it is
    interpolated between its evaluations.
    """

    def __init__(
        self,
        episodes: dict[str, pd.DataFrame],
        held_out: dict[str, pd.DataFrame] | None = None,
        profile_alpha: float | None = None,
        resamples: int = 200,
        seed: int = 0,
        other_seeds: dict[int, dict[str, pd.DataFrame]] | None = None,
        alphas: dict[str, pd.DataFrame] | None = None,
    ) -> None:
        self.conditioned = next(iter(alphas or {}), None)
        self.episodes = episodes = _split(alphas or {}) | episodes
        self.tails = measure_tails(episodes, resamples, seed, _perplexities(held_out or {}))
        self.families = sweep_families(list(self.tails), profile_alpha)
        self.sweeps = self._sweeps(other_seeds or {})
        self.trained_alphas = self._trained_alphas()
        self.groups = self._groups()
        self.axes = shared_axes(list(self.tails.values()))

    def _trained_alphas(self) -> list[float]:
        """The stops of the slider for the trained alpha."""
        if self.conditioned is not None:
            return steps_between(list(self.families[self.conditioned]))
        return sorted({alpha for members in self.families.values() for alpha in members})

    def _groups(self) -> dict[str, dict[float | None, Slot]]:
        """The slots of each method or sweep, by its name, and by the trained alpha, which is None outside sweeps."""
        names = {method: name for name, members in self.families.items() for method in [*members.values(), name]}
        groups: dict[str, dict[float | None, Slot]] = {}
        for method in self.tails:
            name = names.get(method, method)
            if name not in groups:
                groups[name] = self._members(name) if name in self.families else {None: self._slot(method)}
        return groups

    def _slot(self, method: str) -> Slot:
        return Slot(method, self.tails[method], method)

    def _members(self, name: str) -> dict[float | None, Slot]:
        members = self.families[name]
        if name != self.conditioned:
            return {alpha: self._slot(members[alpha]) for alpha in sorted(members)}
        evaluated = {alpha: self.tails[method] for alpha, method in members.items()}
        return {
            alpha: Slot(_rounded_key(name, alpha), between(evaluated, alpha), members[_nearest(members, alpha)])
            for alpha in self.trained_alphas
        }

    def shown(self, trained: float | None, methods: Sequence[str] | None = None) -> list[Slot]:
        """One slot per method, which in a sweep is the one at the alpha nearest to `trained`. methods: None for all."""
        chosen = [slots for name, slots in self.groups.items() if methods is None or name in methods]
        return [slots[None if None in slots else _nearest(slots, trained)] for slots in chosen]

    def view(
        self,
        alpha: float,
        ranking: Ranking,
        trained: float | None = None,
        methods: Sequence[str] | None = None,
        anchor: str | None = None,
        stacked: bool = False,
    ) -> dict[str, Any]:
        """The state of the explorer's controls, complete; alpha becomes the nearest step of its slider.

        Raises `UserError` for an alpha outside (0, 1], for no method, and for one that is not shown.
        """
        if trained is not None:
            check_alpha(trained)
        if methods is not None and not len(methods):
            raise UserError(f"methods = {methods!r} is empty: choose among {', '.join(self.groups)}.")
        for name in [*(methods or []), *([anchor] if anchor is not None else [])]:
            if name not in self.groups:
                raise UserError(f"methods, anchor: {name!r} is not in this run: choose among {', '.join(self.groups)}.")
        first = [name for name in self.groups if name in (*FIRST, self.conditioned)] or list(self.groups)
        chosen = first if methods is None else [name for name in self.groups if name in methods]
        if trained is None and self.trained_alphas:  # halfway where it moves the policy, otherwise the first stop
            trained = self.trained_alphas[len(self.trained_alphas) // 2 if self.conditioned else 0]
        return {
            "alpha": float(ALPHAS[alpha_index(alpha)]),
            "ranking": ranking,
            "trained": trained,
            "methods": chosen,
            "anchor": anchor or next((name for name in BASELINES if name in chosen), chosen[-1]),
            "stacked": stacked,
        }

    def _sweeps(self, other_seeds: dict[int, dict[str, pd.DataFrame]]) -> Sweeps:
        """The sweeps with their measured tails, first of the shown seed."""
        if not self.families:
            return {}
        methods = [method for members in self.families.values() for method in members.values()]
        others = [_measured(seed, tables, methods) for seed, tables in other_seeds.items()]
        return {
            name: {
                alpha: [self.tails[method], *(found[method] for found in others if method in found)]
                for alpha, method in members.items()
            }
            for name, members in self.families.items()
        }

    # As figures and HTML, for a batch run

    def figures(self, alpha: float, ranking: Ranking, trained: float | None, methods: Sequence[str]) -> list[go.Figure]:
        """Distributions, the curve over alpha, and for a sweep its price."""
        shown = self.shown(trained, methods)
        drawn = [self._drawn(slot, ranking) for slot in shown]
        figures = [distribution_figure(drawn, alpha, ranking, self.axes), curve_figure(shown, alpha, ranking)]
        if self.families:
            figures.append(price_figure(self.sweeps, alpha, ranking, trained))
        return figures

    def _drawn(self, slot: Slot, ranking: Ranking) -> Slot:
        """By prompt score, a slot with the episodes of its evaluated method, since interpolated ones have no prompt."""
        if ranking == "reward":
            return slot
        source = self.tails[slot.source]
        return slot._replace(tails=replace(slot.tails, rewards=source.rewards, orders=source.orders))

    def table_html(self, alpha: float, ranking: Ranking, trained: float | None) -> str:
        """The tail mean of every method and its paired differences; a star if the interval excludes 0."""
        table = tail_table(self.shown(trained), alpha, ranking, BASELINES)
        baselines = list(table.columns[3:])
        tail = f"CVaR {100 * alpha:.0f} %" if ranking == "reward" else f"reward, hardest {100 * alpha:.0f} % of prompts"
        head = [
            "method",
            tail,
            *(f"difference from {method_name(name)}" for name in baselines),
            "mean reward",
            "KL (nats)",
        ]
        rows = [
            [
                name_cell(method_name(method)),
                number_cell(interval_cell(row["tail"])),
                *(number_cell(_difference(row[name])) for name in baselines),
                number_cell(f"{row['mean']:.2f}"),
                number_cell("–" if np.isnan(row["kl"]) else f"{row['kl']:.2f}"),
            ]
            for method, row in table.iterrows()
        ]
        note = "In brackets: 95 % bootstrap intervals over prompts; differences paired. *: the interval excludes 0."
        return framed(table_html(head, rows), f"<p>{note}</p>")

    def tail_rows(self, source: str, alpha: float, ranking: Ranking) -> np.ndarray:
        """Episodes that represent a method's tail: evenly spread from the lowest to the one at the boundary."""
        tail = self.tails[source].tail(alpha, ranking)
        return tail[np.unique(np.linspace(0, len(tail) - 1, min(TEXTS, len(tail))).round().astype(int))]

    def texts_html(
        self, anchor: str, alpha: float, ranking: Ranking, trained: float | None, methods: Sequence[str]
    ) -> str:
        """The completions of the chosen methods for the prompts in the tail of `anchor`.

        A bar marks a completion that lies in the tail of its own method.
        """
        shown, (first,) = self.shown(trained, methods), self.shown(trained, [anchor])
        rows = self.tail_rows(first.source, alpha, ranking)
        inside = {slot.source: set(self.tails[slot.source].tail(alpha, ranking)) for slot in shown}
        prompts = self.episodes[first.source]
        cells = [
            [text_cell(f"{prompts['prompt_score'].iloc[row]:+.2f}", prompts["prompt"].iloc[row])]
            + [self._completion_cell(slot.source, row, row in inside[slot.source]) for slot in shown]
            for row in rows
        ]
        head = ["prompt (its score)", *(method_name(slot.method) for slot in shown)]
        size = tail_count(alpha, len(first.tails.rewards))
        lead = (
            f"{len(rows)} of the {size} episodes that make up the tail of {html.escape(method_name(first.method))} by "
            f"{BY[ranking]}, spread evenly from the lowest to the boundary. "
            "The bar marks completions in the tail of their own method."
        )
        return framed(f"<p>{lead}</p>", table_html(head, cells))

    def _completion_cell(self, method: str, row: int, in_tail: bool) -> str:
        table = self.episodes[method]
        return text_cell(f"{table['reward'].iloc[row]:+.2f}", table["completion"].iloc[row], in_tail)

    # For the browser

    def content(self) -> dict[str, Any]:
        """Everything that `explorer.js` looks up, as JSON: numbers for every measured and trained alpha, and texts."""
        size, baseline = len(next(iter(self.tails.values())).rewards), "rlhf" if "rlhf" in self.tails else None
        methods = {method: self._evaluated(method) for method in self.tails}
        every = (tail for found in methods.values() for tails in found["rows"].values() for tail in tails)
        rows = sorted(set().union(*every))
        for method, found in methods.items():
            found["completions"] = self._completions(method, rows)
        return {
            "measured": ALPHAS.tolist(),
            "kept": [tail_count(alpha, size) for alpha in ALPHAS],
            "trained": self.trained_alphas if len(self.trained_alphas) > 1 else [],
            "continuous": self.conditioned is not None,
            "rankings": BY,
            "baseline": None if baseline is None else {"key": baseline, "name": method_name(baseline)},
            "groups": [self._group(name, slots, baseline) for name, slots in self.groups.items()],
            "methods": methods,
            "prompts": dict(zip(rows, self._prompts(rows), strict=True)),
            "edges": _plain(self.axes.edges),
            "top": self.axes.top,
            "distribution": _frame(DISTRIBUTION_STYLES, distribution_figure([], 1, "reward", self.axes)),
            "curve": _frame(CURVE_STYLES, curve_figure([], 1, "reward")),
            "price": self._price() if self.families else None,
            "columns": self._columns() if self.conditioned is not None else None,
        }

    def _group(self, name: str, slots: dict[float | None, Slot], baseline: str | None) -> dict[str, Any]:
        """What is shown of one method: numbers as [value, low, high], each for one slot or for every alpha of it."""
        return {
            "key": name,
            "name": visible(method_name(name)),
            "slots": [self._slot_content(alpha, slot, baseline) for alpha, slot in slots.items()],
        }

    def _slot_content(self, alpha: float | None, slot: Slot, baseline: str | None) -> dict[str, Any]:
        ours = _resampled(slot.tails)
        theirs = _resampled(self.tails[baseline]) if baseline not in (None, slot.method) else None
        numbers = {
            name: {"own": _ends(values), "difference": None if theirs is None else _ends(values - theirs[name])}
            for name, values in ours.items()
        }
        return {
            "alpha": alpha,
            "method": slot.method,
            "source": slot.source,
            "label": visible(method_name(slot.method)),
            "name": label_text(slot.method),  # plotly interprets HTML
            "color": method_color(slot.method),
            "faint": faint(slot.method, TAIL_OPACITY),
            "dash": line_style(slot.method)["dash"],
            "var": [_plain(slot.tails.threshold(share)) for share in ALPHAS],
            "counts": bin_counts(slot.tails, self.axes.edges).tolist(),
            **numbers,
        }

    def _evaluated(self, method: str) -> dict[str, Any]:
        """Of an evaluated method: the histogram, that of its tail by prompt score, and the rows of its texts."""
        tails, edges = self.tails[method], self.axes.edges
        places = np.clip(np.searchsorted(edges, tails.rewards, side="right") - 1, 0, len(edges) - 2)
        return {
            "counts": bin_counts(tails, edges).tolist(),
            "inside": [
                np.bincount(places[tails.tail(alpha, "prompt_score")], minlength=len(edges) - 1).tolist()
                for alpha in ALPHAS
            ],
            "rows": {
                ranking: [self.tail_rows(method, alpha, ranking).tolist() for alpha in ALPHAS] for ranking in RANKINGS
            },
        }

    def _completions(self, method: str, rows: Sequence[int]) -> dict[int, list]:
        """Row -> completion, reward, and its rank in each order: it lies in a tail of more episodes than its rank."""
        table, ranks = self.episodes[method], [np.argsort(self.tails[method].orders[ranking]) for ranking in RANKINGS]
        texts, rewards = table["completion"].tolist(), table["reward"].tolist()
        return {row: [visible(texts[row]), _plain(rewards[row]), *(int(rank[row]) for rank in ranks)] for row in rows}

    def _prompts(self, rows: Sequence[int]) -> list[list]:
        """The prompts of these rows, with their scores."""
        table = next(iter(self.episodes.values())).iloc[rows]
        return [
            [visible(prompt), _plain(score)]
            for prompt, score in zip(table["prompt"], table["prompt_score"], strict=True)
        ]

    def _price(self) -> dict[str, Any]:
        figure = price_figure(self.sweeps, 1.0, "reward", 1.0).to_json()
        return {
            "title": price_title(self.sweeps),
            "figure": json.loads(figure),
            "tails": {
                ranking: [
                    [
                        {key: _plain(values) for key, values in change.items()}
                        for change in price_changes(self.sweeps, "cvar", alpha, ranking)
                    ]
                    for alpha in ALPHAS
                ]
                for ranking in RANKINGS
            },
        }

    def compared(self) -> list[int]:
        """The rows of the hardest prompts, whose completions are shown at three trained alphas."""
        first = next(iter(self.episodes.values()))
        hardest = first.reset_index(drop=True).sort_values("prompt_score", kind="stable").drop_duplicates("prompt")
        return hardest.index[:COMPARED].tolist()

    def _columns(self) -> dict[str, Any]:
        """The evaluated completions of the conditioned policy for the compared prompts, alpha by alpha."""
        rows, members = self.compared(), self.families[self.conditioned]
        tables = [self.episodes[members[alpha]] for alpha in sorted(members)]
        return {
            "prompts": self._prompts(rows),
            "alphas": sorted(members),
            "completions": [
                [[visible(table["completion"].iloc[row]), _plain(table["reward"].iloc[row])] for row in rows]
                for table in tables
            ],
        }


def _split(alphas: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """One episodes table per method and alpha, under the name `name@alpha`."""
    return {
        str(MethodKey(name, alpha)): rows.drop(columns="alpha").reset_index(drop=True)
        for name, table in alphas.items()
        for alpha, rows in table.groupby("alpha")
    }


def _rounded_key(name: str, alpha: float) -> str:
    return str(MethodKey(name, float(f"{alpha:.2g}")))


def _resampled(tails: Tails) -> dict[str, np.ndarray]:
    """What the explorer compares, with its resamples: (..., 1 + R) each."""
    return {"mean": tails.means["reward"][-1], "kl": tails.kl, **tails.means}


def _ends(resampled: np.ndarray) -> list:
    """The estimate and the ends of its 95 % interval: (..., 1 + R) -> three numbers, or three lists of them."""
    if resampled.shape[-1] == 1:
        return [_plain(resampled[..., 0]), *[_plain(np.full(resampled.shape[:-1], np.nan))] * 2]
    return [_plain(resampled[..., 0]), *map(_plain, np.quantile(resampled[..., 1:], [0.025, 0.975], axis=-1))]


def _plain(values: Any) -> Any:
    """Numbers for JSON: rounded, with None for NaN."""
    if np.ndim(values):
        return [_plain(value) for value in np.asarray(values).tolist()]
    return round(float(values), 5) if np.isfinite(values) else None


def _frame(styles: Sequence[dict], empty: go.Figure) -> dict[str, Any]:
    """What stays of a figure when it moves. It has no legend, since the chips show the colours."""
    return {"styles": styles, "layout": json.loads(empty.to_json())["layout"] | {"showlegend": False}}


def _nearest(alphas: Iterable[float], alpha: float) -> float:
    """On the scale of the slider, which is that of log alpha."""
    return min(alphas, key=lambda each: abs(np.log(each / alpha)))


def _measured(seed: int, tables: dict[str, pd.DataFrame], methods: Sequence[str]) -> dict[str, Tails]:
    """The tails of the methods that this training seed has, without resamples."""
    try:
        return measure_tails({method: tables[method] for method in methods if method in tables}, resamples=0)
    except UserError as error:
        raise UserError(f"other_seeds, seed {seed}: {error}") from None


def _perplexities(held_out: dict[str, pd.DataFrame]) -> dict[str, float]:
    """The perplexity of each method on its held-out texts, without resampling."""
    return {
        method: float(perplexity(*(table[column].to_numpy() for column in columns), np.ones(len(table))))
        for columns in [("log_likelihood", "tokens")]
        for method, table in held_out.items()
    }


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return interval_cell(interval) + (" *" if interval.low > 0 or interval.high < 0 else "")
