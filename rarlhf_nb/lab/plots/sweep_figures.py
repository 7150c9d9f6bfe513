"""The figures of a sweep: reward against KL, and what the trained alpha changes. Texts from data are escaped."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import tail_metric
from rarlhf_nb.lab.evaluation.scores import distinct_scores, grid_settings, sweep_families
from rarlhf_nb.lab.methods import MethodKey, method_order
from rarlhf_nb.lab.plots.figures import add_curve
from rarlhf_nb.lab.plots.theme import KL, faint, label_text, laid_out, line_style, method_color

ALPHA_PANELS = {"cvar_10": "CVaR 10 % of reward (logit)", "reward": "mean reward (logit)", "kl": "KL (nats)"}
BASELINE = "rlhf"  # the policy at alpha = 1, where every sweep over alpha ends
SIDES = ("bottom center", "top center")  # of the points, for the labels of one sweep and of the next
ROOM = np.array([0.09, 0.07])  # the size of a label, in shares of a panel


def frontier(points: pd.DataFrame) -> go.Figure:
    """Mean reward and CVaR 10 % against KL from the SFT policy, one line per method over kl_coef.

    points: scores (see `evaluation.scores`) with the columns kl and reward, equal in all other settings; if CVaR 10 %
    was not measured, `tail_metric` says what takes its place. Faint dots are seeds, and lines join their means. A sweep
    of more alphas than there are kl_coefs has one line over alpha per kl_coef instead: from RLHF, its alpha = 1, to the
    smallest alpha, which is darkest. The numbers at its points are alphas; if kl_coefs differ, those of RLHF are named.
    """
    points = distinct_scores(points)
    tail = tail_metric(points.columns)
    means = points.groupby(["method", "kl_coef"], as_index=False)[["kl", "reward", tail]].mean()
    methods, kl_coefs = method_order(points["method"].unique()), means["kl_coef"].unique()
    sweeps = {name: members for name, members in sweep_families(methods).items() if len(members) > len(kl_coefs)}
    swept = {method for members in sweeps.values() for method in members.values()}
    figure = make_subplots(cols=2, horizontal_spacing=0.14)
    for col, (metric, title) in enumerate({"reward": "mean reward (logit)", tail: _tail_title(tail)}.items(), start=1):
        for method in methods:
            seeds, own = points[points["method"] == method], means[means["method"] == method]
            dots = {"mode": "markers", "marker": {"color": faint(method, 0.35), "size": 6}, "showlegend": False}
            _add_points(figure, seeds, metric, col, method, note="one seed", **dots)
            if method not in swept:
                line = {"mode": "lines+markers", "line": line_style(method), "marker_size": 9}
                _add_points(figure, own, metric, col, method, **line)
            if method == BASELINE and sweeps and len(kl_coefs) > 1:
                _label_kl_coefs(figure, own, metric, col)
        _add_sweep_lines(figure, sweeps, means, metric, col)
        figure.update_xaxes(title_text=KL, title_font_size=13, row=1, col=col)
        figure.update_yaxes(title_text=title, row=1, col=col)
    return laid_out(figure, "Reward against KL" + ("; numbers: trained α" if sweeps else ""), 480)


def _tail_title(metric: str) -> str:
    name = "tail reward" if metric == "tail_reward" else f"CVaR {metric.removeprefix('cvar_')} % of reward"
    return f"{name} (logit)"


def alpha_curves(scores: pd.DataFrame) -> go.Figure:
    """CVaR 10 %, mean reward and KL against the trained alpha: one line per sweep, with 95 % t intervals over seeds.

    scores: see `evaluation.scores`, with the columns cvar_10, reward and kl. Every line ends at RLHF, its alpha = 1,
    but for that of the conditioned policy, which has an alpha = 1 of its own; the dotted line is the level of RLHF.
    Raises `UserError` if settings other than alpha and seed differ.
    """
    _check_one_setting(scores)
    scores = distinct_scores(scores)
    methods = method_order(scores["method"].unique())
    end = {1.0: BASELINE} if BASELINE in methods else {}
    sweeps = {name: end | members for name, members in sweep_families(methods).items()}
    figure = make_subplots(cols=3, horizontal_spacing=0.08, subplot_titles=list(ALPHA_PANELS.values()))
    for col, metric in enumerate(ALPHA_PANELS, start=1):
        values = {method: scores.loc[scores["method"] == method, metric].dropna() for method in methods}
        for name, members in sweeps.items():
            found = {alpha: values[members[alpha]] for alpha in sorted(members)}
            intervals = np.transpose([seed_interval(seeds) for seeds in found.values()])
            hover = "trained α %{x:g}: %{y:.2f}, mean of %{customdata} seeds"
            style = {"customdata": [len(seeds) for seeds in found.values()], "hovertemplate": hover, "marker_size": 8}
            add_curve(figure, name, np.array(list(found)), *intervals, col=col, mode="lines+markers", **style)
        if end:
            _add_level(figure, values[BASELINE].mean(), col)
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="trained α", range=[0, 1.04], dtick=0.2)
    band = "; band: 95 % interval over seeds" if scores["seed"].nunique() > 1 else ""
    return laid_out(figure, f"What the trained α changes{band}", 420)


def _check_one_setting(scores: pd.DataFrame) -> None:
    for key in grid_settings(scores):
        values = scores[key].unique()
        if len(values) > 1:
            raise UserError(
                f"{key} has {len(values)} values in scores, and a line over alpha needs one: choose it first, as in "
                f"scores[scores[{key!r}] == {values[0]}]."
            )


# Traces


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, metric: str, col: int, method: str, note: str = "mean of seeds", **style: Any
) -> None:
    """The rows of one method or sweep; the legend has its line once."""
    label = label_text(method)
    style = {"name": label, "showlegend": col == 1, "legendgroup": label} | style
    figure.add_scatter(
        x=rows["kl"],
        y=rows[metric],
        customdata=np.column_stack([rows["method"].map(label_text), rows["kl_coef"]]),
        hovertemplate="%{customdata[0]}, kl_coef %{customdata[1]}, " + note + "<br>KL %{x:.2f}, %{y:.2f}",
        row=1,
        col=col,
        **style,
    )


def _add_sweep_lines(
    figure: go.Figure, sweeps: dict[str, dict[float, str]], means: pd.DataFrame, metric: str, col: int
) -> None:
    """The sweeps over alpha, one line per kl_coef; the line of the lowest kl_coef has the labels."""
    taken: list[np.ndarray] = []
    low, span = means[["kl", metric]].min(), np.ptp(means[["kl", metric]], axis=0)
    for (name, members), side in zip(sweeps.items(), cycle(SIDES), strict=False):
        order = [*(members[alpha] for alpha in sorted(members)), BASELINE]
        for place, (_, rows) in enumerate(means.groupby("kl_coef")):
            line = rows.set_index("method").reindex(order).dropna().rename_axis("method").reset_index()
            alphas = [MethodKey.parse(method).alpha for method in line["method"]]
            labels = ["" if alpha is None or place else f"{alpha:g}" for alpha in alphas]
            places = ((line[["kl", metric]] - low) / span).to_numpy() + ROOM * [0, 1 if side.startswith("top") else -1]
            _add_points(
                figure,
                line,
                metric,
                col,
                name,
                name=f"{label_text(name)} over α",
                showlegend=col == 1 and place == 0,
                mode="lines+markers+text",
                line={"color": method_color(name), "width": 2},
                marker={"size": 9, "color": line["method"].map(method_color)},
                text=_spaced(labels, places, taken),
                textposition=side,
                textfont={"size": 12, "color": method_color(name)},
            )


def _label_kl_coefs(figure: go.Figure, means: pd.DataFrame, metric: str, col: int) -> None:
    """The kl_coefs beside the points of RLHF, from which the sweeps start."""
    figure.add_scatter(
        x=means["kl"],
        y=means[metric],
        mode="text",
        text=[f"β {kl_coef:g}" for kl_coef in means["kl_coef"]],
        textposition="top left",
        cliponaxis=False,
        textfont={"size": 12, "color": method_color(BASELINE)},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=col,
    )


def _spaced(labels: Sequence[str], places: np.ndarray, taken: list[np.ndarray]) -> list[str]:
    """The labels that have room, with "" for the others; `taken` grows by their places. places: (N, 2)."""
    shown = []
    for label, place in zip(labels, places, strict=True):
        free = bool(label) and not any((np.abs(place - other) < ROOM).all() for other in taken)
        taken += [place] if free else []
        shown.append(label if free else "")
    return shown


def _add_level(figure: go.Figure, value: float, col: int) -> None:
    """RLHF as a dot at alpha = 1, and its level as a dotted line."""
    figure.add_hline(y=value, line={"color": method_color(BASELINE), "dash": "dot", "width": 1.5}, row=1, col=col)
    figure.add_scatter(
        x=[1.0],
        y=[value],
        mode="lines+markers",
        line=line_style(BASELINE) | {"dash": "dot"},
        marker={"size": 10},
        name=f"{label_text(BASELINE)} (α 1)",
        legendgroup=label_text(BASELINE),
        showlegend=col == 1,
        row=1,
        col=col,
    )
