"""The risk explorer, with a slider for the measured alpha and, if there is a sweep, one for the trained alpha."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, display
from ipywidgets import Dropdown, FloatSlider, SelectionSlider, ToggleButtons, VBox

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.methods import method_name
from rarlhf_nb.measuring.cells import interval_cell
from rarlhf_nb.measuring.metrics import Interval, perplexity
from rarlhf_nb.measuring.report import BASELINES
from rarlhf_nb.measuring.sweeps import sweep_families
from rarlhf_nb.showing.explorer_figures import (
    Sweeps,
    curve_changes,
    curve_figure,
    distribution_changes,
    distribution_figure,
    distribution_titles,
    price_changes,
    price_figure,
    shared_axes,
)
from rarlhf_nb.showing.pictures import is_static
from rarlhf_nb.showing.tails import Ranking, Slot, Tails, measure_tails, tail_table
from rarlhf_nb.showing.widgets.binding import Drawing, controls, no_collection, page
from rarlhf_nb.showing.widgets.text import framed, name_cell, number_cell, table_html, text_cell

BY = {"reward": "reward", "prompt_score": "prompt score"}
SLIDER = {"width": "24em"}


class Exploration:
    """The content of the explorer without widgets: panels, tables and texts for a measured and a trained alpha.

    episodes: one episodes table per method. held_out: their held-out texts, for the perplexity. Methods named
    `name@alpha` form a sweep with one panel; `profile_alpha` adds the plain `name` to it. other_seeds: training seed ->
    episodes tables of the same methods, trained with that seed; they give the price of the trained alpha its bands.
    """

    def __init__(
        self,
        episodes: dict[str, pd.DataFrame],
        held_out: dict[str, pd.DataFrame] | None = None,
        profile_alpha: float | None = None,
        resamples: int = 200,
        seed: int = 0,
        other_seeds: dict[int, dict[str, pd.DataFrame]] | None = None,
    ) -> None:
        self.episodes = episodes
        measured = measure_tails(episodes, resamples, seed, _perplexities(held_out or {}))
        self.slots = {method: Slot(method, tails) for method, tails in measured.items()}
        self.families = sweep_families(list(measured), profile_alpha)
        self.sweeps = self._sweeps(other_seeds or {})
        self.axes = shared_axes(list(measured.values()))
        self.trained_alphas = sorted({alpha for members in self.families.values() for alpha in members})

    def shown(self, trained: float | None) -> list[Slot]:
        """One slot per method outside a sweep, and one per sweep at the alpha nearest to `trained`."""
        leaders: dict[str, str] = {}
        for family, members in self.families.items():
            nearest = min(members, key=lambda alpha: abs(alpha - (trained or 0)))
            leaders |= {method: members[nearest] for method in members.values()} | {family: members[nearest]}
        return [self.slots[method] for method in dict.fromkeys(leaders.get(method, method) for method in self.slots)]

    def _sweeps(self, other_seeds: dict[int, dict[str, pd.DataFrame]]) -> Sweeps:
        """The sweeps with their measured tails, first of the shown seed."""
        if not self.families:
            return {}
        methods = [method for members in self.families.values() for method in members.values()]
        others = [_measured(seed, tables, methods) for seed, tables in other_seeds.items()]
        return {
            name: {
                alpha: [self.slots[method].tails, *(found[method] for found in others if method in found)]
                for alpha, method in members.items()
            }
            for name, members in self.families.items()
        }

    def table_html(self, alpha: float, ranking: Ranking, trained: float | None) -> str:
        """The tail mean of every shown method and its paired differences; a star if the interval excludes 0."""
        table = tail_table(self.shown(trained), alpha, ranking, BASELINES)
        baselines = list(table.columns[3:])
        tail = f"CVaR {100 * alpha:.0f} %" if ranking == "reward" else f"reward, hardest {100 * alpha:.0f} % of prompts"
        head = [
            "method",
            tail,
            *(f"difference to {method_name(name)}" for name in baselines),
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
        note = "In brackets: 95 % bootstrap intervals over prompts; differences paired. *: the interval leaves out 0."
        return framed(table_html(head, rows), f"<p>{note}</p>")

    def tail_rows(self, method: str, alpha: float, ranking: Ranking, most: int = 6) -> np.ndarray:
        """Episodes that represent a method's tail: evenly spread from the lowest to the one at the boundary."""
        tail = self.slots[method].tails.tail(alpha, ranking)
        return tail[np.unique(np.linspace(0, len(tail) - 1, min(most, len(tail))).round().astype(int))]

    def texts_html(self, method: str, alpha: float, ranking: Ranking, trained: float | None, most: int = 6) -> str:
        """The completions of the shown methods for the prompts in the tail of `method`.

        A bar marks a completion that lies in the tail of its own method.
        """
        shown = self.shown(trained)
        rows, tail_size = (
            self.tail_rows(method, alpha, ranking, most),
            len(self.slots[method].tails.tail(alpha, ranking)),
        )
        inside = {slot.method: np.isin(rows, slot.tails.tail(alpha, ranking)) for slot in shown}
        prompts = self.episodes[method]
        cells = [
            [text_cell(f"{prompts['prompt_score'].iloc[row]:+.2f}", prompts["prompt"].iloc[row])]
            + [self._completion_cell(slot.method, row, inside[slot.method][place]) for slot in shown]
            for place, row in enumerate(rows)
        ]
        head = ["prompt (its score)", *(method_name(slot.method) for slot in shown)]
        lead = (
            f"{len(rows)} of the {tail_size} episodes that make up the tail of {html.escape(method_name(method))} by "
            f"{BY[ranking]}, spread evenly from the lowest to the boundary. "
            "The bar marks completions in the tail of their own method."
        )
        return framed(f"<p>{lead}</p>", table_html(head, cells))

    def _completion_cell(self, method: str, row: int, in_tail: bool) -> str:
        table = self.episodes[method]
        return text_cell(f"{table['reward'].iloc[row]:+.2f}", table["completion"].iloc[row], in_tail)

    def figures(self, alpha: float, ranking: Ranking, trained: float | None) -> list[go.Figure]:
        """Distributions, the curve over alpha, and for a sweep its price."""
        shown = self.shown(trained)
        figures = [distribution_figure(shown, alpha, ranking, self.axes), curve_figure(shown, alpha, ranking)]
        if self.families:
            figures.append(price_figure(self.sweeps, alpha, ranking, trained))
        return figures


class RiskExplorer(VBox):
    """The explorer as a widget, controlled by `alpha`, `ranking`, `trained` and `anchor`."""

    def __init__(self, exploration: Exploration, alpha: float, ranking: Ranking, trained: float | None) -> None:
        self.exploration = exploration
        self.alpha = FloatSlider(
            alpha, min=0.01, max=1, step=0.01, description="measured α", layout=SLIDER, continuous_update=True
        )
        self.ranking = ToggleButtons(
            options=[(f"tail by {name}", key) for key, name in BY.items()],
            value=ranking,
            style={"button_width": "13em"},
        )
        self.trained = SelectionSlider(
            options=exploration.trained_alphas or [1.0],
            value=trained or 1.0,
            description="trained α",
            layout=SLIDER,
        )
        self.anchor = Dropdown(description="texts of", layout={"width": "18em"})
        self._offer_anchors()
        figures = exploration.figures(alpha, ranking, trained)
        self.distributions, self.curve, *price = map(Drawing, figures)
        self.price = price[0] if price else None
        self.table, self.texts = page(), page()
        self._write()
        sweep = [self.trained] if exploration.families else []
        super().__init__(
            [
                controls(self.alpha, self.ranking, *sweep),
                self.distributions.box,
                self.table,
                self.curve.box,
                *(drawing.box for drawing in price),
                controls(self.anchor),
                self.texts,
            ]
        )
        self.add_class("rarlhf-explorer")
        for control in (self.alpha, self.ranking, self.trained):
            control.observe(self._moved, names="value")
        self.anchor.observe(lambda _: self._write_texts(), names="value")

    def _present(self) -> tuple[float, Ranking, float | None]:
        return self.alpha.value, self.ranking.value, self.trained.value if self.exploration.families else None

    @no_collection()
    def _moved(self, change: dict) -> None:
        alpha, ranking, trained = self._present()
        if change["owner"] is self.trained:
            self._offer_anchors()
        shown, axes = self.exploration.shown(trained), self.exploration.axes
        titles = distribution_titles(shown, alpha, ranking)
        self.distributions.redraw(distribution_changes(shown, alpha, ranking, axes), titles)
        self.curve.redraw(curve_changes(shown, alpha, ranking))
        if self.price is not None:
            self.price.redraw(price_changes(self.exploration.sweeps, alpha, ranking, trained))
        self._write()

    def _offer_anchors(self) -> None:
        """Offer the shown methods; the chosen position stays when the trained alpha changes."""
        methods = [slot.method for slot in self.exploration.shown(self._present()[2])]
        place = self.anchor.index if self.anchor.options else methods.index(_default_anchor(methods))
        self.anchor.options = [(method_name(method), method) for method in methods]
        self.anchor.index = place

    def _write(self) -> None:
        self.table.value = self.exploration.table_html(*self._present())
        self._write_texts()

    def _write_texts(self) -> None:
        if self.anchor.value is not None:  # it is None for a moment while the options change
            self.texts.value = self.exploration.texts_html(self.anchor.value, *self._present())


def risk_explorer(
    episodes: dict[str, pd.DataFrame],
    held_out: dict[str, pd.DataFrame] | None = None,
    *,
    alpha: float = 0.1,
    ranking: Ranking = "reward",
    profile_alpha: float | None = None,
    resamples: int = 200,
    seed: int = 0,
    other_seeds: dict[int, dict[str, pd.DataFrame]] | None = None,
    interactive: bool = True,
) -> RiskExplorer | None:
    """Explore the tails of several methods' rewards; see `Exploration` for the arguments.

    Returns the widget; a batch run shows its content at `alpha` instead. Raises `UserError` where methods of one seed
    were not evaluated on the same prompts.
    """
    if ranking not in BY:
        raise UserError(f"ranking = {ranking!r} is unknown: choose one of {', '.join(BY)}.")
    exploration = Exploration(episodes, held_out, profile_alpha, resamples, seed, other_seeds)
    trained = exploration.trained_alphas[0] if exploration.families else None
    if not is_static(interactive):
        return RiskExplorer(exploration, alpha, ranking, trained)
    titles = [f"Rewards and their tail, α = {alpha:g}", "The tail at every α", "What the trained α costs"]
    for figure, title in zip(exploration.figures(alpha, ranking, trained), titles, strict=False):
        figure.update_layout(title_text=title, margin_t=100, height=figure.layout.height + 60).show()
    methods = [slot.method for slot in exploration.shown(trained)]
    display(HTML(exploration.table_html(alpha, ranking, trained)))
    display(HTML(exploration.texts_html(_default_anchor(methods), alpha, ranking, trained)))
    return None


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


def _default_anchor(methods: Sequence[str]) -> str:
    return next((name for name in BASELINES if name in methods), methods[-1])


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return interval_cell(interval) + (" *" if interval.low > 0 or interval.high < 0 else "")
