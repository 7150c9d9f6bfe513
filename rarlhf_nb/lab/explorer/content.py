"""What the explorer shows: every number and text that `explorer.js` looks up when a control moves.

`ExplorerContent.as_json` goes to the browser once, as JSON. Its numbers are rounded, null stands for NaN, and texts
have visible characters only. "By measured alpha" is a list with one entry for each of the hundred alphas in `measured`;
an interval is [value, low, high].

    measured, kept      the measured alphas, and the number of episodes in the tail at each
    trained             the stops of the slider for the trained alpha, empty without a sweep
    continuous          whether a policy that takes every alpha gives these stops
    view                what the controls show: alpha, ranking, trained, methods, anchor, stacked
    rankings            ranking -> its name; a tail is ranked by reward or by prompt score
    baseline            {key, name} of the method that others are compared with, or null
    groups              the methods, and the sweeps as one method each: {key, name, slots}
      slots             what a trained alpha selects: {alpha, source, label, name (for plotly), color, faint, dash,
                        var: by measured alpha, counts: by bin, mean, kl, reward, prompt_score}; the last four are
                        {own, difference}, intervals of numbers or, for the rankings, of lists by measured alpha
    methods             evaluated method -> {counts: by bin, inside: of the tail by prompt score, by measured alpha
                        and bin,
                        rows: ranking -> by measured alpha, the rows whose texts are shown,
                        completions: row -> [text, reward, place by reward, place by prompt score]}
    prompts             row -> [text, score]
    edges               of the bins
    price               what the trained alpha brings and costs, as a figure of plotly; null without a sweep
    columns             the same prompts at every evaluated alpha of the conditioned policy: {prompts, alphas,
                        completions: by alpha and prompt}, or null
    template            plotly's template of the project
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import interval_cell
from rarlhf_nb.lab.evaluation.metrics import Interval, bootstrap_interval
from rarlhf_nb.lab.evaluation.report import BASELINES
from rarlhf_nb.lab.evaluation.scores import alpha_scores, sweep_families
from rarlhf_nb.lab.evaluation.tables import Tables, check_episodes
from rarlhf_nb.lab.explorer.tails import (
    ALPHAS,
    RANKINGS,
    Ranking,
    Tails,
    alpha_index,
    between,
    measure_tails,
    steps_between,
)
from rarlhf_nb.lab.methods import MethodKey, method_name
from rarlhf_nb.lab.plots.sweep_figures import alpha_curves
from rarlhf_nb.lab.plots.theme import TEMPLATE, faint, label_text, line_style, method_color
from rarlhf_nb.lab.texts import visible
from rarlhf_nb.risk import check_alpha, tail_count

INITIAL_METHODS = ("rlhf", "ra_rlhf", "ra_rlhf_ru")  # shown at first, with the conditioned policy
TAIL_TEXTS = 4  # episodes of a tail whose texts are shown
COMPARED_PROMPTS = 3  # prompts whose completions are shown at three trained alphas
BINS = 40


class Slot(NamedTuple):
    """What is shown of a method: its tails, and the evaluated method that its texts come from."""

    method: str
    tails: Tails
    source: str


class ExplorerContent:
    """The tails of several methods, for every measured and trained alpha; see `risk_explorer` for the arguments.

    Methods named `name@alpha` form a sweep, which is shown as one method with a trained alpha; `profile_alpha` adds the
    plain `name` to it. A policy that is conditioned on alpha, the first in `alphas`, is a sweep without gaps: it is
    interpolated between its evaluations.
    """

    def __init__(
        self,
        episodes: dict[str, pd.DataFrame],
        profile_alpha: float | None = None,
        resamples: int = 200,
        seed: int = 0,
        other_seeds: dict[int, dict[str, pd.DataFrame]] | None = None,
        alphas: dict[str, pd.DataFrame] | None = None,
    ) -> None:
        self.conditioned = next(iter(alphas or {}), None)
        self.episodes = _by_alpha(alphas or {}) | episodes
        self.tails = measure_tails(self.episodes, resamples, seed)
        self.edges = np.histogram_bin_edges(np.concatenate([tails.rewards for tails in self.tails.values()]), BINS)
        self.families = sweep_families(list(self.tails), profile_alpha)
        self.price = self._price(episodes, alphas or {}, profile_alpha, other_seeds or {}) if self.families else None
        self.trained_alphas = sorted({alpha for members in self.families.values() for alpha in members})
        if self.conditioned is not None:
            self.trained_alphas = steps_between(list(self.families[self.conditioned]))
        self.groups = self._groups()
        self.baseline = "rlhf" if "rlhf" in self.tails else None

    def _groups(self) -> dict[str, dict[float | None, Slot]]:
        """The slots of each method or sweep, by its name, and by the trained alpha, which is None outside sweeps."""
        names = {method: name for name, members in self.families.items() for method in [*members.values(), name]}
        members = {name: sorted(own.items()) for name, own in self.families.items()}
        groups: dict[str, dict[float | None, Slot]] = {}
        for method in self.tails:
            name = names.get(method, method)
            own = members.get(name, [(None, method)])
            groups[name] = {alpha: Slot(member, self.tails[member], member) for alpha, member in own}
        if self.conditioned is not None:
            groups[self.conditioned] = {alpha: self._interpolated(alpha) for alpha in self.trained_alphas}
        return groups

    def _interpolated(self, alpha: float) -> Slot:
        """The conditioned policy at any alpha, with the texts of the nearest evaluated one."""
        members = self.families[self.conditioned]
        tails = between({at: self.tails[method] for at, method in members.items()}, alpha)
        shown = MethodKey(self.conditioned, float(f"{alpha:.2g}"))
        return Slot(str(shown), tails, members[_nearest(members, alpha)])

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

        Raises `UserError` for an unknown ranking, an alpha outside (0, 1], no method, and one that is not shown.
        """
        known = ", ".join(self.groups)
        if ranking not in RANKINGS:
            raise UserError(f"ranking = {ranking!r} is unknown: choose one of {', '.join(RANKINGS)}.")
        if trained is not None:
            check_alpha(trained)
        if methods is not None and not len(methods):
            raise UserError(f"methods = {methods!r} is empty: choose among {known}.")
        for name in [*(methods or []), *([anchor] if anchor is not None else [])]:
            if name not in self.groups:
                raise UserError(f"methods, anchor: {name!r} is not in this run: choose among {known}.")
        first = [name for name in self.groups if name in (*INITIAL_METHODS, self.conditioned)] or list(self.groups)
        chosen = first if methods is None else [name for name in self.groups if name in methods]
        if trained is None and self.trained_alphas:  # halfway if it moves one policy, otherwise the first stop
            trained = self.trained_alphas[len(self.trained_alphas) // 2 if self.conditioned else 0]
        return {
            "alpha": float(ALPHAS[alpha_index(alpha)]),
            "ranking": ranking,
            "trained": trained,
            "methods": chosen,
            "anchor": anchor or next((name for name in BASELINES if name in chosen), chosen[-1]),
            "stacked": stacked,
        }

    # For a batch run

    @staticmethod
    def _price(
        episodes: dict[str, pd.DataFrame],
        alphas: dict[str, pd.DataFrame],
        profile_alpha: float | None,
        other_seeds: dict[int, dict[str, pd.DataFrame]],
    ) -> go.Figure:
        """What the trained alpha brings and costs, over the shown seed and the other ones."""
        seeds = [Tables(episodes, {}, {}, {}, alphas)]
        for seed, tables in other_seeds.items():
            try:
                check_episodes(tables)
            except UserError as error:
                raise UserError(f"other_seeds, seed {seed}: {error}") from None
            seeds.append(Tables(tables, {}, {}, {}))
        scores = [alpha_scores(tables, profile_alpha, place) for place, tables in enumerate(seeds)]
        return alpha_curves(pd.concat(scores))

    def chosen(self, trained: float | None, methods: Sequence[str] | None = None) -> list[Slot]:
        """One slot per method, which in a sweep is the one at the alpha nearest to `trained`. methods: None for all."""
        groups = [slots for name, slots in self.groups.items() if methods is None or name in methods]
        return [slots[None if None in slots else _nearest(slots, trained)] for slots in groups]

    def numbers(self, alpha: float, ranking: Ranking, trained: float | None) -> pd.DataFrame:
        """The explorer's table as texts: the tail mean of every method, its difference from RLHF, mean and KL."""
        share = f"{100 * alpha:.0f} %"
        tail = f"CVaR {share}" if ranking == "reward" else f"reward, hardest {share} of prompts"
        rows = {}
        for slot in self.chosen(trained):
            ours = slot.tails.resampled(alpha, ranking)
            row = {tail: interval_cell(bootstrap_interval(ours))}
            if self.baseline is not None:
                difference = bootstrap_interval(ours - self.tails[self.baseline].resampled(alpha, ranking))
                star = " *" if difference.low > 0 or difference.high < 0 else ""
                cell = "–" if slot.method == self.baseline else interval_cell(difference) + star
                row[f"difference from {method_name(self.baseline)}"] = cell
            kl = interval_cell(Interval(slot.tails.kl[0], np.nan, np.nan))
            rows[visible(method_name(slot.method))] = row | {
                "mean reward": f"{slot.tails.rewards.mean():.2f}",
                "KL (nats)": kl,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    # For the browser

    def as_json(self, view: dict[str, Any]) -> dict[str, Any]:
        """What goes to the browser (see the module)."""
        methods = {method: self._evaluated(method) for method in self.tails}
        every = (tail for found in methods.values() for tails in found["rows"].values() for tail in tails)
        rows = sorted(set().union(*every))
        for method, found in methods.items():
            found["completions"] = self._completions(method, rows)
        size = len(next(iter(self.tails.values())).rewards)
        return {
            "measured": ALPHAS.tolist(),
            "kept": [tail_count(alpha, size) for alpha in ALPHAS],
            "trained": self.trained_alphas if len(self.trained_alphas) > 1 else [],
            "continuous": self.conditioned is not None,
            "view": view,
            "rankings": RANKINGS,
            "baseline": self.baseline and {"key": self.baseline, "name": method_name(self.baseline)},
            "groups": [
                {
                    "key": name,
                    "name": visible(method_name(name)),
                    "slots": [self._slot_json(alpha, slot) for alpha, slot in slots.items()],
                }
                for name, slots in self.groups.items()
            ],
            "methods": methods,
            "prompts": dict(zip(rows, self._prompts(rows), strict=True)),
            "edges": _plain(self.edges),
            "price": self.price and json.loads(self.price.to_json()),
            "columns": self._columns() if self.conditioned is not None else None,
            "template": TEMPLATE.to_plotly_json(),
        }

    def _slot_json(self, alpha: float | None, slot: Slot) -> dict[str, Any]:
        ours = _resampled(slot.tails)
        theirs = None if self.baseline in (None, slot.method) else _resampled(self.tails[self.baseline])
        return {
            "alpha": alpha,
            "source": slot.source,
            "label": visible(method_name(slot.method)),
            "name": label_text(slot.method),  # plotly interprets HTML
            "color": method_color(slot.method),
            "faint": faint(slot.method, 0.35),
            "dash": line_style(slot.method)["dash"],
            "var": [_plain(slot.tails.threshold(share)) for share in ALPHAS],
            "counts": np.histogram(slot.tails.rewards, self.edges)[0].tolist(),
        } | {
            name: {"own": _ends(values), "difference": None if theirs is None else _ends(values - theirs[name])}
            for name, values in ours.items()
        }

    def _evaluated(self, method: str) -> dict[str, Any]:
        tails = self.tails[method]
        bins = np.clip(np.searchsorted(self.edges, tails.rewards, side="right") - 1, 0, BINS - 1)
        return {
            "counts": np.bincount(bins, minlength=BINS).tolist(),
            "inside": [
                np.bincount(bins[tails.tail(alpha, "prompt_score")], minlength=BINS).tolist() for alpha in ALPHAS
            ],
            "rows": {
                ranking: [_spread(tails.tail(alpha, ranking)).tolist() for alpha in ALPHAS] for ranking in RANKINGS
            },
        }

    def _completions(self, method: str, rows: Sequence[int]) -> dict[int, list]:
        """A completion lies in a tail of more episodes than its place."""
        places = [np.argsort(self.tails[method].orders[ranking]) for ranking in RANKINGS]
        texts = _texts(self.episodes[method], rows, "completion", "reward")
        return {row: [*text, *(int(place[row]) for place in places)] for row, text in zip(rows, texts, strict=True)}

    def _prompts(self, rows: Sequence[int]) -> list[list]:
        return _texts(next(iter(self.episodes.values())), rows, "prompt", "prompt_score")

    def compared(self) -> list[int]:
        """The rows of the hardest prompts, whose completions are shown at three trained alphas."""
        first = next(iter(self.episodes.values()))
        hardest = first.reset_index(drop=True).sort_values("prompt_score", kind="stable").drop_duplicates("prompt")
        return hardest.index[:COMPARED_PROMPTS].tolist()

    def _columns(self) -> dict[str, Any]:
        rows, members = self.compared(), self.families[self.conditioned]
        return {
            "prompts": self._prompts(rows),
            "alphas": sorted(members),
            "completions": [
                _texts(self.episodes[members[alpha]], rows, "completion", "reward") for alpha in sorted(members)
            ],
        }


def _by_alpha(alphas: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """One episodes table per method and alpha, under the name `name@alpha`."""
    return {
        str(MethodKey(name, alpha)): rows.drop(columns="alpha").reset_index(drop=True)
        for name, table in alphas.items()
        for alpha, rows in table.groupby("alpha")
    }


def _nearest(alphas: Iterable[float], alpha: float) -> float:
    """On the scale of the slider, which is that of log alpha."""
    return min(alphas, key=lambda each: abs(np.log(each / alpha)))


def _resampled(tails: Tails) -> dict[str, np.ndarray]:
    """What the explorer compares, with its resamples: (..., 1 + R) each."""
    return {"mean": tails.means["reward"][-1], "kl": tails.kl, **tails.means}


def _ends(resampled: np.ndarray) -> list:
    """The estimate and the ends of its 95 % interval: (..., 1 + R) -> three numbers, or three lists of them."""
    if resampled.shape[-1] == 1:
        return [_plain(resampled[..., 0]), *[_plain(np.full(resampled.shape[:-1], np.nan))] * 2]
    return [_plain(resampled[..., 0]), *map(_plain, np.quantile(resampled[..., 1:], [0.025, 0.975], axis=-1))]


def _spread(tail: np.ndarray) -> np.ndarray:
    """Episodes that represent a tail: evenly spread from the lowest to the one at the boundary."""
    return tail[np.unique(np.linspace(0, len(tail) - 1, min(TAIL_TEXTS, len(tail))).round().astype(int))]


def _texts(table: pd.DataFrame, rows: Sequence[int], text: str, number: str) -> list[list]:
    found = table.iloc[rows]
    return [[visible(said), _plain(value)] for said, value in zip(found[text], found[number], strict=True)]


def _plain(values: Any) -> Any:
    """Numbers for JSON: rounded, with None for NaN."""
    if np.ndim(values):
        return [_plain(value) for value in np.asarray(values).tolist()]
    return round(float(values), 5) if np.isfinite(values) else None
