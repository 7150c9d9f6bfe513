"""The figures of a sweep: reward against KL, and what the trained alpha changes. Texts from data are escaped."""

from itertools import cycle

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


def frontier(points: pd.DataFrame) -> go.Figure:
    """Mean reward and CVaR 10 % against KL from the SFT policy, one line per method over kl_coef.

    points: scores (see `evaluation.scores`) with the columns kl and reward, equal in all other settings; if CVaR 10 %
    was not measured, `tail_metric` says what takes its place. Faint dots are seeds, and lines join their means. A sweep
    of more alphas than there are kl_coefs has one line over alpha per kl_coef instead: from RLHF, its alpha = 1, to the
    smallest alpha, which is darkest. Its ends are labelled with alpha; if kl_coefs differ, those of RLHF are named.
    """
    points = distinct_scores(points)
    tail = tail_metric(points.columns)
    means = points.groupby(["method", "kl_coef"], as_index=False)[["kl", "reward", tail]].mean()
    methods, kl_coefs = method_order(points["method"].unique()), means["kl_coef"].unique()
    sweeps = {name: members for name, members in sweep_families(methods).items() if len(members) > len(kl_coefs)}
    swept = {method for members in sweeps.values() for method in members.values()}
    traces = [trace for method in methods for trace in _over_kl_coef(method, points, means, method in swept)]
    if sweeps and BASELINE in methods and len(kl_coefs) > 1:
        traces.append(_named_kl_coefs(means[means["method"] == BASELINE]))
    for (name, members), side in zip(sweeps.items(), cycle(SIDES), strict=False):
        traces += _over_alpha(name, members, means, side)
    figure = make_subplots(cols=2, horizontal_spacing=0.14)
    for col, (metric, title) in enumerate({"reward": "mean reward (logit)", tail: _tail_title(tail)}.items(), start=1):
        for rows, style in traces:
            shown = style | {"showlegend": col == 1 and style.get("showlegend", True)}
            figure.add_scatter(x=rows["kl"], y=rows[metric], row=1, col=col, **shown)
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
    for key in grid_settings(scores):
        values = scores[key].unique()
        if len(values) > 1:
            raise UserError(
                f"{key} has {len(values)} values in scores, and a line over alpha needs one: choose it first, as in "
                f"scores[scores[{key!r}] == {values[0]}]."
            )
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


# Traces


def _over_kl_coef(method: str, points: pd.DataFrame, means: pd.DataFrame, swept: bool) -> list[tuple]:
    """A method's seeds as dots and, unless it is part of a sweep, the line through their means: rows and style."""
    name, color = label_text(method), {"color": faint(method, 0.35), "size": 6}
    seeds, own = points[points["method"] == method], means[means["method"] == method]
    dots = {"name": name, "legendgroup": name, "mode": "markers", "marker": color, "showlegend": False}
    line = {"name": name, "legendgroup": name, "mode": "lines+markers", "line": line_style(method), "marker_size": 9}
    return [(seeds, dots | _hover(seeds, "one seed")), *([] if swept else [(own, line | _hover(own))])]


def _over_alpha(name: str, members: dict[float, str], means: pd.DataFrame, side: str) -> list[tuple]:
    """A sweep's lines over alpha, one per kl_coef; that of the lowest is labelled: rows and style of each."""
    order, label = [*(members[alpha] for alpha in sorted(members)), BASELINE], f"{label_text(name)} over α"
    lines = []
    for place, (_, found) in enumerate(means.groupby("kl_coef")):
        rows = found.set_index("method").reindex(order).dropna().rename_axis("method").reset_index()
        ends = (min(members), max(members)) if place == 0 else ()
        alphas = [MethodKey.parse(method).alpha for method in rows["method"]]
        style = {
            "name": label,
            "legendgroup": label,
            "showlegend": place == 0,
            "mode": "lines+markers+text",
            "line": {"color": method_color(name), "width": 2},
            "marker": {"size": 9, "color": rows["method"].map(method_color)},
            "text": [f"{alpha:g}" if alpha in ends else "" for alpha in alphas],
            "textposition": side,
            "textfont": {"size": 12, "color": method_color(name)},
        }
        lines.append((rows, style | _hover(rows)))
    return lines


def _named_kl_coefs(rows: pd.DataFrame) -> tuple:
    """The kl_coefs beside the points of RLHF, from which the sweeps start: rows and style."""
    font = {"size": 12, "color": method_color(BASELINE)}
    text = {"mode": "text", "text": [f"β {kl_coef:g}" for kl_coef in rows["kl_coef"]], "textfont": font}
    return rows, text | {"textposition": "top left", "cliponaxis": False, "hoverinfo": "skip", "showlegend": False}


def _hover(rows: pd.DataFrame, note: str = "mean of seeds") -> dict:
    template = "%{customdata[0]}, kl_coef %{customdata[1]}, " + note + "<br>KL %{x:.2f}, %{y:.2f}"
    return {
        "customdata": np.column_stack([rows["method"].map(label_text), rows["kl_coef"]]),
        "hovertemplate": template,
    }


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
